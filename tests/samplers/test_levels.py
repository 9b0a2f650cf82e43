"""Levels and prediction types: method.md 1."""

from __future__ import annotations

import math

import pytest
import torch
from paths import PATHS, normal
from torch import Tensor

from comfyui_tcd.samplers import (
    PREDICTIONS,
    DiscreteSchedule,
    Level,
    from_x0_eps,
    tcf1,
    to_x0_eps,
)

TIMES = {"vp": 601.0, "scaled": 601.0, "flow": 0.6}


def level(alpha: float, sigma: float) -> Level:
    return Level(torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


def test_half_log_snr() -> None:
    assert level(0.6, 0.3).lam.item() == pytest.approx(math.log(2))
    assert level(1.0, 0.0).lam.item() == math.inf
    assert level(0.0, 1.0).lam.item() == -math.inf


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_products_with_a_level_are_at_least_float32(given: torch.dtype, computed: torch.dtype) -> None:
    x0, eps = normal(3, 2).to(given), normal(3, 2, seed=1).to(given)
    for down in (level(0.6, 0.3), Level(torch.full([3], 0.6).double(), torch.full([3], 0.3).double())):
        x_s = tcf1(x0, eps, down)
        assert x_s.dtype == computed
        exact = 0.6 * x0.double() + 0.3 * eps.double()
        assert torch.allclose(x_s.double(), exact, rtol=0, atol=3e-7)


def test_one_level_per_sample() -> None:
    alpha = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    x = torch.ones(3, 2, 4, 5, 6)
    got, _ = Level(alpha, 1 - alpha).broadcast(x)
    assert (got * x).mean(dim=(1, 2, 3, 4)).tolist() == alpha.tolist()


def test_levels_made_in_inference_mode_can_be_trained_through() -> None:
    # ComfyUI runs nodes in inference mode; autograd refuses its tensors.
    with torch.inference_mode():
        down = DiscreteSchedule.from_betas().point(499).level
    x0 = normal(2, 3).requires_grad_()
    tcf1(x0, x0, down).sum().backward()  # pyright: ignore[reportUnknownMemberType]
    assert x0.grad is not None
    assert torch.allclose(x0.grad, (down.alpha + down.sigma).clone().expand(2, 3))


def state(kind: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Level]:
    now = PATHS[kind].point(TIMES[kind]).level
    x0, eps = normal(2, 3, 4, seed=seed), normal(2, 3, 4, seed=seed + 1)
    return now.alpha * x0 + now.sigma * eps, x0, eps, now


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_every_prediction_type_on_every_path(kind: str, path: str) -> None:
    x, x0, eps, now = state(path)
    got = to_x0_eps(kind, from_x0_eps(kind, x0, eps, now), x, now)
    assert torch.allclose(got[0], x0, rtol=0, atol=1e-12)
    assert torch.allclose(got[1], eps, rtol=0, atol=1e-12)


def test_outputs_mean_what_their_names_say() -> None:
    _, x0, eps, now = state("vp")
    assert torch.equal(from_x0_eps("epsilon", x0, eps, now), eps)
    assert torch.equal(from_x0_eps("sample", x0, eps, now), x0)
    assert torch.allclose(from_x0_eps("v", x0, eps, now), now.alpha * eps - now.sigma * x0, atol=1e-14)
    _, x0, eps, now = state("flow")
    assert torch.equal(from_x0_eps("flow", x0, eps, now), eps - x0)


def test_v_is_the_same_network_output_in_the_scaled_state() -> None:
    x, x0, eps, now = state("vp")
    scaled = PATHS["scaled"].point(TIMES["vp"]).level
    output = from_x0_eps("v", x0, eps, now)
    assert torch.allclose(from_x0_eps("v", x0, eps, scaled), output, atol=1e-13)
    assert torch.allclose(to_x0_eps("v", output, x / now.alpha, scaled)[0], x0, atol=1e-12)


@pytest.mark.parametrize("kind", ["v", "sample"])
def test_pure_noise_is_defined_for_v_and_sample(kind: str) -> None:
    x0, eps = normal(2, 3), normal(2, 3, seed=1)
    pure = level(0.0, 1.0)
    got = to_x0_eps(kind, from_x0_eps(kind, x0, eps, pure), eps, pure)
    assert torch.allclose(got[0], x0) and torch.allclose(got[1], eps)


def test_refusals_name_the_remedy() -> None:
    x = torch.zeros(2, 3)
    some_pure = Level(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="v-prediction"):
        to_x0_eps("epsilon", x, x, some_pure)
    with pytest.raises(ValueError, match="sigma = 0"):
        to_x0_eps("sample", x, x, level(1.0, 0.0))
    for call in (to_x0_eps, from_x0_eps):
        with pytest.raises(ValueError, match=r"'eps'.*epsilon, v, sample, flow"):
            call("eps", x, x, some_pure)
