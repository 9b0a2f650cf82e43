"""A distillation from start to end, for any backbone: time grid, data, validation, adapters, loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch

from .about import about
from .backbone import Backbone, Cond, InParts, size, take
from .compiled import compiled
from .config import DistillConfig
from .distill import Outcome, distill, student_on
from .lora import told_of_ranks
from .memory import GIB, SMALLER, Needs, Plan, fitting, free_memory, kept_by, plans, recomputed, state_bytes
from .objective import Batch, TimeGrid, draw_times, tcd_loss
from .pairs import CachedLatents, OnPairs, Source, Trajectories, generator
from .processes import ALONE, Crew
from .report import Validation

Free = Callable[[torch.device], int | None]
"""Bytes that a run may take on a device; None where nothing tells."""


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
    free: Free = free_memory,
    on_plan: Callable[[str], None] = lambda text: None,
    on_pairs: OnPairs = lambda done, steps: None,
) -> Outcome:
    """Distil `backbone` into `folder`: from `prompts` alone, or from the pictures in `shards`. See `distill`
    for errors.

    `prompts` also feed the validation; `uncond [1, ...]` is what guidance pushes away from. Each process of a
    `crew` does its share of the work on its own copy of `backbone`.
    A plan is made for the memory that is `free`, and `on_plan` told; out of memory all the same, the run goes
    on with the next smaller one. MemoryError where that is not enough. `on_pairs` is told how far the teacher
    has got with the pairs of the next steps, which takes minutes for a large model; it may raise to stop.
    """
    if size(prompts) == 0:
        raise ValueError("the prompt list is empty; give at least one prompt")
    grid = TimeGrid.of(backbone.schedule, config.skip, config.s_range, config.s_steps)
    texts = {**about(config, backbone.network, backbone.latent_shape, folder.name), **(metadata or {})}

    def run(plan: Plan) -> Outcome:
        parts = InParts(backbone, 2 * plan.batch // crew.count)  # the teacher's step is of so many
        network = backbone.network
        fast = compiled(network) if config.compile else nullcontext()
        kept = recomputed(network) if plan.recompute else nullcontext()
        with student_on(backbone, plan.applied(config)) as student, fast, kept:
            return distill(
                plan.applied(config),
                student,
                source_of(config, parts, prompts, uncond, grid, folder, shards, crew, on_pairs),
                uncond,
                grid,
                folder,
                validation=validation_of(config, parts, prompts, uncond, grid)
                if validate and crew.first
                else None,
                metadata=texts,
                on_step=on_step,
                quiet=quiet or not crew.first,
                crew=crew,
            )

    able = plans(needs(config, backbone, prompts), config, crew.count)
    first, *others = fitting(able, crew.least(free(_device(prompts))))
    smaller = told_of_ranks(backbone.network, config.targets, config.rank)
    on_plan("; ".join([str(first), *([smaller] if smaller else [])]))
    try:
        return run(first)
    except torch.OutOfMemoryError as error:
        if not others:
            raise MemoryError(f"out of memory with {first}: {SMALLER}") from error
        if crew.count > 1:  # the others wait for this one, and end when it does
            raise MemoryError(
                f"out of memory with {first}; start the same command with {others[0].settings()}: it goes on "
                "from the last checkpoint"
            ) from error
    free(_device(prompts))  # what the error held is given back
    on_plan(f"out of memory, so it goes on with {others[0]}")
    try:
        return run(others[0])
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"out of memory with {first}, and with {others[0]}: {SMALLER}") from error


def source_of(
    config: DistillConfig,
    backbone: Backbone,
    prompts: Cond,
    uncond: Cond,
    grid: TimeGrid,
    folder: Path,
    shards: Sequence[Path] | None,
    crew: Crew,
    on_pairs: OnPairs = lambda done, steps: None,
) -> Source:
    """The teacher's own trajectories, or the pictures in `shards`."""
    if shards is not None:
        return CachedLatents(shards, grid, config.seed, prompts)
    return Trajectories(
        backbone, prompts, uncond, grid, folder, seed=config.seed, trajectories=config.trajectories,
        reuse=config.reuse, w_range=(config.w_min, config.w_max), keep_teacher=config.cache_teacher,
        consecutive=config.linked, crew=crew, on_pairs=on_pairs,
    )  # fmt: skip


