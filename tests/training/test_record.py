"""Short runs of every kind give the losses that they gave when they were recorded.

A change that is meant to change figures makes the record anew (make_record.py says how), and says so.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_record import RECORD, RUNS, STOPPED, made

from comfyui_tcd.training.report import read_log

KEPT = json.loads(RECORD.read_text("utf-8"))


def test_every_kind_of_run_is_recorded():
    assert KEPT.keys() == RUNS.keys()
    stopped = [name for name in RUNS if name.endswith(STOPPED)]
    assert stopped and all(KEPT[name] == KEPT[name.removesuffix(STOPPED)] for name in stopped)
    assert len({json.dumps(losses) for losses in KEPT.values()}) == len(KEPT) - len(stopped)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_gives_the_losses_that_are_recorded(name: str, tmp_path: Path):
    made(name, tmp_path)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    # Kernels round differently from machine to machine, and Adam turns rounding into steps.
    assert losses == pytest.approx(KEPT[name], rel=1e-3)
