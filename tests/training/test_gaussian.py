"""The optimum of TCD itself for Gaussian data, in closed form, and what telescopes from it
(method.md 6.3, 6.4).

Teacher and student are scalars: `eps = k_t x` and `eps = a_t x`. A wrong range of s, a wrong w, a missing
stop-gradient, a time off by one: each gives another optimum.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Gaussians, grid_of, kind, settings
from torch import Tensor, nn

from comfyui_tcd.samplers import Point, Predict, to_x0_eps
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import distill, student_on
from comfyui_tcd.training.objective import (
    Batch,
    Draw,
    TimeGrid,
    draw_times,
    solver_step,
    tcd_loss,
    teacher_predictor,
)
from comfyui_tcd.training.pairs import CachedLatents, generator
from comfyui_tcd.training.shards import write_shard

STD = 0.5  # of the data, as in method.md 5; without a prompt it is wider
W_MEAN = 0.75


def config_of(**changes: object) -> DistillConfig:
    return settings(**{"skip": 20, "distance": "l2", "w_min": 0.25, "w_max": 1.25, **changes})


def gaussians(times: list[float]) -> Gaussians:
    return Gaussians(times, std_uncond=0.9, std_cond=STD, shape=(1, 4, 4))


def ddim_factor(a: Tensor, alpha: Tensor, sigma: Tensor, t: int, s: int) -> Tensor:
    """x_s / x_t of a DDIM step with `eps = a x`."""
    return alpha[s] / alpha[t] + a * (sigma[s] - alpha[s] * sigma[t] / alpha[t])


def teacher_factors(backbone: Gaussians, w: float) -> Tensor:
    """`eps / x` of the guided teacher, at each time."""
    off, on = backbone.factors
    return off + (1 + w) * (on - off)


def optimum(backbone: Gaussians, of: TimeGrid, weights: Tensor, w: float = W_MEAN) -> Tensor:
    """a*, up the grid: `sum_s q_s (F(a*_{n-1}, s) g - p_s) / sum_s q_s^2`, weighted with the odds of s."""
    alpha, sigma = of.points.level
    teacher = teacher_factors(backbone, w)
    a = teacher.clone()
    for n in range(1, of.n + 1):
        g = ddim_factor(teacher[n], alpha, sigma, n, n - 1)
        over = under = torch.zeros((), dtype=torch.float64)
        for s in range(n):
            p, q = alpha[s] / alpha[n], sigma[s] - alpha[s] * sigma[n] / alpha[n]
            behind = ddim_factor(a[n - 1], alpha, sigma, n - 1, s)
            over = over + weights[n, s] * q * (behind * g - p)
            under = under + weights[n, s] * q * q
        a[n] = over / under
    return a


def lower_triangle(n: int, s_range: str) -> Tensor:
    """The odds of s, written independently of the code: rows t, columns s."""
    odds = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    for t in range(1, n + 1):
        below = {"uniform": range(t), "zero": [0], "next": [t - 1]}[s_range]
        for s in below:
            odds[t, s] = 1 / len(below)
    return odds


def scalar_student(of: TimeGrid, a: Tensor) -> Predict:
    """A network whose parameters are a_t."""
    times = of.points.t

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        index = torch.searchsorted(times, now.t.contiguous())
        return to_x0_eps("epsilon", a[index].reshape(-1, 1, 1, 1) * x, x, now.level)

    return predict


def batch_of(backbone: Gaussians, of: TimeGrid, draw: Draw, seed: int) -> Batch:
    """States of the data, and the guided teacher's step from them."""
    count = len(draw.n)
    now, prev = of.at(draw.n), of.at(draw.n - 1)
    noise = torch.randn(2, count, *backbone.latent_shape, generator=generator(seed), dtype=torch.float64)
    level = now.level.broadcast(noise[0])
    x = level.alpha * STD * noise[0] + level.sigma * noise[1]
    teacher = teacher_predictor(backbone, kind(1, count), kind(0, count), draw.w)
    with torch.no_grad():
        return Batch(x, solver_step(teacher, x, now, prev, "ddim", of.schedule), draw, {})


