"""A distillation from start to end, for any backbone: time grid, data, validation, adapters, loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .about import about
from .backbone import Backbone, Cond, size, take
from .config import DistillConfig
from .distill import Outcome, distill, student_on
from .objective import Batch, TimeGrid, draw_times, tcd_loss
from .pairs import CachedLatents, Source, Trajectories, generator
from .processes import ALONE, Crew
from .report import Validation


def train(
    config: DistillConfig,
    backbone: Backbone,
    prompts: Cond,
    uncond: Cond,
    folder: Path,
    *,
    shards: Sequence[Path] | None = None,
    validate: bool = True,
    metadata: Mapping[str, str] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    quiet: bool = False,
    crew: Crew = ALONE,
) -> Outcome:
    """Distil `backbone` into `folder`: from `prompts` alone, or from the pictures in `shards`. See `distill`
    for errors.

    `prompts` also feed the validation; `uncond [1, ...]` is what guidance pushes away from. Each process of a
    `crew` does its share of the work on its own copy of `backbone`.
    """
    if size(prompts) == 0:
        raise ValueError("the prompt list is empty; give at least one prompt")
    grid = TimeGrid.of(backbone.schedule, config.skip, config.s_range, config.s_steps)
    source: Source
    if shards is None:
        source = Trajectories(
            backbone, prompts, uncond, grid, folder, seed=config.seed, trajectories=config.trajectories,
            reuse=config.reuse, w_range=(config.w_min, config.w_max), keep_teacher=config.cache_teacher,
            crew=crew,
        )  # fmt: skip
    else:
        source = CachedLatents(shards, grid, config.seed, _device(prompts))
    checked = None
    if validate and crew.first:
        some = take(prompts, slice(0, config.validation_prompts))
        noise = torch.randn(size(some), *backbone.latent_shape, generator=generator(config.seed, 41))
        middle = (config.w_min + config.w_max) / 2
        checked = Validation(backbone, some, uncond, grid, middle, noise.to(_device(prompts)))
    texts = {**about(config, backbone.network, backbone.latent_shape, folder.name), **(metadata or {})}
    with student_on(backbone, config) as student:
        return distill(
            config,
            student,
            source,
            uncond,
            grid,
            folder,
            validation=checked,
            metadata=texts,
            on_step=on_step,
            quiet=quiet or not crew.first,
            crew=crew,
        )


class Estimate(NamedTuple):
    """What a run will take: bytes at its peak, seconds, trained parameters. From one forward and backward of
    one sample.
    """

    memory: int
    seconds: float
    parameters: int

    def __str__(self) -> str:
        minutes = self.seconds / 60
        size = f"{self.parameters / 1e6:.2f} M trained parameters, {self.memory / 2**30:.2f} GiB"
        return f"{size}, {minutes:.0f} min"


def estimate(config: DistillConfig, backbone: Backbone, prompts: Cond) -> Estimate:
    """Measure a batch of the loss and multiply. The teacher's share is counted as two forwards."""
    grid = TimeGrid.of(backbone.schedule, config.skip, config.s_range, config.s_steps)
    saved = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size() * (not isinstance(tensor, torch.nn.Parameter))
        return tensor

    rows = torch.zeros(config.batch, dtype=torch.long)
    x = torch.randn(config.batch, *backbone.latent_shape, generator=generator(0)).to(_device(prompts))
    draw = draw_times(grid, config, torch.full((config.batch,), grid.n), generator(1))
    cond = take(prompts, rows)
    with student_on(backbone, config) as student:
        predict = student.predictor(cond)
        began = time.monotonic()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = tcd_loss(predict, predict, Batch(x, x, draw, cond), grid, config)
        loss.mean().backward()
        seconds = (time.monotonic() - began) * 5 / 3 * config.accumulation * config.steps
        trained = sum(p.numel() for p in student.parameters().values())
        held = sum(p.numel() * p.element_size() for p in backbone.network.parameters())
    copies = 5 + (config.target == "ema")  # weights, gradients, two moments, average (and target)
    return Estimate(held + 4 * trained * copies + saved, seconds, trained)


def _device(cond: Cond) -> torch.device:
    return next(iter(cond.values())).device
