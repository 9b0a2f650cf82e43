"""Which times are visited: the origin grid, its subsets, and the target `s` of each step (method.md 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def origin(schedule_steps: int = 1000, original_steps: int | None = 50) -> list[int]:
    """The timesteps of distillation, ascending: 19, 39, ..., 999 for 50 of 1000 (`t_n = n k - 1`).

    `original_steps=None`: every timestep of the schedule. ValueError outside 1..schedule_steps.
    """
    if original_steps is None:
        return list(range(schedule_steps))
    if not 1 <= original_steps <= schedule_steps:
        raise ValueError(
            f"original_steps {original_steps} is outside 1..{schedule_steps}, the number of timesteps; "
            "use 50 (the usual TCD distillation), or None for every timestep"
        )
    skip = schedule_steps // original_steps
    return [n * skip - 1 for n in range(1, original_steps + 1)]


def left(strength: float = 1.0, original_steps: int | None = 50, num_train: int = 1000) -> list[int]:
    """The timesteps of `origin` that `strength` in (0, 1] leaves, ascending: that share, at its clean end."""
    grid = origin(num_train, original_steps)
    return grid[: int(len(grid) * strength)]


def timesteps(
    steps: int, strength: float = 1.0, original_steps: int | None = 50, num_train: int = 1000
) -> list[int]:
    """The timesteps to start each of `steps` steps from, descending; the official TCD scheduler's choice.

    `strength` in (0, 1]: takes all `steps` steps in what it leaves (see `left`).
    ValueError where the origin has fewer timesteps than `steps`, as the official scheduler does.
    """
    _check_steps(steps, strength)
    grid = left(strength, original_steps, num_train)
    if steps > len(grid):
        raise ValueError(
            f"{steps} steps do not fit into the {len(grid)} timesteps that original_steps {original_steps} "
            f"and strength {strength} leave; use fewer steps, a higher strength, or a larger original_steps "
            f"(None: all {num_train} timesteps)"
        )
    # i * (n / steps) and not i * n / steps: rounds as the official scheduler's linspace, so the same indices.
    stride = len(grid) / steps
    return [grid[-1 - math.floor(i * stride)] for i in range(steps)]


def custom(times: Sequence[int], strength: float = 1.0, num_train: int = 1000) -> list[int]:
    """Timesteps chosen by the user, checked: integers in 0..num_train - 1, strictly descending.

    `strength` in (0, 1]: keeps the last `int(len(times) * strength)` of them. Fewer steps, as the official
    scheduler does here, unlike `timesteps`, which keeps their number.
    """
    _check_steps(len(times), strength)
    _check_custom(times, num_train)
    kept = int(len(times) * strength)
    if kept == 0:
        raise ValueError(
            f"strength {strength} leaves none of {len(times)} timesteps; use at least {1 / len(times):.3f}"
        )
    return [int(t) for t in times[len(times) - kept :]]


def flow_sigmas(steps: int, shift: float = 1.0, strength: float = 1.0) -> list[float]:
    """The sigmas of a flow model to start each of `steps` steps from, descending.

    Uniform in the unshifted time `u`, then `sigma = shift u / (1 + (shift - 1) u)`. `strength` in (0, 1] is
    the first u, so that, as in `timesteps`, the number of steps stays.
    """
    _check_steps(steps, strength)
    if not 0 < shift < math.inf:
        raise ValueError(f"shift {shift} is not a positive number; 1 is no shift, 3 is usual for SD3")
    grid = [strength * (steps - i) / steps for i in range(steps)]
    return [shift * u / (1 + (shift - 1) * u) for u in grid]


def target(t_next: int, gamma: float) -> int:
    """s = floor((1 - gamma) t_next) of Algorithm 4, in timesteps.

    In float32, as the official scheduler: 0.7 * 10 must not become 6 on one side only.
    """
    share = torch.tensor(1 - gamma, dtype=torch.float32, device="cpu")
    return int(torch.floor(share * t_next))


def check_gamma(gamma: float) -> None:
    """ValueError unless `gamma` is in [0, 1]."""
    if not 0 <= gamma <= 1:
        raise ValueError(
            f"gamma {gamma} is outside 0 (deterministic) .. 1 (fully stochastic); 0.2 or 0.3 is usual"
        )


def _check_steps(steps: int, strength: float) -> None:
    if steps < 1:
        raise ValueError(f"{steps} steps; at least 1 is needed")
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is outside (0, 1]; 1 starts from pure noise")


def _check_custom(times: Sequence[int], num_train: int) -> None:
    for i, t in enumerate(times):
        if t != int(t) or not 0 <= t < num_train:
            raise ValueError(f"timestep {t} is not an integer in 0..{num_train - 1}")
        if i and t >= times[i - 1]:
            raise ValueError(
                f"timesteps must descend, but {t} follows {times[i - 1]}; sort them and drop doubles"
            )
