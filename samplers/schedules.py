"""Schedules: the model's time to a level and back (method.md 1, 4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .levels import Level, Point
from .timesteps import flow_sigmas, origin, target


def _float64(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


class Schedule(ABC):
    """Maps the model's time to levels and back."""

    @abstractmethod
    def point(self, t: Tensor | float) -> Point:
        """The level at time `t`, [] or [B]. ValueError outside the schedule's range."""

    @abstractmethod
    def at_lam(self, lam: Tensor | float) -> Point:
        """The point of half log-SNR `lam`, [] or [B], clamped to the range; undoes `point`."""

    @abstractmethod
    def target(self, t_next: float, gamma: float) -> float:
        """The time `s` to denoise to before diffusing back to `t_next` (Algorithm 4)."""

    @property
    @abstractmethod
    def last(self) -> Point:
        """Where the official sampler ends: time 0, noisy on a discrete schedule, clean on a flow one."""

    @property
    def clean(self) -> Point:
        """No noise at all: time 0, (1, 0)."""
        return Point(_float64(0.0), Level(_float64(1.0), _float64(0.0)))


def vp_level(lam: Tensor) -> Level:
    """The (alpha, sigma) of half log-SNR `lam` with `alpha^2 + sigma^2 = 1`."""
    return Level(torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt())


def scaled_level(lam: Tensor) -> Level:
    """The (1, sigma_hat) of half log-SNR `lam`."""
    return Level(torch.ones_like(lam), torch.exp(-lam))


class DiscreteSchedule(Schedule):
    """T timesteps 0..T-1, any alphas_cumprod: SD 1.5, SD 2.x, SDXL. Make one with the `from_` functions.

    Between timesteps, `ln(sigma / alpha)` is interpolated linearly, as k-diffusion and ComfyUI do.
    """

    def __init__(self, table: Level, path: Callable[[Tensor], Level]) -> None:
        """`table` levels [T], strictly noisier with t; `path` the level of a lam between two entries."""
        lam = table.lam
        if (
            lam.ndim != 1
            or len(lam) < 2
            or not bool((lam.diff() < 0).all())
            or not bool(torch.isfinite(lam[0]))
        ):
            raise ValueError(
                "a schedule needs two or more timesteps [T], noisy from the first, each noisier than the one "
                f"before; got shape {tuple(lam.shape)}, lam {lam.max().item():.4g}..{lam.min().item():.4g}"
            )
        self._table, self._path, self._lam = table, path, lam

    @classmethod
    def from_alphas_cumprod(cls, abar: Tensor) -> DiscreteSchedule:
        """VP schedule of `abar [T]`, decreasing, in (0, 1); the last may be 0 (zero terminal SNR)."""
        abar = _float64(abar)
        return cls(Level(abar.sqrt(), (1 - abar).sqrt()), vp_level)

    @classmethod
    def from_sigmas(cls, sigma_hat: Tensor) -> DiscreteSchedule:
        """VP schedule of `sigma_hat [T] = sigma / alpha`, increasing: what ComfyUI's models carry."""
        return cls(vp_level(-_float64(sigma_hat).log()), vp_level)

    @classmethod
    def from_betas(
        cls,
        kind: str = "scaled_linear",
        start: float = 0.00085,
        end: float = 0.012,
        steps: int = 1000,
        zero_terminal_snr: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> DiscreteSchedule:
        """VP schedule of a named list of betas: scaled_linear, linear or squaredcos (start, end unused).

        `dtype` of the products: float64 as ComfyUI; float32 gives diffusers' numbers, rounding included.
        """
        abar = torch.cumprod(1 - _betas(kind, start, end, steps, dtype), dim=0)
        return cls.from_alphas_cumprod(_zero_terminal(abar) if zero_terminal_snr else abar)

    def scaled(self) -> DiscreteSchedule:
        """The same in the state `x_t / alpha_t` of ComfyUI's EPS and V models: levels (1, sigma_hat)."""
        if not bool(torch.isfinite(self._lam[-1])):
            raise ValueError(
                "sigma_hat is infinite at zero terminal SNR; use the VP state, or a last alpha above 0"
            )
        return DiscreteSchedule(scaled_level(self._lam), scaled_level)

    @property
    def num_timesteps(self) -> int:
        return len(self._lam)

    def origin(self, original_steps: int | None = 50) -> list[int]:
        """The timesteps of distillation, ascending (see `timesteps.origin`)."""
        return origin(self.num_timesteps, original_steps)

    def point(self, t: Tensor | float) -> Point:
        t = _float64(t)
        if not bool(((t >= 0) & (t <= self.num_timesteps - 1)).all()):
            raise ValueError(
                f"timestep outside 0..{self.num_timesteps - 1}: {t.min().item()} to {t.max().item()}"
            )
        low = t.floor().long()
        lam, share = self._lam, t - low
        between = self._path(lam[low] + share * (lam[(low + 1).clamp(max=self.num_timesteps - 1)] - lam[low]))
        exact = share == 0
        alpha = torch.where(exact, self._table.alpha[low], between.alpha)
        return Point(t, Level(alpha, torch.where(exact, self._table.sigma[low], between.sigma)))

    def at_lam(self, lam: Tensor | float) -> Point:
        lam = _float64(lam).clamp(self._lam[-1], self._lam[0])
        high = torch.searchsorted(-self._lam, -lam).clamp(1, self.num_timesteps - 1)
        below, above = self._lam[high - 1], self._lam[high]
        # The span is infinite below zero terminal SNR: the time is then that of the last finite level.
        share = torch.where(lam == above, 1.0, (below - lam) / (below - above))
        return Point(high - 1 + share, self._path(lam))

    def target(self, t_next: float, gamma: float) -> float:
        # The paper's floor keeps s in the table. A time between two entries must not get one: gamma = 0 would
        # then add noise.
        return target(int(t_next), gamma) if t_next == int(t_next) else (1 - gamma) * t_next

    @property
    def last(self) -> Point:
        return self.point(0.0)


class FlowSchedule(Schedule):
    """Flow matching (SD3, Flux): alpha = 1 - sigma, the model's time is sigma. `shift` bends the grid."""

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def sigmas(self, steps: int, strength: float = 1.0) -> list[float]:
        """The sigmas to start each step from, descending (see `timesteps.flow_sigmas`)."""
        return flow_sigmas(steps, self.shift, strength)

    def point(self, t: Tensor | float) -> Point:
        t = _float64(t)
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"sigma of a flow model outside 0..1: {t.min().item()} to {t.max().item()}")
        return Point(t, Level(1 - t, t))

    def at_lam(self, lam: Tensor | float) -> Point:
        sigma = torch.sigmoid(-_float64(lam))
        return Point(sigma, Level(1 - sigma, sigma))

    def target(self, t_next: float, gamma: float) -> float:
        return (1 - gamma) * t_next

    @property
    def last(self) -> Point:
        return self.clean


def _betas(kind: str, start: float, end: float, steps: int, dtype: torch.dtype) -> Tensor:
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=dtype, device="cpu") ** 2
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=dtype, device="cpu")
    if kind == "squaredcos":
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=dtype, device="cpu")
    raise ValueError(f"unknown beta schedule {kind!r}; known: scaled_linear, linear, squaredcos")


def _zero_terminal(abar: Tensor) -> Tensor:
    """Shift and stretch sqrt(abar) so that the last is 0 and the first stays (arXiv 2305.08891, Alg. 1)."""
    root = abar.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
