"""The distillation loop, top to bottom: batch, loss, step, averages, report. Everything else is called,
nothing is hidden.

with student_on(backbone, config) as student:
    distill(config, student, source, folder)
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers import FlowSchedule, Order, Point, Predict
from .backbone import Backbone, Cond, in_parts, repeat
from .checkpoint import write_text
from .config import DistillConfig
from .lora import Lora, injected, save_lora
from .narrow import widened_again
from .objective import Batch, Links, TimeGrid, draw_times, guided, solver_step, tcd_loss, teacher_predictor
from .optimizer import learning_rate, lift, lower, optimizer_of, take_step
from .pairs import Pairs, Source, generator
from .processes import ALONE, Crew
from .reading import Reading, late
from .report import Log, Progress, Validation, write_png
from .splus import PREFIX, TargetEmbedding, attached
from .state import State, approach

CHECKPOINT = "checkpoint.safetensors"
LORA = "lora.safetensors"
BEST = "best.safetensors"


@dataclass(frozen=True)
class Student:
    """A network with its adapters in: teacher and student in one."""

    backbone: Backbone
    lora: Lora
    embedding: TargetEmbedding | None
    rows: int  # at once, where there is no backward pass

    def parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name."""
        named = self.lora.parameters()
        if self.embedding is not None:
            named |= {PREFIX + k: p for k, p in self.embedding.named_parameters()}
        return named

    def predictor(self, cond: Cond) -> Predict:
        """One evaluation of the student."""
        return in_parts(self._predictor, cond, self.rows)

    def _predictor(self, cond: Cond) -> Predict:
        predict = self.backbone.predictor(cond)
        return predict if self.embedding is None else self.embedding.told(predict)