def learn(config: DistillConfig, steps: int, rate: float) -> tuple[Tensor, TimeGrid, Gaussians]:
    """Adam on the real loss, from the teacher without guidance, every time of the grid in each batch."""
    times = [0.0, *range(config.skip - 1, 1000, config.skip)]
    backbone = gaussians(times)
    of = grid_of(backbone, config)
    backbone.network.double()
    a = nn.Parameter(backbone.factors[1].clone())
    optimizer = torch.optim.Adam([a])
    student = scalar_student(of, a)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        n = torch.arange(1, of.n + 1).repeat(8)
        batch = batch_of(backbone, of, draw_times(of, config, n, generator(5, step)), step)
        optimizer.zero_grad()
        # Each time learns at the same speed, whatever the size of its loss.
        tcd_loss(student, student, batch, of, config).sum().backward()
        optimizer.step()
    return a.detach(), of, backbone


def test_adam_with_drawn_s_and_w_reaches_the_optimum():
    a, of, backbone = learn(config_of(skip=100), 2000, 0.02)
    goal = optimum(backbone, of, lower_triangle(of.n, "uniform"))
    start = backbone.factors[1]
    assert (goal - start)[1:].abs().max() > 0.1, "there has to be something to learn"
    assert (a - goal)[1:].abs().max() < 5e-3


@pytest.mark.parametrize("s_range", ["uniform", "zero"])
def test_adam_with_the_all_s_loss_reaches_the_optimum_exactly(s_range: str):
    config = config_of(skip=100, all_s=True, s_range=s_range, w_min=W_MEAN, w_max=W_MEAN)
    a, of, backbone = learn(config, 800, 0.03)
    goal = optimum(backbone, of, lower_triangle(of.n, s_range))
    assert (a - goal)[1:].abs().max() < 2e-5


def gradient_at(
    a: Tensor, config: DistillConfig, of: TimeGrid, backbone: Gaussians, weights: Tensor
) -> Tensor:
    """The gradient of the expected loss, every (t, s) enumerated, relative to the sum of its terms' sizes."""
    a = a.clone().requires_grad_()
    student = scalar_student(of, a)
    if config.all_s:
        n = torch.arange(1, of.n + 1)
        m, weight = torch.zeros_like(n), torch.ones(of.n, dtype=torch.float64)
    else:
        n, m = (weights > 0).nonzero(as_tuple=True)
        weight = weights[n, m]
    w = torch.full((len(n),), W_MEAN, dtype=torch.float64)
    batch = batch_of(backbone, of, Draw(n, m, w), 0)
    row_of_t = torch.stack([batch.x[(n == t).nonzero()[0, 0]] for t in range(1, of.n + 1)])
    x = row_of_t[n - 1]  # one state for each t, whatever s
    teacher = teacher_predictor(backbone, kind(1, len(n)), kind(0, len(n)), w)
    with torch.no_grad():
        x_prev = solver_step(teacher, x, of.at(n), of.at(n - 1), "ddim", of.schedule)
    each = tcd_loss(student, student, Batch(x, x_prev, batch.draw, {}), of, config).double()
    (gradient,) = torch.autograd.grad((each * weight).sum(), a)
    curvature = torch.zeros_like(a).index_add(0, n, weight * x.square().flatten(1).mean(1))
    return (gradient / curvature)[1:]


@pytest.mark.parametrize("s_range", ["uniform", "zero", "next"])
@pytest.mark.parametrize("all_s", [False, True])
def test_the_gradient_vanishes_at_the_optimum_and_nowhere_near(s_range: str, all_s: bool):
    """On the paper's own grid of 50 times."""
    ranges = {"uniform": ("uniform", 4), "zero": ("zero", 4), "next": ("phases", 50)}
    name, phases = ranges[s_range]
    config = config_of(all_s=all_s, s_range=name, s_steps=phases)
    backbone = gaussians([0.0, *range(19, 1000, 20)])
    backbone.network.double()
    of = grid_of(backbone, config)
    weights = lower_triangle(of.n, s_range)
    goal = optimum(backbone, of, weights)
    rest = gradient_at(goal, config, of, backbone, weights)
    aside = gradient_at(goal + 0.01, config, of, backbone, weights)
    assert (rest.abs() < 2e-3 * aside.abs() + 1e-7).all(), (rest.abs() / aside.abs()).max()
    assert bool((aside > 0).all())


