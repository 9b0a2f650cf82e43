"""The mathematics of Algorithms 1 and 2: which `(t, t', s)`, the teacher's step, the distance.

What is kept from call to call, such as a target network, is in stage.py.

Times are indices into a `TimeGrid` `g_0 < g_1 < ... < g_N` (0, 19, 39, ..., 999 for a 1000-step schedule and
k = 20):
`t = g_n`, `t' = g_{n-1}`, `s = g_m` with `m < n`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers import FlowSchedule, Level, Point, Predict, Schedule, first_order, jump, placed, rows, tcf2
from .backbone import Backbone, Cond, Prediction, cond_and_uncond
from .config import DistillConfig


class TimeGrid:
    """The N + 1 times of distillation with their levels, and how often each `s` is drawn from each `t`."""

    def __init__(
        self, schedule: Schedule, times: Sequence[float], s_range: str = "uniform", s_steps: int = 4
    ) -> None:
        self.schedule = schedule
        self.n = len(times) - 1
        self.points = schedule.point(torch.tensor(list(times), dtype=torch.float64))
        self.odds = s_odds(self.n, s_range, s_steps)
        alpha, sigma = self.points.level
        # A, B, C of the all-s loss: means of alpha_s^2, alpha_s sigma_s, sigma_s^2 over S(t'), one row for
        # each t.
        self.moments = self.odds @ torch.stack([alpha * alpha, alpha * sigma, sigma * sigma], dim=1)

    @classmethod
    def discrete(
        cls, schedule: Schedule, skip: int, s_range: str, s_steps: int, num_timesteps: int = 1000
    ) -> TimeGrid:
        """The paper's grid: `t_n = n k - 1`, and 0 below the first."""
        if num_timesteps % skip:
            raise ValueError(
                f"skip {skip} does not divide the schedule's {num_timesteps} timesteps; choose 10, 20, "
                "25, 40 or 50"
            )
        return cls(schedule, [0, *range(skip - 1, num_timesteps, skip)], s_range, s_steps)

    @classmethod
    def of(cls, schedule: Schedule, skip: int, s_range: str, s_steps: int) -> TimeGrid:
        """The grid of any schedule: `discrete`, or as many steps of a flow model's own (shifted) sigmas."""
        if not isinstance(schedule, FlowSchedule):
            return cls.discrete(schedule, skip, s_range, s_steps)
        if 1000 % skip:
            raise ValueError(f"skip {skip} does not divide 1000; choose 10, 20, 25, 40 or 50")
        return cls(schedule, [0.0, *reversed(schedule.sigmas(1000 // skip))], s_range, s_steps)

    def at(self, index: Tensor) -> Point:
        """The times `g_index`. `index [B]`."""
        return Point(
            self.points.t[index], Level(self.points.level.alpha[index], self.points.level.sigma[index])
        )


def _uniform(odds: Tensor, i: int, edge: int) -> None:
    odds[:i] = 1.0 / i


def _zero(odds: Tensor, i: int, edge: int) -> None:
    odds[0] = 1.0


def _phases(odds: Tensor, i: int, edge: int) -> None:
    odds[edge] = 1.0


def _near(odds: Tensor, i: int, edge: int) -> None:
    shares = torch.linspace(0.0, 0.3, 301, dtype=torch.float64)
    index = torch.floor((1.0 - shares) * edge).long()
    odds += torch.bincount(index, minlength=len(odds)).double() / len(shares)


S_RANGES: dict[str, Callable[[Tensor, int, int], None]] = {
    "uniform": _uniform,  # all times below t (the paper)
    "zero": _zero,  # the origin alone (LCM)
    "phases": _phases,  # the greatest edge below t of `s_steps` equal segments (PCM)
    "near": _near,  # up to 30% below that: what `s_steps` steps with gamma in [0, 0.3] ask for (TDD)
}
"""Each fills one row, `odds [N + 1]` of zeros, for `t = g_i`; `edge` is the index of that greatest edge."""


def s_odds(n: int, s_range: str, s_steps: int) -> Tensor:
    """Compute the probability of `s = g_m` given `t = g_n`, `[N + 1, N + 1]`, by a row of `S_RANGES`.

    Rows 1..N sum to 1 and are zero from `m = n` on. ValueError for an unknown range.
    """
    if s_range not in S_RANGES:
        raise ValueError(f"s_range {s_range!r} is not one of {', '.join(S_RANGES)}")
    odds = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for i in range(1, n + 1):
        edge = max(j * n // s_steps for j in range(s_steps) if j * n // s_steps < i)
        S_RANGES[s_range](odds[i], i, edge)
    return odds


class Draw(NamedTuple):
    """The random choices of a batch: grid indices of t and of s `[B]`, guidance `w [B]`."""

    n: Tensor
    m: Tensor
    w: Tensor


def draw_times(
    grid: TimeGrid,
    config: DistillConfig,
    n: Tensor,
    generator: torch.Generator,
    total: int | None = None,
    part: slice = slice(None),
) -> Draw:
    """Draw s and w for samples whose t is `g_n` already. `n [B]`, on the CPU.

    With `total` and `part` these samples are that slice of one draw, so that cutting a batch changes nothing.
    """
    u = torch.rand(2, len(n) if total is None else total, generator=generator, dtype=torch.float64)[:, part]
    below = grid.odds[n].cumsum(1)  # s by the inverse of its distribution, scaled because sums round
    m = torch.searchsorted(below / below[:, -1:], u[0][:, None], right=True)[:, 0]
    return Draw(n, m, config.w_min + (config.w_max - config.w_min) * u[1])


def guided(cond: Prediction, uncond: Prediction, w: Tensor) -> Prediction:
    """The augmented PF-ODE's prediction, `eps_uncond + (1 + w)(eps_c - eps_uncond)`, and likewise x0. `w
    [B]`.
    """
    cfg = rows((1.0 + w).to(cond[0].dtype), cond[0])
    return cond[0].lerp(uncond[0], 1 - cfg), cond[1].lerp(uncond[1], 1 - cfg)


def teacher_predictor(backbone: Backbone, cond: Cond, uncond: Cond, w: Tensor) -> Predict:
    """The guided teacher as one predictor; for solvers that evaluate it more than once."""

    def predict(x: Tensor, now: Point, target: Point) -> Prediction:
        return guided(*cond_and_uncond(backbone, cond, uncond, x, now, target), w)

    return predict


def solver_step(
    predict: Predict, x: Tensor, now: Point, down: Point, solver: str, schedule: Schedule
) -> Tensor:
    """Phi(x, t -> t'): one step of the teacher's ODE solver; DDIM is TCF(1) with the teacher, DPM-Solver-2 is
    TCF(2) with it.
    """
    return consistency(predict, x, now, down, "tcf1" if solver == "ddim" else "tcf2", schedule)


def consistency(
    predict: Predict, x: Tensor, now: Point, down: Point, form: str, schedule: Schedule
) -> Tensor:
    """Compute f(x, t -> s), Eq. 17, as `form` says: `tcf1` (Eq. 21), `tcf2` (Eq. 22) or `tcfs` (Eq. 24).

    `tcfs` is TCF(1) of a network that is given s as well; `predict` passes it on. ValueError for an
    unknown form.
    """
    if form == "tcf2":
        return tcf2(predict, x, now, down, schedule).x
    if form not in ("tcf1", "tcfs"):
        raise ValueError(f"form {form!r} is not one of tcf1, tcf2, tcfs")
    return first_order(predict, x, now, down).x


def _huber(square: Tensor, c: float) -> Tensor:
    return (square + c**2).sqrt() - c


DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "huber": _huber,  # pseudo-Huber (LCM)
    "l2": lambda square, c: square,  # the paper
}
"""Each turns squared differences into distances, element by element; c is `huber_c`."""


def distance(a: Tensor, b: Tensor, kind: str, huber_c: float) -> Tensor:
    """Compute d(a, b), averaged over the elements of each sample: `[B, ...] -> [B]`, in float32."""
    square = (a.float() - b.float()).square()
    return DISTANCES[kind](square, huber_c).flatten(1).mean(1)


def all_s_distance(student: Prediction, target: Prediction, moments: Tensor) -> Tensor:
    """Mean over S(t') of `|f - f_target|^2`, in closed form: `A |dx0|^2 + 2 B <dx0, deps> + C |deps|^2`.

    `moments [B, 3]` are A, B, C of each sample. Only for TCF(1), whose network does not see s: one evaluation
    each serves every s, without the noise of drawing one.
    """
    dx0 = (student[0].float() - target[0].float()).flatten(1)
    deps = (student[1].float() - target[1].float()).flatten(1)
    terms = torch.stack([dx0.square().mean(1), 2 * (dx0 * deps).mean(1), deps.square().mean(1)], dim=1)
    return (placed(moments.to(terms.dtype), terms.device) * terms).sum(1)


class Batch(NamedTuple):
    """Inputs of the loss, once the teacher has made its solver step."""

    x: Tensor  # x_t, [B, ...]
    x_prev: Tensor  # the teacher's x at t'
    draw: Draw
    cond: Cond

    def times(self, grid: TimeGrid) -> tuple[Point, Point, Point]:
        """Return t, t' and s of each sample."""
        return grid.at(self.draw.n), grid.at(self.draw.n - 1), grid.at(self.draw.m)


def tcd_loss(
    student: Predict, target: Predict, batch: Batch, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """Compute `d(f_theta(x_t, t -> s), f_theta-(x_t', t' -> s))` of Algorithms 1 and 2: `[B]`.

    The target runs first and without gradients, so that nothing else runs while the student's graph is alive.
    """
    now, prev, down = batch.times(grid)
    if config.student == "tcf1":
        with torch.no_grad():
            target_pred = target(batch.x_prev, prev, down)
        return tcf1_loss(student(batch.x, now, down), target_pred, batch, grid, config)
    with torch.no_grad():
        target_x = consistency(target, batch.x_prev, prev, down, config.student, grid.schedule)
    student_x = consistency(student, batch.x, now, down, config.student, grid.schedule)
    return distance(student_x, target_x, config.distance, config.huber_c)


def tcf1_loss(
    student_pred: Prediction, target_pred: Prediction, batch: Batch, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """Compute `tcd_loss` of TCF(1) from the two predictions (x0, eps), of x_t and of x_t': `[B]`.

    Its network does not see s, so one prediction serves every s.
    """
    if config.all_s:
        return all_s_distance(student_pred, target_pred, grid.moments[batch.draw.n])
    now, prev, down = batch.times(grid)
    student_x = jump(student_pred, batch.x, now, down)
    target_x = jump(target_pred, batch.x_prev, prev, down)
    return distance(student_x, target_x, config.distance, config.huber_c)
