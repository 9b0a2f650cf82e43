"""Schedules of every kind, and stand-ins for a network and for noise, shared by the tests of samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from comfyui_tcd.samplers import (
    DiscreteSchedule,
    FlowSchedule,
    Order,
    Point,
    Schedule,
    timesteps,
)

VP = DiscreteSchedule.from_betas()
SCHEDULES: dict[str, Schedule] = {
    "vp": VP,
    "scaled": VP.scaled(),
    "squaredcos": DiscreteSchedule.from_betas("squaredcos"),
    "zero_snr": DiscreteSchedule.from_betas(zero_terminal_snr=True),
    "flow": FlowSchedule(shift=3.0),
}
PATHS = {name: SCHEDULES[name] for name in ("vp", "scaled", "flow")}
ORDERS: tuple[Order, ...] = (1, 2, "multistep")
GAMMAS = st.one_of(st.sampled_from([0.0, 0.3, 1.0]), st.floats(0, 1))


def times_of(name: str, count: int, strength: float = 1.0) -> list[float]:
    schedule = SCHEDULES[name]
    if isinstance(schedule, FlowSchedule):
        return schedule.sigmas(count, strength)
    return [float(t) for t in timesteps(count, strength, original_steps=None)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_source(*shape: int, seed: int = 1) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)


def forbidden() -> Tensor:
    raise AssertionError("noise was drawn")


def network(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
    """A bounded network, its answers in the dtype of its input; nothing it says is consistent."""
    t = now.t.item()
    return torch.tanh(x + t), torch.tanh(2 * x.flip(0) - t)
