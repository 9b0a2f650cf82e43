"""The loop: shapes, dtypes, callback, orders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Gaussian
from paths import GAMMAS, ORDERS, SCHEDULES, VP, forbidden, network, noise_source, normal, times_of
from torch import Tensor

from comfyui_tcd.samplers import (
    Order,
    Point,
    Step,
    noise_to,
    plan,
    sample,
)


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
