"""Side by side with diffusers, same network, same noise: every intermediate of its TCDScheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from torch import Tensor

from comfyui_tcd.samplers import (
    DiscreteSchedule,
    Point,
    Predict,
    Step,
    custom,
    noise_to,
    plan,
    sample,
    tcf1,
    timesteps,
    to_x0_eps,
)

TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
SHAPE = (2, 4, 3, 3)


class Trace(NamedTuple):
    """Of every step: the timestep called, x0 and x_s, and the state after it."""

    called: list[float]
    x0: list[Tensor]
    x_s: list[Tensor]
    states: list[Tensor]


def network(x: Tensor, t: float) -> Tensor:
    """A fixed nonlinear network with outputs of unit size that depend on the timestep."""
    mix = torch.sin(torch.arange(16.0)).reshape(4, 4).to(x)
    return 1.5 * torch.tanh(torch.einsum("ij,bj...->bi...", mix, x) + 0.3 * x + t / 500 - 1)


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))


def noise_source() -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(11)
    return lambda: torch.randn(SHAPE, generator=generator)


def official(scheduler: TCDScheduler, gammas: Sequence[float]) -> Trace:
    """The run of diffusers; x0 by its DDIMScheduler, since TCDScheduler does not return it."""
    trace, x, generator = Trace([], [], [], []), start(), torch.Generator().manual_seed(11)
    ddim = DDIMScheduler(
        prediction_type=scheduler.config["prediction_type"],
        clip_sample=False,
    )
    ddim.alphas_cumprod = scheduler.alphas_cumprod
    ddim.set_timesteps(50)
    for t, gamma in zip(scheduler.timesteps, gammas, strict=True):
        output = network(x, float(t))
        trace.called.append(float(t))
        trace.x0.append(ddim.step(output, int(t), x).pred_original_sample)  # pyright: ignore
        result = scheduler.step(output, int(t), x, eta=gamma, generator=generator)
        x = result.prev_sample  # pyright: ignore[reportAttributeAccessIssue]
        trace.x_s.append(result.pred_noised_sample)  # pyright: ignore
        trace.states.append(x)
    return trace


def ours(kind: str, steps: Sequence[Step], noise: Callable[[], Tensor]) -> Trace:
    trace = Trace([], [], [], [])

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        trace.called.append(now.t.item())
        x0, eps = to_x0_eps(kind, network(x, now.t.item()), x, now.level)
        trace.x_s.append(tcf1(x0, eps, target.level))
        return x0, eps

    def callback(i: int, step: Step, x: Tensor, x0: Tensor) -> None:
        assert i == len(trace.x0) and step is steps[i]
        trace.x0.append(x0)
        if i:
            trace.states.append(x)

    trace.states.append(sample(predict, start(), steps, noise, callback=callback))
    return trace


def assert_same(ours: Trace, theirs: Trace) -> None:
    """Relative error below 1e-5, of every tensor of every step."""
    assert ours.called == theirs.called
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert a.dtype == b.dtype == torch.float32
            assert (a - b).norm() <= 1e-5 * b.norm()


def pair(kind: str, zero_snr: bool = False, original: int = 50) -> tuple[TCDScheduler, DiscreteSchedule]:
    scheduler = TCDScheduler(
        prediction_type=TYPES[kind], rescale_betas_zero_snr=zero_snr, original_inference_steps=original
    )
    return scheduler, DiscreteSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(
    ("kind", "zero_snr"), [("epsilon", False), ("v", False), ("v", True), ("sample", True)]
)
def test_every_intermediate_for_1_to_50_steps(kind: str, zero_snr: bool, gamma: float) -> None:
    scheduler, schedule = pair(kind, zero_snr)
    for count in [1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 20, 25, 26, 37, 49, 50]:
        scheduler.set_timesteps(count)
        theirs = official(scheduler, [gamma] * count)
        assert_same(ours(kind, plan(schedule, timesteps(count), gamma), noise_source()), theirs)


@pytest.mark.parametrize("count", range(1, 51))
def test_every_number_of_steps(count: int) -> None:
    scheduler, schedule = pair("epsilon")
    scheduler.set_timesteps(count)
    gammas = [((7 * i) % 11) / 10 for i in range(count)]  # one per step, 0 and 1 among them
    # diffusers never draws where eta = 0, nor do we; the same source therefore serves both.
    theirs = official(scheduler, gammas)
    assert_same(ours("epsilon", plan(schedule, timesteps(count), gammas), noise_source()), theirs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("strength", [0.3, 0.58, 0.9])
def test_strength(kind: str, strength: float) -> None:
    scheduler, schedule = pair(kind)
    for count in (1, 4, 9):
        scheduler.set_timesteps(count, strength=strength)
        theirs = official(scheduler, [0.3] * count)
        assert_same(ours(kind, plan(schedule, timesteps(count, strength), 0.3), noise_source()), theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_more_than_50_steps_on_all_timesteps(gamma: float) -> None:
    scheduler, schedule = pair("epsilon")
    scheduler.set_timesteps(120, original_inference_steps=1000)  # diffusers' way to take all 1000
    theirs = official(scheduler, [gamma] * 120)
    assert_same(ours("epsilon", plan(schedule, timesteps(120, 1.0, None), gamma), noise_source()), theirs)


def test_custom_timesteps() -> None:
    times = [999, 845, 730, 587, 443, 310, 193, 116]
    scheduler, schedule = pair("v")
    scheduler.set_timesteps(timesteps=times)
    theirs = official(scheduler, [0.3] * 8)
    assert_same(ours("v", plan(schedule, custom(times), 0.3), noise_source()), theirs)


def test_our_own_betas_are_close_enough() -> None:
    # float32 products, as diffusers makes them: the networks see the levels they were trained with.
    scheduler, _ = pair("epsilon")
    schedule = DiscreteSchedule.from_betas(dtype=torch.float32)
    scheduler.set_timesteps(8)
    theirs = official(scheduler, [0.3] * 8)
    assert_same(ours("epsilon", plan(schedule, timesteps(8), 0.3), noise_source()), theirs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("count", [1, 4, 20, 50])
def test_gamma_0_is_ddim_on_the_same_timesteps(kind: str, count: int) -> None:
    _, schedule = pair(kind)
    ddim = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=TYPES[kind],  # pyright: ignore[reportArgumentType]
        clip_sample=False,
        set_alpha_to_one=False,  # ends at timestep 0, not at sigma 0
    )
    times, x = timesteps(count), start()
    for t, t_next in zip(times, [*times[1:], 0], strict=True):
        # It goes down by num_train_timesteps // num_inference_steps, here the step that we need.
        ddim.num_inference_steps = 1
        ddim.register_to_config(num_train_timesteps=t - t_next)
        x = ddim.step(network(x, float(t)), t, x).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
    ran = ours(kind, plan(schedule, times, 0.0), forbidden)
    assert (ran.states[-1] - x).norm() <= 1e-5 * x.norm()


def forbidden() -> Tensor:
    raise AssertionError("noise was drawn")


def test_epsilon_is_refused_at_zero_terminal_snr() -> None:
    _, schedule = pair("epsilon", zero_snr=True)
    with pytest.raises(ValueError, match="v-prediction"):
        ours("epsilon", plan(schedule, timesteps(4), 0.3), noise_source())


def test_add_noise() -> None:
    scheduler, schedule = pair("epsilon")
    x0, z, t = start(), noise_source()(), torch.tensor([999, 259])
    expected = scheduler.add_noise(x0, z, t)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(noise_to(schedule, t, x0, z), expected, rtol=1e-6, atol=1e-6)
    one = scheduler.add_noise(x0, z, torch.tensor([499, 499]))  # pyright: ignore[reportArgumentType]
    assert torch.allclose(noise_to(schedule, 499, x0, z), one, rtol=1e-6, atol=1e-6)


def test_the_protocol_is_plain_callables() -> None:
    predict: Predict = lambda x, now, target: (x, x)  # noqa: E731
    assert sample(predict, start(), [], forbidden).equal(start())
