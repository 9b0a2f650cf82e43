"""The trajectory consistency function: formulas, identities, evaluations (method.md 2)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from oracles import Gaussian, Mixture, PointMass
from paths import PATHS, SCHEDULES, VP, normal
from torch import Tensor

from comfyui_tcd.samplers import (
    Denoised,
    DiscreteSchedule,
    FlowSchedule,
    Level,
    Point,
    Predict,
    Schedule,
    first_order,
    multistep,
    tcf1,
    tcf2,
    to_x0_eps,
)

GAUSSIAN, MIXTURE = Gaussian(), Mixture()


def paper_step(eps: Tensor, x: Tensor, now: Level, down: Level) -> Tensor:
    """Compute the right-hand side of Eqs. 21 and 22 as the paper writes it."""
    h = down.lam - now.lam
    return down.alpha / now.alpha * x - down.sigma * torch.expm1(h) * eps


@pytest.mark.parametrize("name", PATHS)
def test_the_formulas_of_the_paper(name: str) -> None:
    schedule, x = PATHS[name], normal(3, 8)
    previous, now, down = (schedule.at_lam(lam) for lam in (-1.0, -0.4, 0.5))
    x0, eps = MIXTURE.predict(x, now, down)
    eq21 = paper_step(eps, x, now.level, down.level)
    assert torch.allclose(tcf1(x0, eps, down.level), eq21, rtol=0, atol=1e-12)

    middle = schedule.at_lam(0.05)
    x_u = paper_step(eps, x, now.level, middle.level)
    eq22 = paper_step(MIXTURE.predict(x_u, middle, down)[1], x, now.level, down.level)
    assert torch.allclose(tcf2(MIXTURE.predict, x, now, down, schedule).x, eq22, rtol=0, atol=1e-12)

    # DPM-Solver++(2M): r is the ratio of the previous step to this one, 0.6 / 0.9.
    earlier = normal(3, 8, seed=1)
    d = x0 + (x0 - earlier) / (2 * 0.6 / 0.9)
    two_m = down.level.sigma / now.level.sigma * x - down.level.alpha * math.expm1(-0.9) * d
    got = multistep(MIXTURE.predict, x, now, down, (previous, earlier))
    assert torch.allclose(got.x, two_m, rtol=0, atol=1e-12)
    assert torch.equal(got.x0, x0) and torch.equal(got.eps, eps)


def maps(predict: Predict, schedule: Schedule) -> dict[str, Callable[[Tensor, Point, Point], Denoised]]:
    def two_m(x: Tensor, now: Point, down: Point) -> Denoised:
        earlier = schedule.at_lam(now.level.lam - 0.3)
        return multistep(predict, x, now, down, (earlier, torch.zeros_like(x)))

    return {
        "tcf1": lambda x, now, down: first_order(predict, x, now, down),
        "tcf2": lambda x, now, down: tcf2(predict, x, now, down, schedule),
        "multistep": two_m,
    }


def rounded(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
    """A prediction whose x0 and eps add up to x only to rounding, as a network's do."""
    alpha, sigma = now.level.broadcast(x)
    eps = torch.tanh(x)
    return (x - sigma * eps) / alpha, eps


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "multistep"])
@pytest.mark.parametrize("name", PATHS)
def test_f_of_x_s_s_is_x_bit_for_bit(name: str, form: str) -> None:
    schedule, x = PATHS[name], normal(64, 33).float()
    now = schedule.at_lam(-0.7)
    assert not torch.equal(tcf1(*rounded(x, now, now), now.level), x)  # the formula alone is not the identity
    assert torch.equal(maps(rounded, schedule)[form](x, now, now).x, x)


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "multistep"])
@pytest.mark.parametrize("name", PATHS)
def test_one_time_per_sample_is_row_by_row(name: str, form: str) -> None:
    schedule, x = PATHS[name], normal(5, 3, 4, 4)
    now = schedule.at_lam(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0]))
    lams = torch.tensor([-2.0, 0.5, 0.7, 0.6, 1.5])  # row 0: s = t
    down = schedule.at_lam(lams)
    # Row 1 ends without noise, where no form of second order exists.
    clean = torch.tensor([False, True, False, False, False])
    level = Level(torch.where(clean, 1.0, down.level.alpha), torch.where(clean, 0.0, down.level.sigma))
    down = Point(torch.where(clean, 0.0, down.t), level)
    f = maps(GAUSSIAN.predict, schedule)[form]
    got = f(x, now, down).x
    for i in range(5):
        one = f(x[i : i + 1], row(now, i), row(down, i)).x
        assert torch.allclose(got[i : i + 1], one, rtol=0, atol=1e-12)
    assert torch.equal(got[0], x[0])
    assert torch.allclose(got[1], GAUSSIAN.predict(x, now, down)[0][1], rtol=0, atol=1e-12)


