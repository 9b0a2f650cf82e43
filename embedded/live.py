"""Distilling the embedded teacher: what `tcd demo`, `tcd reproduce` and `tcd train --embedded` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..training.backbone import size, take
from ..training.config import DistillConfig
from ..training.distill import Outcome, distill, student_on
from ..training.objective import TimeGrid
from ..training.pairs import CachedLatents, Source, Trajectories, generator
from ..training.report import Validation
from .avatars import draw_labels
from .model import LATENT, EmbeddedModel

PROMPTS = 2048  # drawn when none are given


def training_prompts(seed: int) -> list[list[int]]:
    """Full prompts in the data's proportions, as slot values."""
    return draw_labels(PROMPTS, np.random.default_rng([seed, 9])).tolist()


def distil_embedded(
    model: EmbeddedModel,
    config: DistillConfig,
    folder: Path,
    *,
    labels: list[list[int]] | None = None,
    shards: list[Path] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    validate: bool = True,
    quiet: bool = False,
) -> Outcome:
    """Distil `model` into `folder`: data-free from prompts, or from shards of real pictures where `shards` are given."""
    grid = TimeGrid.discrete(model.schedule, config.skip, config.s_range, config.s_steps)
    uncond = model.unconditional()
    cond = model.encode_labels(np.array(training_prompts(config.seed) if labels is None else labels, np.int64))
    source: Source
    if shards is None:
        source = Trajectories(
            model, cond, uncond, grid, folder, seed=config.seed, trajectories=config.trajectories, reuse=config.reuse,
            w_range=(config.w_min, config.w_max), keep_teacher=config.cache_teacher,
        )  # fmt: skip
    else:
        source = CachedLatents(shards, grid, config.seed)
    checked = None
    if validate:
        some = take(cond, slice(0, min(config.validation_prompts, size(cond))))
        noise = torch.randn(size(some), *LATENT, generator=generator(config.seed, 41))
        checked = Validation(model, some, uncond, grid, (config.w_min + config.w_max) / 2, noise)
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(config.rank), "ss_network_alpha": str(config.alpha)}
    with student_on(model, config) as student:
        return distill(
            config, student, source, uncond, grid, folder, validation=checked, metadata=metadata, on_step=on_step, quiet=quiet
        )
