"""Algorithm 4 where it is something else: Algorithm 3, another state, Euler, the ODE (method.md 4, 6.2)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Mixture
from paths import GAMMAS, ORDERS, SCHEDULES, VP, forbidden, noise_source, normal, times_of
from torch import Tensor

from comfyui_tcd.samplers import (
    FlowSchedule,
    Order,
    Point,
    Schedule,
    plan,
    sample,
)


def algorithm_3(
    schedule: Schedule, predict: Mixture, x: Tensor, times: list[float], noise: Callable[[], Tensor]
) -> Tensor:
    """Multistep consistency sampling as the paper lists it: f(x, tau, origin), diffuse to tau_n, again."""
    origin = schedule.last
    x = consistency(predict, x, schedule.point(times[0]), origin)
    for t in times[1:]:
        up = schedule.point(t)
        ratio = up.level.alpha / origin.level.alpha
        variance = up.level.sigma**2 - (ratio * origin.level.sigma) ** 2
        x = ratio * x + variance.sqrt() * noise()
        x = consistency(predict, x, up, origin)
    return x


def consistency(predict: Mixture, x: Tensor, now: Point, origin: Point) -> Tensor:
    x0, eps = predict.predict(x, now, origin)
    return origin.level.alpha * x0 + origin.level.sigma * eps


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_gamma_1_is_algorithm_3(name: str, count: int) -> None:
    schedule, times, data = SCHEDULES[name], times_of(name, count), Mixture()
    x = schedule.point(times[0]).level.sigma * normal(3, 5)
    expected = algorithm_3(schedule, data, x, times, noise_source(3, 5))
    got = sample(data.predict, x, plan(schedule, times, 1.0), noise_source(3, 5))
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


@given(st.integers(1, 20), GAMMAS, st.sampled_from(ORDERS), st.sampled_from(["official", "clean"]))
def test_vp_and_scaled_coordinates_are_one_algorithm(
    count: int, gamma: float, order: Order, end: str
) -> None:
    vp, scaled, data, times = VP, SCHEDULES["scaled"], Mixture(), times_of("vp", count)
    alpha = vp.point(times[0]).level.alpha
    x = normal(2, 4)
    one = sample(data.predict, x, plan(vp, times, gamma, end), noise_source(2, 4), vp, order)
    # The noise of a VP step, seen in x / alpha, is z with the scaled coefficient: the same z serves both.
    steps = plan(scaled, times, gamma, end)
    two = sample(data.predict, x / alpha, steps, noise_source(2, 4), scaled, order)
    last = plan(vp, times, gamma, end)[-1].down.level.alpha
    assert torch.allclose(one, two * last, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 4, 10])
def test_flow_at_gamma_0_is_euler(count: int) -> None:
    def velocity(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x * 3 + sigma) - x.flip(0)

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        v = velocity(x, now.t.item())
        return x - now.t * v, x + (1 - now.t) * v

    sigmas = FlowSchedule(3.0).sigmas(count)
    x = expected = normal(3, 4)
    for sigma, after in pairwise([*sigmas, 0.0]):
        expected = expected + (after - sigma) * velocity(expected, sigma)
    got = sample(predict, x, plan(SCHEDULES["flow"], sigmas, 0.0), forbidden)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_more_steps_of_ddim_approach_the_exact_ode(name: str) -> None:
    # First order on the schedule's own grid of timesteps, for a mixture, to the schedule's own end.
    schedule, data = SCHEDULES[name], Mixture()
    first = 0.99 if name == "flow" else 989.0
    z = torch.tensor([[-1.4, -0.8, 0.5, 1.3]], dtype=torch.float64)
    x = schedule.point(first).level.sigma * z
    exact = data.ode_map(x, schedule.point(first).level, schedule.last.level)
    errors: list[float] = []
    for count in (123, 246, 492):
        times = [first * (count - i) / count for i in range(count)]
        x_end = sample(data.predict, x, plan(schedule, times, 0.0), forbidden)
        errors.append((x_end - exact).norm().item())
    assert errors[0] < 0.1
    assert all(1.6 < a / b < 2.6 for a, b in pairwise(errors))
