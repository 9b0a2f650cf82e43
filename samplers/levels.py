"""Noise levels, and network outputs as (x0, eps): every formula is written for a pair (alpha, sigma).

A state is `x_t = alpha_t x_0 + sigma_t eps` (method.md 1). Three paths share all code: VP, where
`alpha^2 + sigma^2 = 1`; the scaled state of k-diffusion and ComfyUI, `(1, sigma_hat)`; and flow matching,
`alpha = 1 - sigma`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v", "sample", "flow")
"""epsilon: the noise. sample: x0. v: `(alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2)`. flow: `eps - x0`."""


Scale = float | Tensor
"""A factor of a state `[B, C, ...]`: one number, or one per sample."""


class Level(NamedTuple):
    """Signal and noise scale, float64 on the CPU: [] for a whole batch, or [B], one per sample."""

    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """Half log-SNR, `ln(alpha / sigma)`: +inf where sigma = 0, -inf where alpha = 0."""
        return self.alpha.log() - self.sigma.log()

    def broadcast(self, x: Tensor) -> Level:
        """Shaped to multiply `x [B, C, ...]`, on its device, in the type to compute in: at least float32."""
        # copy: a schedule made in inference mode, as in ComfyUI, must not end up in an autograd graph.
        alpha, sigma = (rows(scale.to(compute_dtype(x), copy=True), x) for scale in self)
        return Level(alpha, sigma)

    def scales(self, x: Tensor) -> tuple[Scale, Scale]:
        """(alpha, sigma) for `combine`: numbers for a whole batch, else as by `broadcast`."""
        if self.alpha.ndim or self.sigma.ndim:
            return self.broadcast(x)
        return float(self.alpha), float(self.sigma)


class Point(NamedTuple):
    """A time of the model and its level.

    `t` float64, [] or [B]: timestep 0..T-1 (may be fractional) of a discrete schedule, sigma of a flow one.
    """

    t: Tensor
    level: Level

    def each(self) -> list[Point]:
        """Of [B] times, one after the other."""
        alpha, sigma = self.level
        rows = zip(self.t.unbind(), alpha.unbind(), sigma.unbind(), strict=True)
        return [Point(t, Level(alpha, sigma)) for t, alpha, sigma in rows]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: the widest of `tensors`, but at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def rows(values: Tensor, x: Tensor) -> Tensor:
    """[] or [B], one value per sample, shaped and placed to broadcast against `x [B, C, ...]`."""
    return placed(values.reshape(-1, *([1] * (x.ndim - 1))), x.device)


AHEAD = ("cuda", "meta")
"""Devices that take copies behind what they still have to do; others may read memory that is somebody else's
by then. On meta, without numbers, the tests look at it.
"""
STAGED = 2**16
"""Bytes that a CUDA driver takes from ordinary memory at once; more has to come from pinned memory."""


def placed(values: Tensor, device: torch.device) -> Tensor:
    """`values` on `device`; from the CPU without waiting for what the device still has to do before."""
    ahead = values.device.type == "cpu" and device.type in AHEAD
    if ahead and device.type == "cuda" and values.nbytes > STAGED:
        values = values.pin_memory()
    return values.to(device, non_blocking=ahead)


def combine(a: Scale, x: Tensor, b: Scale, y: Tensor) -> Tensor:
    """`a x + b y`, in at least float32; in as few passes over the memory as there can be."""
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    ax = x if isinstance(a, float) and a == 1.0 else a * x
    return torch.add(ax, y, alpha=b) if isinstance(b, float) else ax + b * y


def to_x0_eps(kind: str, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """(x0, eps) of a network's `output` for the state `x` at `level`; all [B, C, ...].

    Any path: v and flow divide by `alpha^2 + sigma^2` and `alpha + sigma`, which are 1 on the paths they
    come from, so that a VP model can also be read in the scaled state. In at least float32, so is the result.
    ValueError for an unknown kind, for epsilon where alpha = 0, for sample where sigma = 0.
    """
    dtype = compute_dtype(x, output)
    x, output = x.to(dtype), output.to(dtype)
    alpha, sigma = level.scales(x)
    if kind == "epsilon":
        if _has_zero(alpha):
            raise ValueError(
                "an epsilon model says nothing about the picture where alpha = 0 (zero terminal SNR); "
                "use a v-prediction model, another schedule, or start at an earlier timestep"
            )
        return combine(1.0, x, -sigma, output) / alpha, output
    if kind == "sample":
        if _has_zero(sigma):
            raise ValueError(
                "a sample model says nothing about the noise where sigma = 0; start above sigma = 0"
            )
        return output, combine(1.0, x, -alpha, output).div_(sigma)
    if kind == "v":
        square = alpha**2 + sigma**2
        root = square**0.5
        x0 = combine(alpha / square, x, -sigma / root, output)
        return x0, combine(sigma / square, x, alpha / root, output)
    if kind == "flow":
        total = alpha + sigma
        return combine(1.0, x, -sigma, output) / total, combine(1.0, x, alpha, output) / total
    raise _unknown(kind)


def from_x0_eps(kind: str, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """The output of a `kind` network that predicts `x0` and `eps` [B, C, ...]: inverse of `to_x0_eps`."""
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v":
        alpha, sigma = level.scales(x0)
        return combine(alpha, eps, -sigma, x0) / (alpha**2 + sigma**2) ** 0.5
    if kind == "flow":
        return eps - x0
    raise _unknown(kind)


def _has_zero(scale: Scale) -> bool:
    return bool((scale == 0).any()) if isinstance(scale, Tensor) else scale == 0.0


def _unknown(kind: str) -> ValueError:
    return ValueError(f"unknown prediction type {kind!r}; known: {', '.join(PREDICTIONS)}")
