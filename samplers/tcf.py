"""The trajectory consistency function f(x_t, t, s) -> x_s, Eq. 17, in its forms (method.md 2).

The teacher's solver step, the student's map and the sampler's denoising sub-step are all these functions.
They take points [] or [B] (one time per sample), and compute and return at least float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .levels import Level, Point, combine, rows
from .schedules import Schedule

Predict = Callable[[Tensor, Point, Point], tuple[Tensor, Tensor]]
"""`predict(x, now, target) -> (x0, eps)`: evaluate a network once; only TCF(S+), Eq. 24, uses `target`."""


class Denoised(NamedTuple):
    """x_s, and the prediction (x0, eps) at the state that was given; all [B, C, ...]."""

    x: Tensor
    x0: Tensor
    eps: Tensor


def tcf1(x0: Tensor, eps: Tensor, down: Level) -> Tensor:
    """x_s of TCF(1), Eq. 21, as `alpha_s x0 + sigma_s eps`: the same map, DDIM, but finite at sigma_s = 0.

    x0, eps [B, C, ...]; `down` the level of s. Local error O(h^2).
    """
    alpha, sigma = down.scales(x0)
    return combine(alpha, x0, sigma, eps)


def first_order(predict: Predict, x: Tensor, now: Point, down: Point) -> Denoised:
    """f(x, t -> s) by TCF(1), one evaluation: `x [B, C, ...]` at level `now`, the result at level `down`."""
    x0, eps = predict(x, now, down)
    return Denoised(jump((x0, eps), x, now, down), x0, eps)


def jump(prediction: tuple[Tensor, Tensor], x: Tensor, now: Point, down: Point) -> Tensor:
    """Take x from `now` to `down` by TCF(1), Eq. 21, with the `prediction` (x0, eps) that was made of it.

    `x [B, C, ...]` is returned as it is where the two levels are the same: f(x, s, s) = x, Eq. 27, which the
    form in x0 and eps gives to rounding only.
    """
    x_s = tcf1(*prediction, down.level)
    same = (now.level.alpha == down.level.alpha) & (now.level.sigma == down.level.sigma)
    return torch.where(rows(same, x), x.to(x_s.dtype), x_s) if same.any() else x_s


def tcf2(predict: Predict, x: Tensor, now: Point, down: Point, schedule: Schedule) -> Denoised:
    """f(x, t -> s) by TCF(2), Eq. 22, two evaluations: eps of the midpoint in lam instead of that of t.

    Local error O(h^3). TCF(1) where there is no midpoint: sigma_s = 0 or alpha_t = 0.
    """
    first = first_order(predict, x, now, down)
    lam_t, lam_s = torch.broadcast_tensors(now.level.lam, down.level.lam)
    exists = torch.isfinite(lam_t) & torch.isfinite(lam_s) & (lam_t != lam_s)
    if not bool(exists.any()):
        return first
    # Rows without a midpoint get a harmless one (sigma = 0 and alpha = 0 would make nan of their gradients).
    middle = schedule.at_lam(torch.where(exists, (lam_t + lam_s) / 2, 0.0))
    x_u = tcf1(first.x0, first.eps, middle.level)
    _, eps_u = predict(x_u.to(x.dtype), middle, down)
    alpha_t, sigma_t = Level(torch.where(exists, now.level.alpha, 1.0), now.level.sigma).scales(first.x)
    x_s = tcf1(combine(1.0, x, -sigma_t, eps_u) / alpha_t, eps_u, down.level)
    return first._replace(x=torch.where(rows(exists, x), x_s, first.x))


def multistep(
    predict: Predict, x: Tensor, now: Point, down: Point, previous: tuple[Point, Tensor] | None
) -> Denoised:
    """f(x, t -> s), second order, one evaluation: x0 extrapolated from `previous`, the last step's (now, x0).

    x0 is taken as linear in lam, its value in the middle of the step enters Eq. 21 (DPM-Solver++(2M), arXiv
    2211.01095). Error over a fixed interval O(h^2). TCF(1) in the first step and where a lam is infinite.
    Meant for small gamma: at gamma = 1 every step goes to the origin, and the extrapolation is far.
    """
    first = first_order(predict, x, now, down)
    if previous is None:
        return first
    h = down.level.lam - now.level.lam
    h_previous = now.level.lam - previous[0].level.lam
    weight = torch.nan_to_num(h / (2 * h_previous), nan=0.0, posinf=0.0, neginf=0.0)
    if not bool(weight.any()):
        return first
    x0 = first.x0 + rows(weight.to(first.x0.dtype), x) * (first.x0 - previous[1])
    alpha_t, sigma_t = now.level.scales(first.x)
    x_s = tcf1(x0, combine(1.0, x, -alpha_t, x0) / sigma_t, down.level)
    return first._replace(x=torch.where(rows(weight != 0, x), x_s, first.x))