def row(point: Point, i: int) -> Point:
    return Point(point.t[i], Level(point.level.alpha[i], point.level.sigma[i]))


ENDLESS: dict[str, tuple[Schedule, list[float], list[float]]] = {
    "zero_snr": (SCHEDULES["zero_snr"], [999.0, 759.0, 259.0], [499.0, 759.0, 0.0]),
    "flow": (FlowSchedule(), [1.0, 1.0, 0.6], [0.0, 0.3, 0.0]),
    "flow with a midpoint": (FlowSchedule(), [1.0, 0.6, 0.6], [0.0, 0.3, 0.0]),
}


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "multistep"])
@pytest.mark.parametrize("name", ENDLESS)
def test_gradients_are_finite_where_lam_is_not(name: str, form: str) -> None:
    schedule, *times = ENDLESS[name]
    now, down = (schedule.point(torch.tensor(t)) for t in times)

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        return to_x0_eps("sample", torch.tanh(x), x, now.level)  # refuses sigma = 0, which no midpoint has

    x = normal(3, 4).requires_grad_()
    out = maps(predict, schedule)[form](x, now, down).x
    out.square().sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert torch.isfinite(out).all() and x.grad is not None and torch.isfinite(x.grad).all()


def test_evaluations_times_and_targets() -> None:
    calls: list[tuple[float, float]] = []

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        calls.append((now.t.item(), target.t.item()))
        return GAUSSIAN.predict(x, now, target)

    now, down, x = VP.point(759), VP.point(349), normal(2, 3)
    middle = VP.at_lam((now.level.lam + down.level.lam) / 2).t.item()
    assert 349 < middle < 759
    expected = {"tcf1": [(759, 349)], "tcf2": [(759, 349), (middle, 349)], "multistep": [(759, 349)]}
    for form, f in maps(predict, VP).items():
        calls.clear()
        f(x, now, down)
        assert torch.allclose(torch.tensor(calls), torch.tensor(expected[form], dtype=torch.float32))
    calls.clear()
    tcf2(predict, x, now, VP.clean, VP)  # no midpoint: no second evaluation either
    assert calls == [(759, 0)]


@pytest.mark.parametrize("form", ["tcf2", "multistep"])
def test_first_order_where_lam_is_infinite(form: str) -> None:
    zero_snr = DiscreteSchedule.from_betas(zero_terminal_snr=True)
    x = normal(2, 3)
    for schedule, now, down in [
        (VP, VP.point(759), VP.clean),
        (FlowSchedule(), FlowSchedule().point(0.5), FlowSchedule().last),
        (zero_snr, zero_snr.point(999), zero_snr.point(499)),
    ]:
        got, first = (maps(GAUSSIAN.predict, schedule)[name](x, now, down).x for name in (form, "tcf1"))
        assert torch.equal(got, first)
    # A previous step from pure noise is infinitely far in lam: no extrapolation from it.
    now, down = zero_snr.point(759), zero_snr.point(499)
    got = multistep(GAUSSIAN.predict, x, now, down, (zero_snr.point(999), x)).x
    assert torch.equal(got, first_order(GAUSSIAN.predict, x, now, down).x)
    assert torch.equal(multistep(GAUSSIAN.predict, x, now, down, None).x, got)


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "multistep"])
@pytest.mark.parametrize("name", PATHS)
def test_self_consistency_of_a_point_mass(name: str, form: str) -> None:
    # Eq. 18: one picture means one straight trajectory, so t -> u -> s equals t -> s.
    schedule, data = PATHS[name], PointMass(normal(3, 4))
    t, u, s = (schedule.at_lam(lam) for lam in (-1.5, -0.2, 1.1))
    x = t.level.alpha * data.x0 + t.level.sigma * normal(3, 4, seed=1)
    if form == "multistep":

        def f(x: Tensor, now: Point, down: Point) -> Tensor:
            return multistep(data.predict, x, now, down, (schedule.at_lam(-1.9), data.x0)).x

    else:

        def f(x: Tensor, now: Point, down: Point) -> Tensor:
            return maps(data.predict, schedule)[form](x, now, down).x

    assert torch.allclose(f(f(x, t, u), u, s), f(x, t, s), rtol=0, atol=1e-12)


def test_half_precision_states_reach_the_network_as_they_are() -> None:
    seen: list[torch.dtype] = []

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        seen.append(x.dtype)
        x0, eps = GAUSSIAN.predict(x.double(), now, target)
        return x0.to(x.dtype), eps.to(x.dtype)

    x = normal(2, 3).half()
    out = tcf2(predict, x, VP.point(759), VP.point(349), VP).x
    assert seen == [torch.float16, torch.float16] and out.dtype == torch.float32
    exact = tcf2(GAUSSIAN.predict, x.double(), VP.point(759), VP.point(349), VP).x
    assert torch.allclose(out.double(), exact, rtol=0, atol=5e-3)
