"""The noise of Algorithm 4: how often it is drawn, how much; for every path (method.md 4, 6.5)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Gaussian, PointMass
from paths import GAMMAS, ORDERS, SCHEDULES, VP, forbidden, network, normal, times_of
from torch import Tensor

from comfyui_tcd.samplers import (
    Level,
    Order,
    Predict,
    Schedule,
    Step,
    noise_to,
    plan,
    renoise,
    sample,
    transition,
)


@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 30),
    st.one_of(st.just(0.0), st.floats(0.01, 1)),
    st.sampled_from(ORDERS),
)
def test_one_draw_between_steps_and_none_for_gamma_0(
    name: str, count: int, gamma: float, order: Order
) -> None:
    draws = [0]

    def noise() -> Tensor:
        draws[0] += 1
        return normal(2, 3, seed=draws[0])

    steps = plan(SCHEDULES[name], times_of(name, count), gamma)
    sample(network, normal(2, 3), steps, noise if gamma else forbidden, SCHEDULES[name], order)
    assert draws[0] == (count - 1 if gamma else 0)


def test_no_draw_where_the_coefficient_is_0() -> None:
    # A plan made by hand may name a next level that is the level reached.
    now, same = VP.point(999), VP.point(500)
    sample(network, normal(2, 3), [Step(now, same, same)], forbidden)


@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 30),
    st.lists(GAMMAS, min_size=30, max_size=30),
    st.sampled_from(ORDERS),
    st.sampled_from(["official", "clean"]),
)
def test_the_noise_of_the_state_is_that_of_the_schedule(
    name: str, count: int, gammas: list[float], order: Order, end: str
) -> None:
    # With one known picture as data, x - alpha x0 is a sum of the start's noise and of the draws. Each is an
    # axis of its own here, so that the length of the sum is the standard deviation, without sampling.
    schedule, times = SCHEDULES[name], times_of(name, count)
    data = PointMass(normal(1, 31))
    axes = torch.eye(31, dtype=torch.float64)
    x = noise_to(schedule, times[0], data.x0, axes[:1])
    steps = plan(schedule, times, gammas[:count], end)
    for level, state in run(data.predict, x, steps, axes[1:], schedule, order):
        deviation = (state - level.alpha * data.x0).norm()
        assert torch.isclose(deviation, level.sigma, rtol=1e-9, atol=1e-12)


@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 30),
    st.lists(GAMMAS, min_size=30, max_size=30),
    st.sampled_from(["official", "clean"]),
)
def test_a_consistent_network_keeps_the_distribution(
    name: str, count: int, gammas: list[float], end: str
) -> None:
    # What TCD trains towards: f exact for every s. The states are then distributed as the data, diffused, for
    # any number of steps and any gamma. Axis 0 is the data's spread, the others are as above.
    schedule, times, data = SCHEDULES[name], times_of(name, count), Gaussian(mean=0.0, var=0.3)
    axes = torch.eye(32, dtype=torch.float64)
    x = noise_to(schedule, times[0], data.var**0.5 * axes[:1], axes[1:2])
    for level, state in run(data.consistent, x, plan(schedule, times, gammas[:count], end), axes[2:]):
        spread = (level.alpha**2 * data.var + level.sigma**2).sqrt()
        assert torch.isclose(state.norm(), spread, rtol=1e-9, atol=1e-12)


def run(
    predict: Predict,
    x: Tensor,
    steps: list[Step],
    draws: Tensor,
    schedule: Schedule | None = None,
    order: Order = 1,
) -> list[tuple[Level, Tensor]]:
    """Every state of a run with its level, the last one included; `draws` row by row as the noise."""
    states: list[tuple[Level, Tensor]] = []

    def callback(i: int, step: Step, x: Tensor, x0: Tensor) -> None:
        states.append((step.now.level, x))

    rows = iter(draws)
    x = sample(predict, x, steps, lambda: next(rows).unsqueeze(0), schedule, order, callback)
    assert len(states) == len(steps)
    return [*states, (steps[-1].down.level, x)]


def test_transition() -> None:
    down, up = VP.point(300).level, VP.point(700).level
    r, c = transition(down, up)
    assert c.item() == pytest.approx((1 - (up.alpha / down.alpha).item() ** 2) ** 0.5)  # the VP form
    assert r.item() == pytest.approx((up.alpha / down.alpha).item())
    scaled = SCHEDULES["scaled"]
    r, c = transition(scaled.point(300).level, scaled.point(700).level)
    sigma_s, sigma_next = (scaled.point(t).level.sigma.item() for t in (300, 700))
    assert (r.item(), c.item()) == pytest.approx(
        (1.0, (sigma_next**2 - sigma_s**2) ** 0.5)
    )  # ancestral Euler
    assert [v.item() for v in transition(down, down)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="only be added"):
        transition(up, down)
    # Equal but for rounding: nothing to add, and no square root of a negative number.
    hair = scaled.at_lam(scaled.point(300).level.lam + 1e-9).level
    assert transition(scaled.point(300).level, hair).sigma.item() == 0


def test_renoise_per_sample() -> None:
    times = (torch.tensor([10.0, 300.0]), torch.tensor([500.0, 301.0]))
    down, up = (VP.point(t).level for t in times)
    x_s, z = normal(2, 3), normal(2, 3, seed=1)
    got = renoise(x_s, down, up, z)
    for i in range(2):
        one = renoise(x_s[i], VP.point(times[0][i]).level, VP.point(times[1][i]).level, z[i])
        assert torch.allclose(got[i], one, rtol=0, atol=1e-14)
