"""The optimizers that a run may have: the same steps after a resume, and what to do where one is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from test_memory import run
from tiny import Stop, stop_at

from comfyui_tcd.training.checkpoint import load_tensors
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import CHECKPOINT
from comfyui_tcd.training.memory import state_bytes
from comfyui_tcd.training.optimizer import optimizer_of, take_step

INSTALLED = ["adamw", *(["adamw8bit"] if find_spec("bitsandbytes") else [])]


@pytest.mark.parametrize("optimizer", INSTALLED)
def test_a_resumed_run_is_an_unbroken_one(tmp_path: Path, optimizer: str):
    rank: dict[str, Any] = {"optimizer": optimizer, "rank": 32, "alpha": 32.0}  # enough for 8 bits
    run(tmp_path / "whole", **rank)
    with pytest.raises(Stop):
        run(tmp_path / "broken", on_step=stop_at(4), **rank)
    run(tmp_path / "broken", **rank)
    held, again = (load_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "broken"))
    assert held.keys() == again.keys() and all(torch.equal(v, again[k]) for k, v in held.items())
    eight = {v.dtype for k, v in held.items() if k.startswith("optimizer/") and v.numel() >= 4096}
    assert eight == {torch.uint8 if optimizer == "adamw8bit" else torch.float32}


@pytest.mark.parametrize("optimizer", INSTALLED)
def test_a_step_after_a_figure_that_is_not_finite_changes_nothing(optimizer: str):
    weight = torch.nn.Parameter(torch.ones(64, 64))
    made = optimizer_of(DistillConfig(optimizer=optimizer, learning_rate=0.1), [weight])
    weight.grad = torch.ones(64, 64)
    take_step(made, torch.tensor(1.0))
    assert torch.equal(weight, torch.ones(64, 64))
    take_step(made, torch.tensor(0.0))
    assert torch.allclose(weight, torch.full((64, 64), 0.9), atol=5e-3)


def test_a_missing_optimizer_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ValueError, match=r'python -m pip install "bitsandbytes.*or set optimizer = adamw'):
        run(tmp_path / "run", optimizer="adamw8bit")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_moments_of_8_bits_take_6_bytes_less():
    assert state_bytes(DistillConfig()) == 20
    assert state_bytes(DistillConfig(optimizer="adamw8bit", target="ema")) == 18
