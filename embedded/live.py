"""Distilling the embedded teacher: what `tcd demo`, `tcd reproduce` and `tcd train --embedded` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..training.config import DistillConfig
from ..training.distill import Outcome
from ..training.run import train
from .avatars import Labels, draw_labels
from .model import EmbeddedModel

PROMPTS = 2048  # drawn when none are given


def training_prompts(seed: int) -> Labels:
    """Full prompts in the data's proportions, `[2048, 9]` slot values."""
    return draw_labels(PROMPTS, np.random.default_rng([seed, 9]))


def distil_embedded(
    model: EmbeddedModel,
    config: DistillConfig,
    folder: Path,
    *,
    labels: Labels | None = None,
    shards: Sequence[Path] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    validate: bool = True,
    quiet: bool = False,
) -> Outcome:
    """Distil `model` into `folder`: data-free from prompts (`labels [B, 9]`), or from shards of real
    pictures.
    """
    prompts = model.encode_labels(training_prompts(config.seed) if labels is None else labels)
    return train(
        config, model, prompts, model.unconditional(), folder,
        shards=shards, on_step=on_step, validate=validate, quiet=quiet, metadata={"tcd.teacher": "embedded"},
    )  # fmt: skip
