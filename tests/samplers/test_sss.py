"""Algorithm 4: noise levels, draws, ends, identities; for VP, the scaled state and flow (method.md 4, 6)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Gaussian, Mixture, PointMass
from torch import Tensor

from comfyui_tcd.samplers import (
    DiscreteSchedule,
    FlowSchedule,
    Level,
    Order,
    Point,
    Predict,
    Schedule,
    Step,
    noise_to,
    plan,
    renoise,
    sample,
    through,
    timesteps,
    transition,
)

VP = DiscreteSchedule.from_betas()
SCHEDULES: dict[str, Schedule] = {
    "vp": VP,
    "scaled": VP.scaled(),
    "squaredcos": DiscreteSchedule.from_betas("squaredcos"),
    "zero_snr": DiscreteSchedule.from_betas(zero_terminal_snr=True),
    "flow": FlowSchedule(shift=3.0),
}
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


# The levels that the steps go through


@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 60), GAMMAS, st.floats(0.2, 1))
def test_steps_descend_and_only_add_noise(name: str, count: int, gamma: float, strength: float) -> None:
    times = times_of(name, count, strength)
    steps = plan(SCHEDULES[name], times, gamma)
    assert [step.now.t.item() for step in steps] == times
    assert all(b.now.level.lam > a.now.level.lam for a, b in pairwise(steps))
    assert all(b.now.level.sigma < a.now.level.sigma for a, b in pairwise(steps))
    for step, after in pairwise(steps):
        assert step.down.t <= after.now.t < step.now.t
        assert (step.next is None) == (step.down.t == after.now.t)
        reached = step.down if step.next is None else step.next
        assert reached.t == after.now.t and reached.level.sigma == after.now.level.sigma
    assert steps[-1].next is None and steps[-1].down.level.sigma == SCHEDULES[name].last.level.sigma


def test_s_is_the_floor_of_the_share_of_t_next() -> None:
    downs = [step.down.t.item() for step in plan(VP, [999, 759, 499, 259], 0.3)]
    assert downs == [531, 349, 181, 0]
    downs = [step.down.t.item() for step in plan(VP, [999, 759, 499, 259], [1.0, 0.5, 0.0, 0.9])]
    assert downs == [0, 249, 259, 0]
    downs = [step.down.t.item() for step in plan(FlowSchedule(), [1.0, 0.75, 0.4], 0.2)]
    assert downs == pytest.approx([0.6, 0.32, 0.0])


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends(name: str) -> None:
    schedule = SCHEDULES[name]
    official, clean = (
        plan(schedule, times_of(name, 3), 0.3, end)[-1].down.level for end in ("official", "clean")
    )
    assert (clean.alpha.item(), clean.sigma.item()) == (1.0, 0.0)
    assert (official.sigma.item() == 0) == (name == "flow")
    # The official end of SD's schedules leaves a trace of noise.
    if name in ("vp", "scaled", "zero_snr"):
        assert official.sigma.item() == pytest.approx(0.0292, abs=1e-4)
    steps = plan(schedule, times_of(name, 3), 0.3, "clean")
    x0 = [Tensor()]

    def callback(i: int, step: Step, x: Tensor, prediction: Tensor) -> None:
        x0[0] = prediction

    x = sample(network, normal(2, 3), steps, noise_source(2, 3), callback=callback)
    assert torch.equal(x, x0[0])


def test_a_last_timestep_of_0_changes_nothing() -> None:
    steps = plan(VP, [999, 500, 0], 0.3)
    assert steps[1].next is None and steps[2].down.t == steps[2].now.t
    trace: list[Tensor] = []
    x = sample(
        network, normal(2, 3), steps, noise_source(2, 3), callback=lambda i, step, x, x0: trace.append(x)
    )
    assert torch.equal(x, trace[-1])


def test_through_keeps_the_levels_it_is_given() -> None:
    # A host's own sigmas, between timesteps: only the times s come from the schedule.
    points = [VP.point(t) for t in (999, 640.5, 300)] + [VP.clean]
    steps = through(VP, points, [0.5, 0.5, 0.0])
    assert [step.now for step in steps] == points[:-1]
    assert [step.next for step in steps] == [points[1], points[2], None]
    assert [step.down.t.item() for step in steps] == [320.25, 150, 0]
    assert steps[2].down == points[3]
    assert [step.next for step in through(VP, points, [0.0, 0.0, 0.0])] == [None] * 3
    with pytest.raises(ValueError):
        through(VP, points, [0.5, 0.5])


@pytest.mark.parametrize(
    ("times", "gamma", "end", "message"),
    [
        ([999.0, 500.0], 1.2, "official", "gamma 1.2"),
        ([999.0, 500.0], -0.1, "official", "gamma -0.1"),
        ([999.0, 500.0], float("nan"), "official", "gamma nan"),
        ([999.0, 500.0], [0.3], "official", "1 values of gamma for 2 steps"),
        ([999.0, 500.0], [0.3, 2.0], "official", "gamma 2.0"),
        ([999.0, 500.0], 0.3, "zero", "'official'.*'clean'"),
        ([500.0, 999.0], 0.3, "official", "strictly descending"),
        ([500.0, 500.0], 0.3, "official", "strictly descending"),
        ([], 0.3, "official", "no times"),
        ([1000.0, 500.0], 0.3, "official", r"outside 0\.\.999"),
    ],
)
def test_plans_that_make_no_sense(times: list[float], gamma: float, end: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(VP, times, gamma, end)


# The noise: how often, how much


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


def test_renoise_per_sample() -> None:
    times = (torch.tensor([10.0, 300.0]), torch.tensor([500.0, 301.0]))
    down, up = (VP.point(t).level for t in times)
    x_s, z = normal(2, 3), normal(2, 3, seed=1)
    got = renoise(x_s, down, up, z)
    for i in range(2):
        one = renoise(x_s[i], VP.point(times[0][i]).level, VP.point(times[1][i]).level, z[i])
        assert torch.allclose(got[i], one, rtol=0, atol=1e-14)


# Identities


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


# Habits


@given(
    st.sampled_from(list(SCHEDULES)),
    st.integers(1, 12),
    GAMMAS,
    st.sampled_from(ORDERS),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.lists(st.integers(1, 3), min_size=2, max_size=5),
)
def test_shapes_and_dtypes(
    name: str, count: int, gamma: float, order: Order, dtype: torch.dtype, shape: list[int]
) -> None:
    schedule, times = SCHEDULES[name], times_of(name, count)
    x = (schedule.point(times[0]).level.sigma * normal(*shape)).to(dtype)
    before, seen = x.clone(), set[torch.dtype]()

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        seen.add(x.dtype)
        return network(x, now, target)

    out = sample(predict, x, plan(schedule, times, gamma), noise_source(*shape), schedule, order)
    assert out.dtype == dtype and out.shape == x.shape and torch.isfinite(out).all()
    assert seen == {dtype}
    assert torch.equal(x, before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 4e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_rounds_only_the_state(dtype: torch.dtype, tolerance: float) -> None:
    x, data, steps = normal(4, 64).to(dtype), Gaussian(), plan(VP, times_of("vp", 4), 0.3)
    exact = sample(data.predict, x.double(), steps, noise_source(4, 64))
    got = sample(data.predict, x, steps, noise_source(4, 64))
    assert torch.allclose(got.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_to_keeps_the_dtype(dtype: torch.dtype) -> None:
    x0, z = normal(2, 3), normal(2, 3, seed=1)
    got = noise_to(VP, 500, x0.to(dtype), z.to(dtype))
    alpha, sigma = VP.point(500).level
    assert got.dtype == dtype
    assert torch.allclose(got.double(), alpha * x0 + sigma * z, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_callback_sees_state_and_prediction_and_may_stop_the_run() -> None:
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    steps, x = plan(VP, [999, 759, 499], 0.3), normal(2, 3)

    def callback(i: int, step: Step, x: Tensor, x0: Tensor) -> None:
        seen.append((i, step.now.t.item(), x, x0))
        if i == 1:
            raise KeyboardInterrupt

    draws = [0]

    def noise() -> Tensor:
        draws[0] += 1
        return normal(2, 3, seed=5)

    with pytest.raises(KeyboardInterrupt):
        sample(network, x, steps, noise, callback=callback)
    assert [(i, t) for i, t, _, _ in seen] == [(0, 999), (1, 759)] and draws == [1]
    for _, t, state, x0 in seen:
        assert torch.equal(x0, network(state, VP.point(t), VP.last)[0])
    assert torch.equal(seen[0][2], x)


def test_orders_that_do_not_exist() -> None:
    steps = plan(VP, [999], 0.3)
    with pytest.raises(ValueError, match="schedule="):
        sample(network, normal(2, 3), steps, forbidden, order=2)
    with pytest.raises(ValueError, match="order 3"):
        sample(network, normal(2, 3), steps, forbidden, order=3)  # pyright: ignore[reportArgumentType]


def test_each_run_of_multistep_starts_afresh() -> None:
    steps, x = plan(VP, [999, 759, 499, 259], 0.0), normal(2, 3)
    runs = [sample(network, x, steps, forbidden, VP, "multistep") for _ in range(2)]
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], sample(network, x, steps, forbidden))
