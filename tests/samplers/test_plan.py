"""The plan of Algorithm 4: which levels, ends, and refusals (method.md 4)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import GAMMAS, SCHEDULES, VP, network, noise_source, normal, times_of
from torch import Tensor

from comfyui_tcd.samplers import (
    FlowSchedule,
    Step,
    plan,
    sample,
    through,
)


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
    with pytest.raises(ValueError, match="shorter"):
        through(VP, points, [0.5, 0.5])
    with pytest.raises(ValueError, match="gamma -1"):
        through(VP, points, [0.5, -1.0, 0.0])


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