@contextmanager
def student_on(backbone: Backbone, config: DistillConfig) -> Generator[Student, None, None]:
    """Adapters in, whatever happens adapters out: the base leaves as it came, bit for bit."""
    network = backbone.network
    with (
        widened_again(network),
        injected(network, config.rank, config.alpha, config.targets, config.seed) as lora,
    ):
        if config.student == "tcfs":
            scale = 1000.0 if isinstance(backbone.schedule, FlowSchedule) else 1.0
            with attached(network, scale, seed=config.seed) as embedding:
                yield Student(backbone, lora, embedding, 2 * config.batch)
        else:
            yield Student(backbone, lora, None, 2 * config.batch)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `steps` done, files, the last loss and validation figure, the best figure and its
    step.
    """

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
    on_step: Callable[[int, float], None] | None = None,
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
    target = {k: p.detach().clone() for k, p in trained.items()} if config.target == "ema" else None
    optimizer = optimizer_of(config, trained.values())
    state = State(folder / CHECKPOINT, config, trained, average, target, optimizer, crew)
    start, best, best_step = state.load()
    if crew.first:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.toml", config.as_toml())
    log = Log(folder / "log.jsonl", start, keep=crew.first)
    bar = Progress(config.steps, start)
    total = config.batch * config.accumulation
    up = lift(config.batch * math.prod(student.backbone.latent_shape))
    info = {**(metadata or {}), **{f"tcd.{k}": json.dumps(v) for k, v in config.as_dict().items()}}
    loss, figure = log.last.get("loss", math.nan), log.last.get("validation")
    whole: int | None = start  # steps that the weights stand for; None while they are being changed
    unread: deque[Reading] = deque()
    anchor = next(iter(trained.values()))
    diverged = torch.zeros((), device=anchor.device)
    behind_by = late(anchor) if ahead is None else ahead

    def due(done: int) -> bool:
        return (
            crew.first
            and validation is not None
            and (done % config.validate_every == 0 or done == config.steps)
        )

    def judge(done: int) -> dict[str, float]:
        """Validate, and keep the LoRA if it is the best so far."""
        nonlocal figure, best, best_step
        assert validation is not None
        picture, order = folder / f"step-{done:06d}.png", 2 if config.student == "tcf2" else 1
        figures = validate(student, validation, trained, average, picture, order)
        figure = figures["validation"]
        if math.isfinite(figure) and (best is None or figure < best):
            judged = {**info, "tcd.step": str(done), "tcd.validation": f"{figure:.6f}"}
            save(folder / BEST, average, student.lora, judged)
            best, best_step = figure, done
        return figures

    def report(reading: Reading) -> None:
        nonlocal loss, whole
        loss, norm = reading.values
        if not reading.finite:
            whole = None
            raise ValueError(
                f"loss {loss}, gradient norm {norm} at step {reading.step}: the run diverged. Lower "
                f"learning_rate (now {config.learning_rate}) or w_max and start in another folder. "
                f"{state.kept()}"
            )
        if not crew.first:
            return
        record = reading.record()
        try:
            record |= judge(reading.step) if due(reading.step) else {}
        finally:
            log.write(**record)
        if not quiet:
            bar.show(reading.step, loss, total)
        if on_step is not None:
            on_step(reading.step, loss)

    try:
        if due(start) and log.last.get("step") == start and "validation" not in log.last:  # cut off
            log.write(**{**log.last, **judge(start)})
            state.save(start, best, best_step)
        for step in range(start, config.steps):
            # Batch. Every choice is a function of (seed, step); micro-batches are slices of one draw.
            optimizer.zero_grad(set_to_none=True)
            losses: list[Tensor] = []
            links = Links()
            for first in range(0, total, config.batch):
                part = crew.share(first, config.batch)
                with student.lora.off():  # a source may have to ask the teacher
                    pairs = source.batch(step, total, part)
                draw = draw_times(grid, config, pairs.n, generator(config.seed, 1, step), total, part)
                in_row = pairs.in_row if config.linked > 1 else None
                if in_row is not None:
                    draw = draw._replace(w=torch.where(in_row.follows, in_row.w, draw.w))
                x_prev = teacher_step(student, pairs, uncond, draw.w, grid, config)

                # Loss. Teacher, target, student: nothing else runs while the student's graph is alive.
                batch = Batch(pairs.x, x_prev, draw, pairs.cond)
                if in_row is not None:
                    each = links.loss(student.predictor, batch, in_row.follows, part.start, grid, config)
                else:
                    predict = student.predictor(pairs.cond)
                    behind = averaged(predict, trained, target) if target is not None else predict
                    each = tcd_loss(predict, behind, batch, grid, config)
                (each.mean() / config.accumulation * up).backward()
                losses.append(each.detach().mean())

            lower(trained.values(), up)
            loss_now = crew.mean(trained.values(), torch.stack(losses).mean())

            # Step. On the device: after a figure that is not finite nothing is changed any more.
            whole = None
            norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.clip or math.inf)
            diverged = torch.maximum(diverged, 1 - (loss_now.isfinite() & norm.isfinite()).float())
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            take_step(optimizer, diverged)

            # Averages: of the target network, and of what will be sampled from.
            with torch.no_grad():
                if target is not None:
                    approach(target, trained, config.target_decay)
                decay = min(config.average, (1 + step) / (10 + step)) if config.average else 0.0
                approach(average, trained, decay)

            # Report: what the device has got done, and all of it before anything is judged or saved.
            whole = done = step + 1
            unread.append(Reading(done, loss_now, norm, learning_rate(config, step)))
            saves = done % config.save_every == 0 or done == config.steps
            while len(unread) > (0 if saves or due(done) else behind_by):
                report(unread.popleft())
            if saves and crew.first:
                state.save(done, best, best_step)
    except BaseException:
        # An interrupt, a full disk, a diverged run: keep what is whole, and say what happened.
        if whole is not None and whole > start and crew.first and all(r.finite for r in unread):
            for reading in unread:
                log.write(**reading.record())
            state.save(whole, best, best_step)
            save(folder / LORA, average, student.lora, {**info, "tcd.step": str(whole)})
        raise
    if crew.first:
        if figure is not None:
            info["tcd.validation"] = f"{figure:.6f}"
        save(folder / LORA, average, student.lora, {**info, "tcd.step": str(config.steps)})
    return Outcome(config.steps, loss, figure, best, best_step)


@torch.no_grad()
def teacher_step(
    student: Student, pairs: Pairs, uncond: Cond, w: Tensor, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """The teacher's guided step `t -> t'`: arithmetic where its predictions are cached, a forward with the
    adapters off else.
    """
    now, prev = grid.at(pairs.n), grid.at(pairs.n - 1)
    if pairs.teacher is not None and config.solver == "ddim":
        cached = guided(*pairs.teacher, w)
        return solver_step(lambda x, now, target: cached, pairs.x, now, prev, "ddim", grid.schedule)
    with student.lora.off():
        predict = teacher_predictor(student.backbone, pairs.cond, repeat(uncond, len(pairs.x)), w)
        return solver_step(predict, pairs.x, now, prev, config.solver, grid.schedule)


@contextmanager
def swapped(trained: Mapping[str, nn.Parameter], other: Mapping[str, Tensor]) -> Generator[None, None, None]:
    """The network with `other` in place of its trained weights; storage changes hands, nothing is copied."""
    mine = {k: p.data for k, p in trained.items()}
    try:
        for k, p in trained.items():
            p.data = other[k]
        yield
    finally:
        for k, p in trained.items():
            p.data = mine[k]


def averaged(predict: Predict, trained: Mapping[str, nn.Parameter], other: Mapping[str, Tensor]) -> Predict:
    """`predict` with an average of the weights: theta-minus as EMA."""

    def with_average(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        with swapped(trained, other):
            return predict(x, now, target)

    return with_average


@torch.no_grad()
def validate(
    student: Student,
    validation: Validation,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    path: Path,
    order: Order = 1,
) -> dict[str, float]:
    """Figures and picture of the averaged student, sampled with the map it was trained for, beside the
    teacher.
    """
    with student.lora.off():
        validation.teacher()
    with swapped(trained, average):
        students = validation.student(student.predictor(validation.prompts), order)
    write_png(path, validation.picture(students))
    return validation.figure(students)


def save(path: Path, average: Mapping[str, Tensor], lora: Lora, metadata: Mapping[str, str]) -> None:
    """The LoRA (and the embedding of s) of `average` as a file that loaders read."""
    factors = {k: v for k, v in average.items() if not k.startswith(PREFIX)}
    extra = {k: v for k, v in average.items() if k.startswith(PREFIX)}
    save_lora(path, factors, lora.alpha, metadata, extra, lora.names)
