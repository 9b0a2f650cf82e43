"""Orders of convergence, measured against exact maps (method.md 6.1, 6.2)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from oracles import Gaussian, Mixture, slope
from paths import PATHS, VP, forbidden, normal
from torch import Tensor

from comfyui_tcd.samplers import (
    Order,
    Schedule,
    Step,
    first_order,
    sample,
    tcf2,
)

GAUSSIAN, MIXTURE = Gaussian(), Mixture()
# In half log-SNR, inside the range of every schedule. (On some intervals, -2 to 1.5 for one, the error terms
# of the Gaussian's multistep cancel until hundreds of steps, and a slope says nothing.)
START, END = -1.0, 1.0


def between(schedule: Schedule, steps: int, start: float = START, end: float = END) -> list[Step]:
    """A deterministic run from `start` to `end` in equal steps of lam."""
    points = [schedule.at_lam(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [Step(now, down, None) for now, down in pairwise(points)]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("order", "low", "high"), [(1, 1.95, 2.1), (2, 2.97, 3.1)])
def test_order_of_one_step(name: str, order: int, low: float, high: float) -> None:
    schedule, x = PATHS[name], normal(4, 16)
    now, sizes, errors = schedule.at_lam(0.0), [2.0**-i for i in range(2, 6)], list[float]()
    for h in sizes:
        down = schedule.at_lam(h)
        if order == 1:
            got = first_order(GAUSSIAN.predict, x, now, down).x
        else:
            got = tcf2(GAUSSIAN.predict, x, now, down, schedule).x
        errors.append((got - GAUSSIAN.ode_map(x, now.level, down.level)).norm().item())
    assert low < slope(sizes, errors) < high


def global_slope(
    data: Gaussian | Mixture, schedule: Schedule, order: Order, x: Tensor, counts: list[int]
) -> float:
    exact = data.ode_map(x, schedule.at_lam(START).level, schedule.at_lam(END).level)
    runs = [sample(data.predict, x, between(schedule, n), forbidden, schedule, order) for n in counts]
    return slope([1 / n for n in counts], [(run - exact).norm().item() for run in runs])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), ("multistep", 2)])
def test_order_over_an_interval_gaussian(name: str, order: Order, expected: int) -> None:
    assert abs(global_slope(GAUSSIAN, PATHS[name], order, normal(4, 16), [24, 48, 96, 192]) - expected) < 0.1


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), ("multistep", 2)])
def test_order_over_an_interval_mixture(name: str, order: Order, expected: int) -> None:
    # Points away from the ridges between the components: derivatives are large there.
    schedule = PATHS[name]
    alpha, sigma = schedule.at_lam(START).level
    x = alpha * 0.1 + sigma * torch.tensor([[-1.3, -0.9, 0.4, 1.4]], dtype=torch.float64)
    assert abs(global_slope(MIXTURE, schedule, order, x, [100, 200, 400]) - expected) < 0.1


def test_the_exact_maps_agree_with_each_other() -> None:
    one = Mixture((1.0,), (GAUSSIAN.mean,), (math.sqrt(GAUSSIAN.var),))
    x, now, down = normal(3, 8), VP.point(800), VP.point(100)
    exact = GAUSSIAN.ode_map(x, now.level, down.level)
    assert torch.allclose(one.ode_map(x, now.level, down.level), exact, rtol=0, atol=1e-9)
    for got, expected in zip(one.predict(x, now, down), GAUSSIAN.predict(x, now, down), strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
