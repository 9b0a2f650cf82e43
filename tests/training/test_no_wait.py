"""A step never makes the host wait for the device: seen on torch's device without numbers, which stands for
one that is slow to answer. Not seen: the optimizer's own kernel, and the reading of figures a step late.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyUNet, data_free, grid_of, settings, uncond
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comfyui_tcd.training import distill as loop
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import distill, student_on
from comfyui_tcd.training.pairs import CachedLatents, Source
from comfyui_tcd.training.shards import write_shard

FAR = torch.device("meta")
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.equal.default}
COPIES = {aten._to_copy.default, aten.copy_.default}


class Waits(TorchDispatchMode):
    """Notes the operators that make a host wait for a device that is far."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.run, self.looking, self.reached = 0, False, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        given = [a.device for a in tensors]
        self.run += self.looking and FAR in given
        to = kwargs.get("device", args[0].device if func is aten.copy_.default else None)
        ahead = kwargs.get("non_blocking", False) or (len(args) > 2 and args[2])
        if self.looking and (
            (func in READS and FAR in given)
            or (func in COPIES and to is not None and to not in given[-1:] and given and not ahead)
            # its indices are copied within; a single number comes along with the call
            or (func not in COPIES and len({a.device for a in tensors if a.ndim}) > 1)
        ):
            self.found.append(f"{func} {given}")
        return func(*args, **kwargs)


class Unread:
    """What stands for a step's figures, which a device without numbers has not got."""

    finite, values = True, (1.0, 1.0)

    def __init__(self, step: int, *_: object) -> None:
        self.step = step

    def record(self) -> dict[str, float]:
        return {"step": self.step, "loss": 1.0}


class Enough(Exception):
    pass


class Steps:
    """A source that has `waits` look at the second step, and ends the run after it."""

    def __init__(self, source: Source, waits: Waits) -> None:
        self.source, self.waits = source, waits

    def batch(self, step: int, total: int, part: slice) -> Any:
        self.waits.looking = step == 1
        if step == 2:
            self.waits.reached = True
            raise Enough
        return self.source.batch(step, total, part)


def source_on(far: torch.device, kind: str, config: DistillConfig, folder: Path) -> Source:
    near = TinyUNet()
    if kind == "latents":
        latents = torch.randn(6, *near.latent_shape)
        cond = {"context": torch.randn(6, 3, 32), "pooled": torch.randn(6, 8)}
        write_shard(folder / "shard.safetensors", latents, cond)
        like = {k: v.to(far) for k, v in cond.items()}
        return CachedLatents([folder / "shard.safetensors"], grid_of(near, config), 0, like)
    source = data_free(near, config, folder)
    source.batch(0, config.batch, slice(config.batch))  # its trajectories need numbers
    source.prompts, source.device = {k: v.to(far) for k, v in source.prompts.items()}, far
    return source


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "trajectories": ("trajectories", {}),
    "in a row": ("trajectories", {"consecutive": 3, "batch": 2, "accumulation": 2}),
    "every s, accumulated": (
        "trajectories",
        {"all_s": True, "distance": "l2", "batch": 2, "accumulation": 2},
    ),
    "told s, average as target": ("trajectories", {"student": "tcfs", "target": "ema"}),
    "latents": ("latents", {"distance": "l2"}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_operator_of_a_step_waits_for_the_device(case: str, tmp_path: Path, monkeypatch: Any):
    kind, changes = CASES[case]
    config = settings(steps=9, save_every=9, trajectories=6, skip=100, **changes)
    waits = Waits()
    source = Steps(source_on(FAR, kind, config, tmp_path), waits)
    monkeypatch.setattr(loop, "Reading", Unread)
    # the optimizer of a run is one kernel, which this device has not
    monkeypatch.setattr(loop, "optimizer_of", lambda _, p: torch.optim.AdamW(p, lr=1e-3, foreach=True))
    monkeypatch.setattr(loop, "take_step", lambda optimizer, diverged: optimizer.step())
    backbone = TinyUNet()
    backbone.network.to(FAR)
    empty = {k: v.to(FAR) for k, v in uncond().items()}
    with student_on(backbone, config) as student, pytest.raises(NotImplementedError) as ended, waits:
        distill(config, student, source, empty, grid_of(backbone, config), tmp_path / "run", quiet=True)
    # what an ended run saves has no numbers here: the error of that, after the end that was asked for
    assert isinstance(ended.value.__context__, Enough)
    assert waits.reached and waits.run > 500 and waits.found == []
