"""Data distributions whose score and probability-flow ODE are known exactly (method.md 6): no weights needed.

One dimension, every element of the state on its own. Written for any path (alpha, sigma); nothing of
`samplers/` is used but its types.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from comfyui_tcd.samplers import Level, Point


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(mean, var)."""

    mean: float = 0.4
    var: float = 0.25

    def predict(self, x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        """The optimal (x0, eps): E[x0 | x] and E[eps | x]."""
        alpha, sigma = now.level.broadcast(x)
        residual = (x - alpha * self.mean) / (alpha**2 * self.var + sigma**2)
        return self.mean + alpha * self.var * residual, sigma * residual

    def ode_map(self, x: Tensor, now: Level, down: Level) -> Tensor:
        """x_s of the exact ODE: the affine map that keeps the number of standard deviations."""
        (a_t, s_t), (a_s, s_s) = now.broadcast(x), down.broadcast(x)
        spread = ((a_s**2 * self.var + s_s**2) / (a_t**2 * self.var + s_t**2)).sqrt()
        return a_s * self.mean + spread * (x - a_t * self.mean)

    def consistent(self, x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        """A perfect TCF(S+) network: the (x0, eps) that lead from x exactly to `ode_map(x)` at `target`."""
        (a_t, s_t), (a_s, s_s) = now.level.broadcast(x), target.level.broadcast(x)
        x_s, area = self.ode_map(x, now.level, target.level), a_s * s_t - a_t * s_s
        return (s_t * x_s - s_s * x) / area, (a_s * x - a_t * x_s) / area


@dataclass(frozen=True)
class Mixture:
    """x0 ~ sum_i weight_i N(mean_i, std_i^2)."""

    weights: tuple[float, ...] = (0.5, 0.2, 0.3)
    means: tuple[float, ...] = (-1.0, 0.3, 1.2)
    stds: tuple[float, ...] = (0.2, 0.1, 0.3)

    def predict(self, x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        """The optimal (x0, eps), averaged over the components with their posterior probabilities."""
        alpha, sigma = now.level.broadcast(x.unsqueeze(-1))
        weights, means, stds = self._parameters()
        var = (alpha * stds) ** 2 + sigma**2
        off = x.unsqueeze(-1) - alpha * means
        share = torch.softmax(weights.log() - var.log() / 2 - off**2 / (2 * var), dim=-1)
        x0 = (share * (means + alpha * stds**2 * off / var)).sum(-1)
        return x0, (share * sigma * off / var).sum(-1)

    def cdf(self, x: Tensor, level: Level) -> Tensor:
        """P(x_t <= x)."""
        alpha, sigma = level.broadcast(x.unsqueeze(-1))
        weights, means, stds = self._parameters()
        z = (x.unsqueeze(-1) - alpha * means) / ((alpha * stds) ** 2 + sigma**2).sqrt()
        return (weights * torch.special.ndtr(z)).sum(-1)

    def ode_map(self, x: Tensor, now: Level, down: Level) -> Tensor:
        """x_s of the exact ODE. In one dimension it keeps the CDF: F_s(x_s) = F_t(x_t), by bisection."""
        goal = self.cdf(x, now)
        low, high = torch.full_like(x, -50.0), torch.full_like(x, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.cdf(middle, down) < goal
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        weights, means, stds = (
            torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.means, self.stds)
        )
        return weights, means, stds


@dataclass(frozen=True)
class PointMass:
    """x0 is one known tensor: every f of Eq. 17 is exact, and only the noise is left to count."""

    x0: Tensor

    def predict(self, x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        alpha, sigma = now.level.broadcast(x)
        return self.x0.expand_as(x), (x - alpha * self.x0) / sigma


def slope(sizes: list[float], errors: list[float]) -> float:
    """The order of convergence: slope of ln(error) over ln(step size), least squares."""
    x, y = ([math.log(v) for v in values] for values in (sizes, errors))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)
