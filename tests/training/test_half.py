"""A network that computes in float16, as ComfyUI runs SDXL on many cards: no gradient is rounded away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyUNet, run, settings
from torch import Tensor

from comfyui_tcd.training import distill as loop
from comfyui_tcd.training.distill import Student
from comfyui_tcd.training.optimizer import lift
from comfyui_tcd.training.pairs import generator


class Wide(TinyUNet):
    """With pictures of a size that makes each element's share of a mean small."""

    latent_shape = (4, 48, 48)


def lifted(student: Student) -> None:
    for i, (name, p) in enumerate(student.parameters().items()):
        if name.endswith("lora_up"):
            p.data = torch.randn(p.shape, generator=generator(3, i)) * 0.02


def gradient(dtype: torch.dtype, folder: Path, monkeypatch: Any) -> Tensor:
    """Of a run's one step, as the optimizer gets it but for the clipping."""
    found: list[Tensor] = []

    def take(optimizer: torch.optim.Optimizer, diverged: Tensor) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append(torch.cat([g.flatten() for g in grads]))

    monkeypatch.setattr(loop, "take_step", take)
    backbone = Wide()
    backbone.network.to(dtype)
    config = settings(steps=1, warmup=0, save_every=9, trajectories=1, batch=4, clip=0.0)
    run(config, folder / str(dtype), backbone, inside=lifted)
    return found[0]


def test_what_float16_learns_is_what_float32_learns(tmp_path: Path, monkeypatch: Any):
    wide, half = (gradient(d, tmp_path, monkeypatch) for d in (torch.float32, torch.float16))
    assert float((half - wide).norm() / wide.norm()) < 0.05  # the forward pass rounds too
    assert float((half == 0).double().mean()) < 1e-3


def test_without_the_lift_most_of_it_would_be_lost(tmp_path: Path, monkeypatch: Any):
    """Also that this test can see it: a mean over eight samples of 128 x 128 has shares of 2e-6."""
    monkeypatch.setattr(loop, "lift", lambda _: 2.0**-5)
    half = gradient(torch.float16, tmp_path, monkeypatch)
    assert float((half == 0).double().mean()) > 0.05


@pytest.mark.parametrize("elements", [1, 31, 32, 65_536, 4 * 128 * 128 * 16, 10**9])
def test_the_lift_is_exact_and_stays_in_range(elements: int):
    up = lift(elements)
    assert up == 2.0 ** round(torch.tensor(up).log2().item()) and up >= 1
    assert up == 1 or 1 / 64 < up / elements <= 1 / 16