def test_with_s_zero_one_step_of_the_student_is_the_teachers_whole_trajectory():
    config = config_of(all_s=True, s_range="zero", w_min=W_MEAN, w_max=W_MEAN)
    backbone = gaussians([0.0, *range(19, 1000, 20)])
    backbone.network.double()
    of = grid_of(backbone, config)
    a = settle(config, of, backbone)
    alpha, sigma = of.points.level
    teacher = teacher_factors(backbone, W_MEAN)
    whole = torch.ones((), dtype=torch.float64)
    for n in range(of.n, 0, -1):
        whole = whole * ddim_factor(teacher[n], alpha, sigma, n, n - 1)
    one = ddim_factor(a[of.n], alpha, sigma, of.n, 0)
    assert one.item() == pytest.approx(whole.item(), rel=1e-4)


def test_with_s_next_the_student_is_the_guided_teacher():
    config = config_of(all_s=True, s_range="phases", s_steps=50, w_min=W_MEAN, w_max=W_MEAN)
    backbone = gaussians([0.0, *range(19, 1000, 20)])
    backbone.network.double()
    of = grid_of(backbone, config)
    a = settle(config, of, backbone)
    teacher = teacher_factors(backbone, W_MEAN)
    assert (a - teacher)[1:].abs().max() < 1e-4 < (backbone.factors[1] - teacher)[1:].abs().max()


def settle(config: DistillConfig, of: TimeGrid, backbone: Gaussians) -> Tensor:
    """The minimum of the real loss by Newton's method: for each a_n a parabola, whose target hangs on
    a_{n-1}.
    """
    a = backbone.factors[1].clone()
    n = torch.arange(1, of.n + 1)
    w = torch.full((of.n,), W_MEAN, dtype=torch.float64)
    batch = batch_of(backbone, of, Draw(n, torch.zeros_like(n), w), 0)

    def slope(a: Tensor) -> Tensor:
        a = a.clone().requires_grad_()
        student = scalar_student(of, a)
        (gradient,) = torch.autograd.grad(tcd_loss(student, student, batch, of, config).sum(), a)
        return gradient

    for _ in range(2):
        for i in range(1, of.n + 1):
            one = torch.zeros_like(a)
            one[i] = 0.1
            up, down = slope(a + one)[i], slope(a - one)[i]
            a[i] -= (up + down) / (up - down) * 0.1
    return a


@pytest.mark.parametrize("all_s", [True, False])
def test_the_loop_reaches_the_optimum(tmp_path: Path, all_s: bool):
    """`distill` from end to end: latents, LoRA, guided teacher, optimizer, averages."""
    config = config_of(
        all_s=all_s,
        skip=200,
        steps=1500,
        batch=60,
        learning_rate=0.02,
        warmup=10,
        rank=1,
        alpha=4.0,
        average=0.9,
        cache_teacher=False,
        save_every=1500,
    )
    backbone = gaussians([0.0, *range(199, 1000, 200)])
    of = grid_of(backbone, config)
    draw = generator(3)
    latents = STD * torch.randn(64, *backbone.latent_shape, generator=draw)
    write_shard(tmp_path / "latents.safetensors", latents, kind(1, 64))
    source = CachedLatents([tmp_path / "latents.safetensors"], of, config.seed)
    with student_on(backbone, config) as student:
        distill(config, student, source, kind(0), of, tmp_path / "run", quiet=True)
        cells = torch.arange(6, 12)  # the row with the prompt
        with torch.no_grad():
            a = backbone.network(torch.ones(6, 1, 1, 1), cells).flatten().double()
    goal = optimum(backbone, of, lower_triangle(of.n, "uniform"))
    assert (goal - backbone.factors[1])[1:].abs().max() > 0.1
    assert (a - goal)[1:].abs().max() < (0.002 if all_s else 0.01)


def test_the_check_itself_tells_wrong_ones_apart():
    """The closed form depends on what the tests above claim to catch."""
    config = config_of(skip=100)
    backbone = gaussians([0.0, *range(99, 1000, 100)])
    of = grid_of(backbone, config)
    right = optimum(backbone, of, lower_triangle(of.n, "uniform"))
    others = [
        optimum(backbone, of, lower_triangle(of.n, "zero")),
        optimum(backbone, of, lower_triangle(of.n, "uniform"), w=W_MEAN - 1),
        optimum(backbone, of, lower_triangle(of.n, "uniform"), w=-W_MEAN),
    ]
    for other in others:
        assert (other - right)[1:].abs().max() > 0.02
