"""The loss and its parts against formulas written out by hand (method.md 2 and 3)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TinyUNet, prompts, settings, uncond
from torch import Tensor

from comfyui_tcd.samplers import DiscreteSchedule, Level, Point, Predict, origin
from comfyui_tcd.training.backbone import concat, repeat, take
from comfyui_tcd.training.objective import (
    Batch,
    Draw,
    TimeGrid,
    consistency,
    distance,
    draw_times,
    guided,
    s_odds,
    solver_step,
    tcd_loss,
    teacher_predictor,
)
from comfyui_tcd.training.pairs import generator

RANGES = ("uniform", "zero", "phases", "near")


def grid(s_range: str = "uniform", s_steps: int = 4, skip: int = 200) -> TimeGrid:
    return TimeGrid.discrete(DiscreteSchedule.from_betas(), skip, s_range, s_steps)


def double_unet() -> TinyUNet:
    backbone = TinyUNet()
    backbone.network.double()
    return backbone


def doubles(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() for k, v in cond.items()}


def some_x(count: int, seed: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, *TinyUNet.latent_shape, generator=draw, dtype=torch.float64)


# Times.


def test_the_grid_is_the_papers():
    times = grid(skip=20).points.t.tolist()
    assert times == [0, *origin(1000, 50)]
    assert times[1:3] == [19, 39] and times[-1] == 999


@pytest.mark.parametrize("skip", [30, 1001])
def test_a_skip_that_does_not_divide_the_schedule_is_refused(skip: int):
    with pytest.raises(ValueError, match=f"skip {skip} .* choose"):
        grid(skip=skip)


@pytest.mark.parametrize("s_range", RANGES)
@pytest.mark.parametrize("n", [1, 5, 50])
@pytest.mark.parametrize("s_steps", [1, 3, 4, 50, 77])
def test_odds_are_a_distribution_over_earlier_times(s_range: str, n: int, s_steps: int):
    odds = s_odds(n, s_range, s_steps)
    assert odds.shape == (n + 1, n + 1)
    assert bool((odds >= 0).all()) and not bool(odds[0].any())
    torch.testing.assert_close(odds[1:].sum(1), torch.ones(n, dtype=torch.float64))
    assert not bool(odds.triu().any()), "s must lie below t: at most t'"


def test_uniform_and_zero_odds():
    uniform, zero = s_odds(5, "uniform", 4), s_odds(5, "zero", 4)
    for n in range(1, 6):
        assert uniform[n].tolist() == pytest.approx([1 / n] * n + [0.0] * (6 - n))
        assert zero[n].tolist() == [1.0] + [0.0] * 5


def test_phases_end_at_the_edge_below():
    # 8 times in 4 segments: edges 0, 2, 4, 6. From an edge itself the next one down is aimed at.
    assert s_odds(8, "phases", 4)[1:].argmax(1).tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    # As many phases as times: s = t'.
    assert s_odds(5, "phases", 5)[1:].argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_near_reaches_at_most_30_percent_below_the_edge():
    odds = s_odds(10, "near", 2)  # edges 0 and 5; shares of a grid of 301 from 0 to 0.3
    assert odds[3].tolist() == [1.0] + [0.0] * 10
    assert odds[8, 5].item() == pytest.approx(1 / 301)
    assert odds[8, 4].item() == pytest.approx(200 / 301, abs=2 / 301)
    assert odds[8, 3].item() == pytest.approx(100 / 301, abs=2 / 301)
    assert odds[8, :3].sum().item() == odds[8, 6:].sum().item() == 0


def test_an_unknown_range_is_refused():
    with pytest.raises(ValueError, match="'far' is not one of uniform"):
        s_odds(5, "far", 4)


@pytest.mark.parametrize("s_range", RANGES)
def test_drawn_s_follows_the_odds(s_range: str):
    of = grid(s_range, 4, skip=100)
    count = 20_000
    for n in (1, 2, 7, 10):
        m = draw_times(of, settings(), torch.full((count,), n), generator(1, n)).m
        seen = torch.bincount(m, minlength=of.n + 1) / count
        odds = of.odds[n]
        assert bool((seen[odds == 0] == 0).all())
        assert bool(((seen - odds).abs() <= 5 * (odds * (1 - odds) / count).sqrt()).all()), (n, seen, odds)


def test_the_ends_of_the_random_range_stay_inside(monkeypatch: pytest.MonkeyPatch):
    for value in (0.0, 1 - 2**-53):
        monkeypatch.setattr(
            torch, "rand", lambda *size, v=value, **kw: torch.full(size, v, dtype=kw["dtype"])
        )
        for s_range in RANGES:
            of = grid(s_range, 3, skip=20)
            n = torch.arange(1, of.n + 1)
            m = draw_times(of, settings(), n, torch.Generator()).m
            assert bool((of.odds[n, m] > 0).all()), (value, s_range)


def test_w_is_uniform_in_its_range_or_fixed():
    n = torch.full((20_000,), 2)
    w = draw_times(grid(), settings(w_min=2.0, w_max=14.0), n, generator(1)).w
    assert w.dtype == torch.float64
    assert 2 <= w.min().item() < 2.01 and 13.99 < w.max().item() <= 14
    assert w.mean().item() == pytest.approx(8, abs=5 * 12 / 12**0.5 / 20_000**0.5)
    assert w.std().item() == pytest.approx(12 / 12**0.5, rel=0.02)
    fixed = draw_times(grid(), settings(w_min=7.5, w_max=7.5), n, generator(1)).w
    assert bool((fixed == 7.5).all())


def test_a_slice_of_a_draw_is_what_the_whole_draw_has_there():
    n = torch.randint(1, 6, (12,), generator=generator(4))
    whole = draw_times(grid(), settings(), n, generator(9))
    for first in range(0, 12, 4):
        part = slice(first, first + 4)
        cut = draw_times(grid(), settings(), n[part], generator(9), 12, part)
        assert all(torch.equal(a[part], b) for a, b in zip(whole, cut, strict=True))
    other = draw_times(grid(), settings(), n, generator(10))
    assert not torch.equal(whole.m, other.m) and not torch.equal(whole.w, other.w)


# Guidance.


def test_guidance_is_one_plus_w():
    cond, un = (some_x(3, 1), some_x(3, 2)), (some_x(3, 3), some_x(3, 4))
    w = torch.tensor([0.0, -1.0, 7.5], dtype=torch.float64)
    for a, c, u in zip(guided(cond, un, w), cond, un, strict=True):
        torch.testing.assert_close(a[0], c[0])  # w = 0: the prompt alone, cfg 1
        torch.testing.assert_close(a[1], u[1])  # w = -1: no prompt, cfg 0
        torch.testing.assert_close(a[2], u[2] + 8.5 * (c[2] - u[2]))  # cfg = 1 + w


def test_a_guided_step_is_linear_in_w_and_a_mixture_of_two_steps():
    backbone, of = double_unet(), grid()
    x, n = some_x(4), torch.tensor([1, 3, 4, 5])
    now, prev = of.at(n), of.at(n - 1)
    cond, un = doubles(prompts(4)), repeat(doubles(uncond()), 4)

    @torch.no_grad()
    def step(w: float) -> Tensor:
        teacher = teacher_predictor(backbone, cond, un, torch.full((4,), w, dtype=torch.float64))
        return solver_step(teacher, x, now, prev, "ddim", of.schedule)

    with torch.no_grad():
        alone = solver_step(backbone.predictor(cond), x, now, prev, "ddim", of.schedule)
        empty = solver_step(backbone.predictor(un), x, now, prev, "ddim", of.schedule)
    torch.testing.assert_close(step(0.0), alone)
    torch.testing.assert_close(step(3.0), 4 * alone - 3 * empty)
    torch.testing.assert_close(step(3.0) - step(1.0), step(5.0) - step(3.0))
    assert (alone - empty).abs().max() > 1e-3


# The teacher's step.


def literal_eq21(eps: Tensor, x: Tensor, now: Level, down: Level) -> Tensor:
    """Compute Eq. 21 as the paper prints it."""
    (a_t, s_t), (a_s, s_s) = now.broadcast(x), down.broadcast(x)
    h = (a_s / s_s).log() - (a_t / s_t).log()
    return a_s / a_t * x - s_s * torch.expm1(h) * eps


def test_ddim_and_dpm2_teachers_are_eqs_21_and_22_of_the_guided_teacher():
    backbone, of = double_unet(), grid()
    x, n = some_x(5), torch.arange(1, 6)
    now, prev = of.at(n), of.at(n - 1)
    cond, un = doubles(prompts(5)), repeat(doubles(uncond()), 5)
    w = torch.tensor([-0.5, 0.0, 1.0, 2.5, 7.0], dtype=torch.float64)

    def eps(x: Tensor, at: Point) -> Tensor:
        on, off = backbone.predictor(cond)(x, at, at)[1], backbone.predictor(un)(x, at, at)[1]
        return off + (1 + w)[:, None, None, None] * (on - off)

    with torch.no_grad():
        teacher = teacher_predictor(backbone, cond, un, w)
        first = literal_eq21(eps(x, now), x, now.level, prev.level)
        torch.testing.assert_close(solver_step(teacher, x, now, prev, "ddim", of.schedule), first)

        middle = of.schedule.at_lam((now.level.lam + prev.level.lam) / 2)
        x_u = literal_eq21(eps(x, now), x, now.level, middle.level)
        second = literal_eq21(eps(x_u, middle), x, now.level, prev.level)
        torch.testing.assert_close(solver_step(teacher, x, now, prev, "dpm2", of.schedule), second)
        torch.testing.assert_close(consistency(teacher, x, now, prev, "tcf2", of.schedule), second)
    assert (first - second).abs().max() > 1e-3


def test_mixed_prompts_in_a_batch_are_the_runs_of_each_alone():
    backbone, of = double_unet(), grid()
    x, n, w = some_x(4), torch.tensor([5, 2, 4, 1]), torch.tensor([0.0, 1.0, 3.0, 8.0])
    cond = doubles(prompts(4))
    rows: list[int] = []
    backbone.before = lambda x: rows.append(len(x))

    @torch.no_grad()
    def step(i: slice) -> Tensor:
        un = repeat(doubles(uncond()), len(x[i]))
        teacher = teacher_predictor(backbone, take(cond, i), un, w[i])
        return solver_step(teacher, x[i], of.at(n[i]), of.at(n[i] - 1), "ddim", of.schedule)

    together = step(slice(None))
    assert rows == [8], "cond and uncond are one forward of 2B rows"
    alone = torch.cat([step(slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_conditionings_of_different_kinds_do_not_mix():
    with pytest.raises(ValueError, match="differ in kind"):
        concat([{"context": torch.zeros(1, 2)}, {"pooled": torch.zeros(1, 2)}])


# The loss.


def loss_parts(of: TimeGrid, repeats: bool) -> tuple[Tensor, Tensor, Draw, dict[str, Tensor], Tensor]:
    """Four samples; or each of them once for every s below it, with the odds of that s as weights."""
    n = torch.tensor([1, 3, 4, 5])
    row = torch.arange(4)
    m, weight = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.float64)
    if repeats:
        pairs = [(i, s) for i in range(4) for s in range(int(n[i]))]
        row, m = (torch.tensor(v) for v in zip(*pairs, strict=True))
        weight = of.odds[n[row], m]
    cond = doubles(take(prompts(4), row))
    draw = Draw(n[row], m, torch.zeros(len(row), dtype=torch.float64))
    return some_x(4)[row], some_x(4, 5)[row], draw, cond, weight


@pytest.mark.parametrize("s_range", RANGES)
def test_the_all_s_gradient_is_the_mean_over_enumerated_s(s_range: str):
    of = grid(s_range, 3)
    grads: list[Tensor] = []
    losses: list[Tensor] = []
    for all_s in (True, False):
        backbone = double_unet()
        x, x_prev, draw, cond, weight = loss_parts(of, repeats=not all_s)
        predict = backbone.predictor(cond)
        config = settings(all_s=all_s, distance="l2")
        each = tcd_loss(predict, predict, Batch(x, x_prev, draw, cond), of, config)
        loss = (each.double() * weight).sum()
        loss.backward()
        losses.append(loss.detach())
        grads.append(
            torch.cat([p.grad.flatten() for p in backbone.network.parameters() if p.grad is not None])
        )
    assert losses[0].item() > 0.1
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0.0)
    assert (grads[0] - grads[1]).norm() <= 1e-6 * grads[1].norm()


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "tcfs"])
@pytest.mark.parametrize("kind", ["l2", "huber"])
def test_the_loss_is_algorithm_1s(form: str, kind: str):
    """Both maps written out, for each sample on its own."""
    backbone, of = double_unet(), grid()
    x, x_prev = some_x(4), some_x(4, 5)
    draw = Draw(torch.tensor([1, 3, 4, 5]), torch.tensor([0, 2, 1, 0]), torch.zeros(4))
    cond = doubles(prompts(4))

    def told(predict: Predict) -> Predict:
        """A network that minds s: its answer is shifted by it."""

        def with_s(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            x0, eps = predict(x, now, target)
            shift = (target.t / 1000).reshape(-1, 1, 1, 1)
            return (x0 + shift, eps - shift) if form == "tcfs" else (x0, eps)

        return with_s

    def f(i: int, x: Tensor, t: int, s: int) -> Tensor:
        predict, now, down = told(backbone.predictor(take(cond, slice(i, i + 1)))), at(t), at(s)
        eps = predict(x, now, down)[1]
        if t == s:
            return x
        if form == "tcf2":
            middle = of.schedule.at_lam((now.level.lam + down.level.lam) / 2)
            eps = predict(literal_eq21(eps, x, now.level, middle.level), middle, down)[1]
            return literal_eq21(eps, x, now.level, down.level)
        x0, eps = predict(x, now, down)
        return down.level.alpha * x0 + down.level.sigma * eps

    def at(index: int) -> Point:
        return of.at(torch.tensor([index]))

    with torch.no_grad():
        predict = told(backbone.predictor(cond))
        config = settings(student=form, distance=kind)
        each = tcd_loss(predict, predict, Batch(x, x_prev, draw, cond), of, config)
        for i, (n, m) in enumerate(zip(draw.n.tolist(), draw.m.tolist(), strict=True)):
            a, b = f(i, x[i : i + 1], n, m), f(i, x_prev[i : i + 1], n - 1, m)
            d = (a - b) ** 2 if kind == "l2" else ((a - b) ** 2 + 1e-6).sqrt() - 1e-3
            assert each[i].item() == pytest.approx(d.mean().item(), rel=1e-5)


def test_gradients_reach_the_student_alone_and_it_runs_last():
    of = grid()
    theta = {name: torch.ones(1, dtype=torch.float64, requires_grad=True) for name in ("student", "target")}
    order: list[tuple[str, bool]] = []

    def predictor(name: str) -> Predict:
        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            order.append((name, torch.is_grad_enabled()))
            return x * theta[name], x * theta[name]

        return predict

    for changes in ({}, {"student": "tcf2"}, {"all_s": True, "distance": "l2"}):
        order.clear()
        draw = Draw(torch.tensor([2, 4]), torch.tensor([0, 2]), torch.zeros(2))
        batch = Batch(some_x(2), some_x(2, 5), draw, {})
        loss = tcd_loss(predictor("student"), predictor("target"), batch, of, settings(**changes))
        loss.sum().backward()
        calls = 2 if changes.get("student") == "tcf2" else 1
        assert order == [("target", False)] * calls + [("student", True)] * calls
        assert theta["target"].grad is None and theta["student"].grad is not None


def test_distances_by_hand():
    a, b = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]]]), torch.tensor([[[0.0, 4.0]], [[1.0, 1.0]]])
    assert distance(a, b, "l2", 1e-3).tolist() == [12.5, 0.0]
    huber = distance(a, b, "huber", 1.0)
    assert huber.tolist() == pytest.approx([((10**0.5 - 1) + (17**0.5 - 1)) / 2, 0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_states_is_float32(dtype: torch.dtype):
    of = grid()

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        return x * 0.5, x * 0.25

    for changes in ({}, {"all_s": True, "distance": "l2"}):
        draw = Draw(torch.tensor([2, 4]), torch.tensor([0, 2]), torch.zeros(2))
        batch = Batch(some_x(2).to(dtype), some_x(2, 5).to(dtype), draw, {})
        each = tcd_loss(predict, predict, batch, of, settings(**changes))
        assert each.dtype == torch.float32 and bool(each.isfinite().all())


def test_a_row_of_moments_is_a_mean_over_the_levels_below() -> None:
    of = grid()
    alpha, sigma = of.points.level
    for n in range(1, of.n + 1):
        expected: list[Any] = [(v[:n]).mean().item() for v in (alpha**2, alpha * sigma, sigma**2)]
        assert of.moments[n].tolist() == pytest.approx(expected)
