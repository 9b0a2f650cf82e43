"""Which times are visited: every grid equals that of diffusers' TCDScheduler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler

from comfyui_tcd.samplers import (
    DiscreteSchedule,
    FlowSchedule,
    custom,
    flow_sigmas,
    origin,
    target,
    timesteps,
)

STEPS = [*range(1, 52), 99, 100, 101, 333, 1000, 1001]
STRENGTHS = [0.001, 0.29, 0.3, 0.58, 0.6, 0.75, 0.99, 1.0]  # 0.58 * 50 is 28.99... in floating point


def official(steps: int, strength: float, original: int | None, num_train: int) -> list[int] | None:
    """diffusers' timesteps, or None where it refuses.

    Its way to use all timesteps is to pass any `original_inference_steps` to `set_timesteps`.
    """
    scheduler = TCDScheduler(num_train_timesteps=num_train, original_inference_steps=original or 50)
    try:
        scheduler.set_timesteps(
            steps, original_inference_steps=None if original else num_train, strength=strength
        )
    except ValueError:
        return None
    return scheduler.timesteps.tolist()


def ours(steps: int, strength: float, original: int | None, num_train: int) -> list[int] | None:
    try:
        return timesteps(steps, strength, original, num_train)
    except ValueError:
        return None


@pytest.mark.parametrize("original", [1, 4, 10, 25, 33, 49, 50, 100, 300, 1000, None])
def test_timesteps_and_refusals_are_those_of_diffusers(original: int | None) -> None:
    accepted = refused = 0
    for steps in STEPS:
        for strength in STRENGTHS:
            expected = official(steps, strength, original, 1000)
            assert ours(steps, strength, original, 1000) == expected, (steps, strength)
            accepted, refused = accepted + (expected is not None), refused + (expected is None)
    assert accepted and refused


@pytest.mark.parametrize("num_train", [50, 100, 128, 4000])
def test_other_lengths_of_training(num_train: int) -> None:
    for steps in range(1, 52):
        assert ours(steps, 1.0, 50, num_train) == official(steps, 1.0, 50, num_train)


def test_origin() -> None:
    assert origin() == list(range(19, 1000, 20))
    assert origin(1000, None) == list(range(1000))
    assert DiscreteSchedule.from_betas(steps=200).origin(10) == list(range(19, 200, 20))
    assert timesteps(4) == [999, 759, 499, 259]


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"60 steps.*original_steps.*None: all 1000"):
        timesteps(60)
    with pytest.raises(ValueError, match="at least 1"):
        timesteps(0)
    for strength in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            timesteps(4, strength)
        with pytest.raises(ValueError, match="strength"):
            custom([999, 500], strength)
    for original in (0, 1001):
        with pytest.raises(ValueError, match=r"original_steps.*None for every timestep"):
            origin(1000, original)
    with pytest.raises(ValueError, match="shift"):
        flow_sigmas(4, 0.0)


def test_target_is_the_floor_of_diffusers_for_every_timestep() -> None:
    times = torch.arange(1000)
    in_float64 = 0
    for gamma in [*np.linspace(0, 1, 21).tolist(), 1 / 3]:
        expected = torch.floor((1 - gamma) * times).long().tolist()  # diffusers' own expression, in float32
        assert [target(t, gamma) for t in range(1000)] == expected
        in_float64 += sum(int((1 - gamma) * t) != s for t, s in enumerate(expected))
    assert in_float64 > 0  # that is why the arithmetic must be theirs


def test_target_between_the_ends() -> None:
    assert [target(759, g) for g in (0.0, 0.5, 1.0)] == [759, 379, 0]


def test_a_fractional_time_is_not_floored() -> None:
    # Times from another scheduler of the host: the floor would add noise at gamma = 0.
    schedule = DiscreteSchedule.from_betas()
    assert schedule.target(500.5, 0.0) == 500.5
    assert schedule.target(500.5, 0.5) == 250.25
    assert schedule.target(501.0, 0.5) == 250


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.25])
def test_custom_timesteps_are_kept_as_diffusers_keeps_them(strength: float) -> None:
    times = [999, 845, 730, 587, 443, 310, 193, 116]
    scheduler = TCDScheduler()
    scheduler.set_timesteps(timesteps=times, strength=strength)
    assert custom(times, strength) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("times", [[999, 999], [10, 20], [1000, 5], [5, -1], [5.5, 2], []])
def test_custom_timesteps_that_make_no_sense(times: list[int]) -> None:
    with pytest.raises(ValueError, match=r"timestep|at least 1"):
        custom(times)


def test_custom_timesteps_and_too_little_strength() -> None:
    with pytest.raises(ValueError, match=r"use at least 0\.500"):
        custom([999, 500], 0.4)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 4, 7, 28])
def test_flow_sigmas_are_those_of_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist())
    expected = torch.as_tensor(scheduler.sigmas)[:-1].tolist()
    assert FlowSchedule(shift).sigmas(steps) == pytest.approx(expected, rel=1e-6)


def test_flow_strength_starts_lower_with_as_many_steps() -> None:
    sigmas = flow_sigmas(5, shift=1.0, strength=0.5)
    assert sigmas == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert len(flow_sigmas(5, 3.0, 0.5)) == 5 and flow_sigmas(5, 3.0, 0.5)[0] == pytest.approx(0.75)
