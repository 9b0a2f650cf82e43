"""The distillation loop, top to bottom: batch, loss, step, averages, report.

with student_on(backbone, config) as student:
    distill(config, student, source, uncond, grid, folder)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .backbone import Cond
from .checkpoint import write_text
from .config import DistillConfig
from .objective import TimeGrid
from .optimizer import learning_rate, lift, lower, optimizer_of, take_step
from .pairs import Source
from .processes import ALONE, Crew
from .reading import Reading, late
from .recorder import BEST, LORA, OnStep, Recorder
from .report import Validation
from .stage import OBJECTIVES
from .state import State, approach
from .student import Student, student_on

__all__ = ["BEST", "CHECKPOINT", "LORA", "Outcome", "Student", "distill", "student_on"]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `steps` done, the last loss and validation figure, the best figure and its step."""

    steps: int
    loss: float
    validation: float | None
    best: float | None
    best_step: int | None


def distill(
    config: DistillConfig,
    student: Student,
    source: Source,
    uncond: Cond,
    grid: TimeGrid,
    folder: Path,
    *,
    validation: Validation | None = None,
    metadata: Mapping[str, str] | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
    crew: Crew = ALONE,
    ahead: int | None = None,
) -> Outcome:
    """Train `student` (its LoRA, and the embedding of s if it has one) and write LoRAs and checkpoints into
    `folder`.

    A folder that holds a checkpoint of the same settings is resumed, with the weights that an unbroken run
    would have.
    `on_step(step, loss)` may raise to stop (an interrupt of the host): a checkpoint and a LoRA are kept. It
    may be called `ahead` steps late, so that the device need not wait (default: one; on a CPU none).
    Each process of a `crew` takes its share of every batch; the first writes, validates and calls `on_step`.
    Raises ValueError for a loss that is not finite, and for a folder with other settings; ConnectionError
    where another process is gone.
    """
    crew.check(config.batch)
    trained = student.parameters()
    average = {k: p.detach().clone() for k, p in trained.items()}
    objective = OBJECTIVES["tcd"](student, uncond, grid, config)
    optimizer = optimizer_of(config, trained.values())
    # The storage and not the parameters: an interrupt may find them lent to an average (student.swapped).
    weights = {"student": {k: p.detach() for k, p in trained.items()}, "average": average}
    checkpoint = State(folder / CHECKPOINT, config, {**weights, **objective.state()}, optimizer, crew)
    recorder = Recorder(
        config, student, average, checkpoint, folder,
        validation=validation, metadata=metadata, on_step=on_step, quiet=quiet, main=crew.first,
    )  # fmt: skip
    if crew.first:
        write_text(folder / "config.toml", config.as_toml())
    total = config.batch * config.accumulation
    loss_scale = lift(config.batch * math.prod(student.backbone.latent_shape))
    some = next(iter(trained.values()))
    diverged = torch.zeros((), device=some.device)
    max_lag = late(some) if ahead is None else ahead

    try:
        recorder.catch_up()
        for step in range(recorder.start, config.steps):
            # Loss. Every choice is a function of (seed, step); micro-batches are slices of one draw.
            optimizer.zero_grad(set_to_none=True)
            objective.begin_step(step, total)
            losses: list[Tensor] = []
            for first in range(0, total, config.batch):
                part = crew.share(first, config.batch)
                with student.lora.off():  # a source may have to run the teacher
                    pairs = source.batch(step, total, part)
                each = objective.loss(pairs, part)
                (each.mean() / config.accumulation * loss_scale).backward()
                losses.append(each.detach().mean())
            lower(trained.values(), loss_scale)
            loss = crew.mean(trained.values(), torch.stack(losses).mean())

            # Step. On the device: after a figure that is not finite nothing is changed any more.
            recorder.completed = None
            norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.clip or math.inf)
            diverged = torch.maximum(diverged, 1 - (loss.isfinite() & norm.isfinite()).float())
            rate = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            take_step(optimizer, diverged)

            # Averages: of the target network, and of what will be sampled from.
            objective.end_step()
            decay = min(config.average, (1 + step) / (10 + step)) if config.average else 0.0
            approach(average, trained, decay)

            # Report, save.
            recorder.add(Reading(step + 1, loss, norm, rate), max_lag)
    except BaseException:
        recorder.keep()
        raise
    recorder.finish()
    return Outcome(config.steps, recorder.loss, recorder.figure, recorder.best, recorder.best_step)