def validation_of(
    config: DistillConfig, backbone: Backbone, prompts: Cond, uncond: Cond, grid: TimeGrid
) -> Validation:
    """Of the first prompts, at the middle of the guidances."""
    some = take(prompts, slice(0, config.validation_prompts))
    noise = torch.randn(size(some), *backbone.latent_shape, generator=generator(config.seed, 41))
    middle = (config.w_min + config.w_max) / 2
    return Validation(backbone, some, uncond, grid, middle, noise.to(_device(prompts)))


def needs(config: DistillConfig, backbone: Backbone, prompts: Cond) -> Needs:
    """Of a run, metered on one sample of the student."""
    return _metered(config, backbone, prompts)[0]


def _metered(config: DistillConfig, backbone: Backbone, prompts: Cond) -> tuple[Needs, int, float]:
    """Needs, trained parameters, and the seconds of one sample's target and student, without a backward."""
    grid = TimeGrid.of(backbone.schedule, config.skip, config.s_range, config.s_steps)
    x = torch.randn(1, *backbone.latent_shape, generator=generator(0)).to(_device(prompts))
    draw = draw_times(grid, config, torch.full((1,), grid.n), generator(1))
    cond = take(prompts, torch.zeros(1, dtype=torch.long))  # of its own, not a part of all
    with student_on(backbone, config) as student:
        predict = student.predictor(cond)
        began = time.monotonic()
        try:
            kept = kept_by(
                backbone.network, lambda: tcd_loss(predict, predict, Batch(x, x, draw, cond), grid, config)
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"not even one sample fits into memory: {SMALLER}") from error
        trained = sum(p.numel() for p in student.parameters().values())
        return Needs(trained * state_bytes(config), kept), trained, time.monotonic() - began


class Estimate(NamedTuple):
    """What a run will take: bytes at its peak, seconds, trained parameters, and how each step is computed."""

    memory: int
    seconds: float
    parameters: int
    plan: Plan

    def __str__(self) -> str:
        minutes = self.seconds / 60
        size = f"{self.parameters / 1e6:.2f} M trained parameters, {self.memory / GIB:.2f} GiB"
        return f"{size}, {minutes:.0f} min; {self.plan}"


class Forwards(NamedTuple):
    """Of the network, for each sample of a run."""

    alone: float  # without a backward pass: of the teacher and the target
    trained: float  # of the student


def forwards_of(config: DistillConfig, pictures: bool = False) -> Forwards:
    """How often the network is evaluated for a sample of a data-free run, or of one from pictures: a
    trajectory asks the teacher twice for each pair, which is used `reuse` times; what is not cached is asked
    again.
    """
    evaluations = 2 if config.student == "tcf2" else 1
    again = 0 if config.cache_teacher and not pictures else 4 if config.solver == "dpm2" else 2
    drawn = 0 if pictures else 2 / config.reuse
    times, total = 1000 // config.skip, config.batch * config.accumulation
    length = 1 if pictures else min(config.linked, times)
    rows = -(-times // length) / times
    if times % length or total % length:
        rows += (1 - rows) / total  # those that a step cuts
    return Forwards(drawn + again + rows * evaluations, evaluations)


def estimate(
    config: DistillConfig,
    backbone: Backbone,
    prompts: Cond,
    free: Free = free_memory,
    *,
    pictures: bool = False,
) -> Estimate:
    """Meter one sample and multiply: its forwards, one for the backward pass, and one where blocks are
    recomputed. MemoryError where nothing fits into the free memory.
    """
    found, trained, seconds = _metered(config, backbone, prompts)
    plan = fitting(plans(found, config), free(_device(prompts)))[0]
    held = sum(p.numel() * p.element_size() for p in backbone.network.parameters())
    sample = forwards_of(config, pictures)
    forwards = sample.alone + sample.trained * (2 + plan.recompute)
    samples = config.batch * config.accumulation * config.steps
    seconds *= forwards / (2 * sample.trained)  # a target and a student
    return Estimate(held + plan.need, seconds * samples, trained, plan)


def _device(cond: Cond) -> torch.device:
    return next(iter(cond.values())).device
