"""The table that the page's port of the sampler is tested against is what the sampler says today."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

WEB = Path(__file__).parent / "web"


def test_the_table_is_not_stale():
    made = runpy.run_path(str(WEB / "make_steps.py"))["table"]()
    kept = json.loads((WEB / "steps.json").read_text("utf-8"))
    assert len(kept) == len(made)
    for old, new in zip(kept, made, strict=True):
        assert {k: v for k, v in old.items() if k != "rows"} == {k: v for k, v in new.items() if k != "rows"}
        for a, b in zip(old["rows"], new["rows"], strict=True):
            assert a == pytest.approx(b, abs=2e-6), f"run python tests/web/make_steps.py ({old})"
