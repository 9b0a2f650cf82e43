"""Schedules: time to level and back, against diffusers' tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from hypothesis import given
from hypothesis import strategies as st
from paths import SCHEDULES
from torch import Tensor

from comfyui_tcd.samplers import DiscreteSchedule, FlowSchedule

KINDS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos": "squaredcos_cap_v2"}
ZERO_SNR = SCHEDULES["zero_snr"]


def official_abar(kind: str, zero_snr: bool, **options: Any) -> Tensor:
    scheduler = TCDScheduler(beta_schedule=KINDS[kind], rescale_betas_zero_snr=zero_snr, **options)
    return scheduler.alphas_cumprod


def abar(schedule: DiscreteSchedule) -> Tensor:
    alpha, sigma = schedule.point(torch.arange(schedule.num_timesteps)).level
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    return alpha**2


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_betas_are_those_of_diffusers(kind: str, zero_snr: bool) -> None:
    # Away from the noisy end the products agree relatively; at it diffusers' float32 has lost the digits.
    theirs = official_abar(kind, zero_snr).double()
    ours = abar(DiscreteSchedule.from_betas(kind, zero_terminal_snr=zero_snr))
    assert torch.allclose(ours, theirs, rtol=2e-6, atol=1e-6)
    same = abar(DiscreteSchedule.from_betas(kind, zero_terminal_snr=zero_snr, dtype=torch.float32))
    assert torch.allclose(same, theirs, rtol=1e-6, atol=1e-10)


def test_betas_take_start_end_and_steps() -> None:
    options = {"beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 500}
    ours = abar(DiscreteSchedule.from_betas("linear", 0.0001, 0.02, 500))
    assert torch.allclose(ours, official_abar("linear", False, **options).double(), rtol=2e-6, atol=0)


def test_integer_timesteps_are_looked_up_exactly() -> None:
    table = official_abar("scaled_linear", False)
    schedule = DiscreteSchedule.from_alphas_cumprod(table)
    point = schedule.point(torch.tensor([0, 19, 999]))
    assert torch.equal(point.level.alpha, table.double()[[0, 19, 999]].sqrt())
    assert torch.equal(point.level.sigma, (1 - table.double()[[0, 19, 999]]).sqrt())
    assert point.t.tolist() == [0, 19, 999] and schedule.last.t.item() == 0
    assert schedule.last.level.sigma.item() == point.level.sigma[0].item()


def test_sigmas_of_the_host_give_the_same_schedule() -> None:
    table = official_abar("scaled_linear", False).double()
    schedule = DiscreteSchedule.from_sigmas(((1 - table) / table).sqrt())
    assert torch.allclose(abar(schedule), table, rtol=1e-12, atol=0)


@given(st.floats(0, 999))
def test_between_timesteps_ln_sigma_hat_is_linear(t: float) -> None:
    low = min(int(t), 998)
    ends = [SCHEDULES["vp"].point(float(low + i)).level.lam.item() for i in (0, 1)]
    expected = ends[0] + (t - low) * (ends[1] - ends[0])
    for name in ("vp", "scaled"):
        assert SCHEDULES[name].point(t).level.lam.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_lam_inverts_point(name: str) -> None:
    schedule = SCHEDULES[name]
    times = torch.linspace(0.01, 0.99, 57) if name == "flow" else torch.linspace(0, 998, 57)
    there = schedule.point(times)
    back = schedule.at_lam(there.level.lam)
    assert torch.allclose(back.t, there.t, rtol=0, atol=1e-6)
    assert torch.allclose(back.level.alpha, there.level.alpha, rtol=0, atol=1e-12)
    assert torch.allclose(back.level.sigma, there.level.sigma, rtol=1e-12, atol=1e-12)
    one = schedule.at_lam(there.level.lam[7])
    assert one.t.ndim == 0 and one.t.item() == pytest.approx(times[7].item(), abs=1e-6)


def test_at_lam_stays_in_the_table() -> None:
    for name, ends in {"vp": (999, 0), "scaled": (999, 0), "zero_snr": (998, 0)}.items():
        found = [SCHEDULES[name].at_lam(lam) for lam in (-30.0, 30.0)]
        assert [round(p.t.item(), 6) for p in found] == list(ends)
    assert ZERO_SNR.at_lam(-torch.inf).t.item() == 999


def test_zero_terminal_snr_ends_in_pure_noise_and_starts_as_before() -> None:
    pure, first = ZERO_SNR.point(999.0).level, ZERO_SNR.point(0.0).level
    assert (pure.alpha.item(), pure.sigma.item()) == (0.0, 1.0)
    assert first.alpha.item() == pytest.approx(SCHEDULES["vp"].point(0.0).level.alpha.item(), abs=1e-15)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        DiscreteSchedule.from_betas(zero_terminal_snr=True).scaled()


@given(st.floats(0, 999), st.floats(0, 999))
def test_later_is_noisier_and_finite(a: float, b: float) -> None:
    for name in ("vp", "scaled", "squaredcos", "zero_snr"):
        one, two = (SCHEDULES[name].point(t).level for t in sorted((a, b)))
        assert torch.isfinite(torch.stack([*one, *two])).all()
        assert one.lam >= two.lam
        assert a == b or abs(a - b) < 1e-6 or one.sigma < two.sigma or two.alpha == 0


def test_the_scaled_state_is_the_vp_state_over_alpha() -> None:
    times = torch.linspace(0, 999, 333)
    vp, scaled = SCHEDULES["vp"].point(times).level, SCHEDULES["scaled"].point(times).level
    assert torch.equal(scaled.alpha, torch.ones_like(scaled.alpha))
    assert torch.allclose(scaled.sigma, vp.sigma / vp.alpha, rtol=1e-13, atol=0)


def test_flow_levels() -> None:
    level = FlowSchedule().point(torch.tensor([0.0, 0.25, 1.0])).level
    assert level.alpha.tolist() == [1.0, 0.75, 0.0] and level.sigma.tolist() == [0.0, 0.25, 1.0]
    assert [v.item() for v in FlowSchedule().last.level] == [1.0, 0.0]
    assert [v.item() for v in SCHEDULES["scaled"].clean.level] == [1.0, 0.0]


def test_out_of_range() -> None:
    for t in (-0.1, 999.5, float("nan")):
        with pytest.raises(ValueError, match=r"outside 0\.\.999"):
            SCHEDULES["vp"].point(t)
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        FlowSchedule().point(1.01)
    with pytest.raises(ValueError, match="scaled_linear, linear, squaredcos"):
        DiscreteSchedule.from_betas("cosine")


@pytest.mark.parametrize(
    "table", [[0.9, 0.9, 0.5], [0.5, 0.9], [1.0, 0.5], [0.9, -0.1], [0.9], [[0.9], [0.5]]]
)
def test_tables_that_are_no_schedule(table: list[Any]) -> None:
    with pytest.raises(ValueError, match="each noisier than the one before"):
        DiscreteSchedule.from_alphas_cumprod(torch.tensor(table))
