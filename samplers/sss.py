"""Strategic stochastic sampling, Algorithm 4 (method.md 4): denoise from t_n to s, diffuse back to t_{n+1}.

Algorithm 3, multistep consistency sampling (what LCM does), is the same with gamma = 1: s is the origin.
gamma = 0 is deterministic: s = t_{n+1}, DDIM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .levels import Level, Point, combine, compute_dtype
from .schedules import Schedule
from .tcf import Denoised, Predict, first_order, multistep, tcf2
from .timesteps import check_gamma

Order = Literal[1, 2, "multistep"]


@dataclass(frozen=True)
class Step:
    """Denoise from `now` to `down`, then diffuse to `next` (None: no noise is added after this step)."""

    now: Point
    down: Point
    next: Point | None

    @cached_property
    def up(self) -> Level | None:
        """The (r, c) of the diffusing sub-step, see `transition`; None where there is nothing to add."""
        if self.next is None:
            return None
        up = transition(self.down.level, self.next.level)
        return up if bool((up.sigma > 0).any()) else None


ROUNDING = 2e-6  # of a variance: a host's float32 sigmas against the float64 of a schedule

Callback = Callable[[int, Step, Tensor, Tensor], None]
"""`callback(i, step, x, x0)` in step i: the state at `step.now` and the x0 predicted from it."""


def plan(
    schedule: Schedule, times: Sequence[float], gamma: float | Sequence[float], end: str = "official"
) -> list[Step]:
    """The steps of Algorithm 4, one per time of `times` (strictly descending, in the model's own time).

    `gamma` in [0, 1]: one for all, or one per step (the last is not used: no noise follows it).
    `end` of the last step: "official" is the schedule's timestep 0, where a trace of predicted noise stays,
    as the official scheduler does; "clean" is sigma = 0, x0. Flow schedules end at sigma = 0 either way.
    ValueError for times or gammas out of range, and for times that do not descend.
    """
    if end not in ("official", "clean"):
        raise ValueError(f"end {end!r} is not 'official' (timestep 0) or 'clean' (sigma 0)")
    if not times:
        raise ValueError("no times to sample at; give at least one")
    if any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"times must be strictly descending, got {list(times)}")
    gammas = [gamma] * len(times) if isinstance(gamma, (int, float)) else list(gamma)
    if len(gammas) != len(times):
        raise ValueError(f"{len(gammas)} values of gamma for {len(times)} steps; give one, or one per step")
    last = schedule.last if end == "official" else schedule.clean
    return through(schedule, [*(schedule.point(t) for t in times), last], gammas)


def through(schedule: Schedule, points: Sequence[Point], gammas: Sequence[float]) -> list[Step]:
    """The steps of Algorithm 4 from each of `points` to the one after it: n + 1 points, n gammas.

    No noise is added where gamma is 0, nor after the last step if that ends at time 0. The levels of `points`
    are kept as given; only those of the times `s` come from `schedule`. ValueError for a gamma out of range.
    """
    for gamma in gammas:
        check_gamma(gamma)
    ends = [float(point.t) for point in points[1:]]
    targets = [schedule.target(t, gamma) for t, gamma in zip(ends, gammas, strict=True)]
    downs = schedule.point(torch.tensor(targets, dtype=torch.float64, device="cpu")).each()
    return [
        Step(now, down, next_) if s < t_next else Step(now, next_, None)
        for (now, next_), down, s, t_next in zip(pairwise(points), downs, targets, ends, strict=True)
    ]


def sample(
    predict: Predict,
    x: Tensor,
    steps: Sequence[Step],
    noise: Callable[[], Tensor],
    schedule: Schedule | None = None,
    order: Order = 1,
    callback: Callback | None = None,
) -> Tensor:
    """Algorithm 4: the state `x [B, C, ...]` of `steps[0].now` taken through `steps`; x itself is kept.

    `noise()` returns z ~ N(0, I) like x, and is called only where noise is added: never for gamma = 0.
    `order` of the denoising sub-step: 1 is TCF(1); 2 is TCF(2), two evaluations a step, and needs `schedule`;
    "multistep" is second order with one. The result has x's dtype; the arithmetic is at least float32.
    """
    dtype, denoise = x.dtype, _denoiser(predict, schedule, order)
    for i, step in enumerate(steps):
        x_s, x0, _ = denoise(x, step.now, step.down)
        if callback is not None:
            callback(i, step, x, x0)
        if step.up is not None:
            x_s = _diffuse(x_s, step.up, noise())
        x = x_s.to(dtype)
    return x


def transition(down: Level, next_: Level) -> Level:
    """The (r, c) of `x_next = r x_s + c z` from level `down` to the noisier `next_` (Algorithm 4), float64.

    r = alpha_next / alpha_s, c = sqrt(sigma_next^2 - r^2 sigma_s^2). ValueError if `down` is the noisier one.
    """
    r = next_.alpha / down.alpha
    variance = next_.sigma**2
    added = variance - (r * down.sigma) ** 2
    if (added < -ROUNDING * variance).any():
        raise ValueError(
            "noise can only be added: the level to diffuse to is less noisy than the one reached"
        )
    return Level(r, added.clamp(min=0).sqrt())


def renoise(x_s: Tensor, down: Level, next_: Level, z: Tensor) -> Tensor:
    """The diffusing sub-step of Algorithm 4: `x_s [B, C, ...]` from level `down` to `next_`, noise `z`."""
    return _diffuse(x_s, transition(down, next_), z)


def _diffuse(x_s: Tensor, up: Level, z: Tensor) -> Tensor:
    r, c = up.scales(x_s)
    return combine(r, x_s, c, z.to(device=x_s.device, dtype=compute_dtype(x_s)))


def noise_to(schedule: Schedule, t: Tensor | float, x0: Tensor, noise: Tensor) -> Tensor:
    """The forward process, `alpha_t x0 + sigma_t noise`, in x0's dtype: t [] or [B], x0 [B, C, ...]."""
    alpha, sigma = schedule.point(t).level.scales(x0)
    return combine(alpha, x0, sigma, noise).to(x0.dtype)


def _denoiser(
    predict: Predict, schedule: Schedule | None, order: Order
) -> Callable[[Tensor, Point, Point], Denoised]:
    if order == 1:
        return lambda x, now, down: first_order(predict, x, now, down)
    if order == 2:
        if schedule is None:
            raise ValueError("order 2 needs the schedule, to find the midpoint of each step; pass schedule=")
        return lambda x, now, down: tcf2(predict, x, now, down, schedule)
    if order != "multistep":
        raise ValueError(f"order {order!r} is not 1, 2 or 'multistep'")
    previous: tuple[Point, Tensor] | None = None

    def denoise(x: Tensor, now: Point, down: Point) -> Denoised:
        nonlocal previous
        result = multistep(predict, x, now, down, previous)
        previous = now, result.x0
        return result

    return denoise
