"""Kinds of training: what is drawn for a step, what the student is compared with, what is kept besides it.

The loop of distill.py knows the four methods of `Objective` and nothing else of the method. A further kind,
with a critic or a reward, is a class in a file of its own, and a row of `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ..samplers import Point, Predict, jump, placed
from .backbone import Cond, Prediction, repeat, some, take
from .config import DistillConfig
from .objective import (
    Batch,
    TimeGrid,
    draw_times,
    guided,
    solver_step,
    tcd_loss,
    tcf1_loss,
    teacher_predictor,
)
from .pairs import Pairs, generator
from .state import approach
from .student import Student, swapped


class Objective(Protocol):
    """What a student is trained for. It may hold networks and an optimizer of its own."""

    def begin_step(self, step: int, total: int) -> None:
        """Start an optimizer step of `total` samples."""
        ...

    def loss(self, pairs: Pairs, part: slice) -> Tensor:
        """Compute the loss of each sample of a micro-batch, `[B]`, with the student's graph.

        `part` is where these samples stand among all of the step.
        """
        ...

    def end_step(self) -> None:
        """Follow the student, whose optimizer has made its step."""
        ...

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Return the tensors that a checkpoint keeps, in named groups; a resume writes into them."""
        ...


class TrajectoryConsistency:
    """Algorithms 1 and 2: the teacher's step from t to t', then the distance of two jumps to s.

    theta-minus is the student without its gradient, or with `target = ema` an average of its weights.
    """

    def __init__(self, student: Student, uncond: Cond, grid: TimeGrid, config: DistillConfig) -> None:
        self.student, self.uncond, self.grid, self.config = student, uncond, grid, config
        self.trained = student.parameters()
        self.target: dict[str, Tensor] | None = None
        if config.target == "ema":
            self.target = {name: value.detach().clone() for name, value in self.trained.items()}
        self.chain = ChainedTargets()
        self.step = self.total = 0

    def begin_step(self, step: int, total: int) -> None:
        self.step, self.total, self.chain = step, total, ChainedTargets()

    def loss(self, pairs: Pairs, part: slice) -> Tensor:
        config, grid = self.config, self.grid
        draw = draw_times(grid, config, pairs.n, generator(config.seed, 1, self.step), self.total, part)
        chained = pairs.in_row if config.linked > 1 else None
        if chained is not None:  # the guidance of the trajectory, which leads to the sample before
            draw = draw._replace(w=torch.where(chained.follows, chained.w, draw.w))
        # Teacher, target, student: nothing else runs while the student's graph is alive.
        x_prev = teacher_step(self.student, pairs, self.uncond, draw.w, grid, config)
        batch = Batch(pairs.x, x_prev, draw, pairs.cond)
        if chained is not None:
            return self.chain.loss(self.student.predictor, batch, chained.follows, part.start, grid, config)
        predict = self.student.predictor(pairs.cond)
        target = predict if self.target is None else averaged(predict, self.trained, self.target)
        return tcd_loss(predict, target, batch, grid, config)

    def end_step(self) -> None:
        if self.target is not None:
            approach(self.target, self.trained, self.config.target_decay)

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {} if self.target is None else {"target": self.target}


Make = Callable[[Student, Cond, TimeGrid, DistillConfig], Objective]
OBJECTIVES: dict[str, Make] = {"tcd": TrajectoryConsistency}


class ChainedTargets:
    """Shares forward passes between pairs that follow one another on a trajectory.

    The teacher's x_t' of a sample is then the x_t of the sample before it, so the student's prediction for
    that one, detached, is this one's target. One for each optimizer step, as weights are the same within it;
    the last prediction is handed on from micro-batch to micro-batch.
    """

    def __init__(self) -> None:
        self.last: Prediction | None = None
        self.end: int | None = None  # where the micro-batch before this one ended

    def loss(
        self,
        predictor: Callable[[Cond], Predict],
        batch: Batch,
        follows: Tensor,
        start: int,
        grid: TimeGrid,
        config: DistillConfig,
    ) -> Tensor:
        """Compute `tcd_loss` of TCF(1) for the samples from `start` on: `[B]`.

        The target network runs only for the samples that have no predecessor here. `follows [B]`, on the CPU,
        says which have the sample before them as their x_t'.
        """
        now, prev, down = batch.times(grid)
        before = self.last if self.end == start else None
        continues = bool(follows[0]) and before is not None
        alone = torch.cat([torch.tensor([not continues]), ~follows[1:]]).nonzero()[:, 0]
        where, computed = placed(alone, batch.x.device), None
        if len(alone):
            with torch.no_grad():
                predict = predictor(take(batch.cond, alone))
                computed = predict(batch.x_prev[where], some(prev, alone), some(down, alone))
        student_pred = predictor(batch.cond)(batch.x, now, down)
        target_pred = student_pred[0].detach().roll(1, 0), student_pred[1].detach().roll(1, 0)
        for i, values in enumerate(target_pred):
            if continues and before is not None:
                values[:1] = before[i]
            if computed is not None:
                values[where] = computed[i]
        self.last = student_pred[0][-1:].detach(), student_pred[1][-1:].detach()
        self.end = start + len(batch.x)
        return tcf1_loss(student_pred, target_pred, batch, grid, config)


@torch.no_grad()
def teacher_step(
    student: Student, pairs: Pairs, uncond: Cond, w: Tensor, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """Make the teacher's guided solver step from t to t' and return x_t'.

    Arithmetic where its predictions are in the cache, else a forward pass with the adapters off.
    """
    now, prev = grid.at(pairs.n), grid.at(pairs.n - 1)
    if pairs.teacher is not None and config.solver == "ddim":
        return jump(guided(*pairs.teacher, w), pairs.x, now, prev)
    with student.lora.off():
        predict = teacher_predictor(student.backbone, pairs.cond, repeat(uncond, len(pairs.x)), w)
        return solver_step(predict, pairs.x, now, prev, config.solver, grid.schedule)


def averaged(predict: Predict, trained: Mapping[str, nn.Parameter], other: Mapping[str, Tensor]) -> Predict:
    """Return `predict` of the network with an average of its weights: theta-minus as EMA."""

    def with_average(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        with swapped(trained, other):
            return predict(x, now, target)

    return with_average
