"""The objective of Algorithms 1 and 2: which `(t, t', s)`, the teacher's step, the distance. No optimizer, no
device moves.

Times are indices into a `TimeGrid` `g_0 < g_1 < ... < g_N` (0, 19, 39, ..., 999 for a 1000-step schedule and
k = 20):
`t = g_n`, `t' = g_{n-1}`, `s = g_m` with `m < n`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..samplers import FlowSchedule, Level, Point, Predict, Schedule, first_order, placed, rows, tcf2
from .backbone import Backbone, Cond, Prediction, cond_and_uncond, some, take
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


def s_odds(n: int, s_range: str, s_steps: int) -> Tensor:
    """Probability of `s = g_m` given `t = g_n`: `[N + 1, N + 1]`, rows 1..N sum to 1 and are zero from `m =
    n` on.

    uniform: all below (the paper). zero: the origin alone (LCM). phases: the greatest edge of `s_steps` equal
    segments below t (PCM). near: where a sampler of `s_steps` steps with gamma in [0, 0.3] will ask for: that
    edge,
    less up to 30% (TDD).
    """
    odds = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for i in range(1, n + 1):
        edge = max(j * n // s_steps for j in range(s_steps) if j * n // s_steps < i)
        if s_range == "uniform":
            odds[i, :i] = 1.0 / i
        elif s_range == "zero":
            odds[i, 0] = 1.0
        elif s_range == "phases":
            odds[i, edge] = 1.0
        elif s_range == "near":
            shares = torch.linspace(0.0, 0.3, 301, dtype=torch.float64)
            index = torch.floor((1.0 - shares) * edge).long()
            odds[i] = torch.bincount(index, minlength=n + 1).double() / len(shares)
        else:
            raise ValueError(f"s_range {s_range!r} is not one of uniform, zero, phases, near")
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

    `tcfs` is TCF(1) of a network that is given s as well; `predict` passes it on.
    """
    if form == "tcf2":
        return tcf2(predict, x, now, down, schedule).x
    return first_order(predict, x, now, down).x


def distance(a: Tensor, b: Tensor, kind: str, huber_c: float) -> Tensor:
    """d(a, b), averaged over the elements of each sample: `[B, ...] -> [B]`, in float32."""
    square = (a.float() - b.float()).square()
    if kind == "huber":
        square = (square + huber_c**2).sqrt() - huber_c
    return square.flatten(1).mean(1)


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
    """What both algorithms have in hand once the teacher has made its step."""

    x: Tensor  # x_t, [B, ...]
    x_prev: Tensor  # the teacher's x at t'
    draw: Draw
    cond: Cond

    def times(self, grid: TimeGrid) -> tuple[Point, Point, Point]:
        """t, t' and s of each sample."""
        return grid.at(self.draw.n), grid.at(self.draw.n - 1), grid.at(self.draw.m)


def tcd_loss(
    student: Predict, target: Predict, batch: Batch, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """`d(f_theta(x_t, t -> s), f_theta-(x_t', t' -> s))` of Algorithms 1 and 2, one value a sample: `[B]`.

    The target runs first and without gradients, so that nothing else runs while the student's graph is alive.
    """
    now, prev, down = batch.times(grid)
    if config.student == "tcf1":
        with torch.no_grad():
            aim = target(batch.x_prev, prev, down)
        return tcf1_loss(student(batch.x, now, down), aim, batch, grid, config)
    with torch.no_grad():
        goal = consistency(target, batch.x_prev, prev, down, config.student, grid.schedule)
    guess = consistency(student, batch.x, now, down, config.student, grid.schedule)
    return distance(guess, goal, config.distance, config.huber_c)


def tcf1_loss(
    said: Prediction, aim: Prediction, batch: Batch, grid: TimeGrid, config: DistillConfig
) -> Tensor:
    """`tcd_loss` of TCF(1), whose network does not see s: from what it says of x_t, and of x_t'. `[B]`."""
    if config.all_s:
        return all_s_distance(said, aim, grid.moments[batch.draw.n])
    now, prev, down = batch.times(grid)
    guess = first_order(lambda *_: said, batch.x, now, down).x
    goal = first_order(lambda *_: aim, batch.x_prev, prev, down).x
    return distance(guess, goal, config.distance, config.huber_c)


class Links:
    """Pairs in a row: the teacher's `x_t'` of one is the `x_t` of the sample before it, so that what the
    student says of that sample is, with theta-minus = theta and without its gradient, this one's aim.

    One for each optimizer step, as weights are the same within it: the parts that a step is cut into hand on
    what was said of their last sample.
    """

    def __init__(self) -> None:
        self.said: Prediction | None = None
        self.end: int | None = None  # of the part before

    def loss(
        self,
        predictor: Callable[[Cond], Predict],
        batch: Batch,
        follows: Tensor,
        start: int,
        grid: TimeGrid,
        config: DistillConfig,
    ) -> Tensor:
        """`tcd_loss` of TCF(1) for the samples from `start` on, with a target's forward for those alone whose
        aim nobody says. `follows [B]`, on the CPU: which have the sample before them as their x_t'.
        """
        now, prev, down = batch.times(grid)
        before = self.said if self.end == start else None
        first = bool(follows[0]) and before is not None
        alone = torch.cat([torch.tensor([not first]), ~follows[1:]]).nonzero()[:, 0]
        where, asked = placed(alone, batch.x.device), None
        if len(alone):
            with torch.no_grad():
                predict = predictor(take(batch.cond, alone))
                asked = predict(batch.x_prev[where], some(prev, alone), some(down, alone))
        said = predictor(batch.cond)(batch.x, now, down)
        aim = said[0].detach().roll(1, 0), said[1].detach().roll(1, 0)
        for i, values in enumerate(aim):
            if first and before is not None:
                values[:1] = before[i]
            if asked is not None:
                values[where] = asked[i]
        self.said, self.end = (said[0][-1:].detach(), said[1][-1:].detach()), start + len(batch.x)
        return tcf1_loss(said, aim, batch, grid, config)
