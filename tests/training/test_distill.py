"""The loop: it is Algorithm 2, its paths agree, its base stays whole, and what stops it says why."""

from __future__ import annotations

import json
import math
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import (
    Stop,
    TinyUNet,
    data_free,
    fingerprint,
    grid_of,
    prompts,
    run,
    same_run,
    settings,
    stop_at,
    tinier,
    uncond,
)
from torch import Tensor

from comfyui_tcd.samplers import Level, Point
from comfyui_tcd.training import stage
from comfyui_tcd.training.backbone import take
from comfyui_tcd.training.checkpoint import load_tensors
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import BEST, CHECKPOINT, LORA, Student, distill, student_on
from comfyui_tcd.training.lora import load_lora, merge_lora
from comfyui_tcd.training.objective import Batch, draw_times, tcd_loss
from comfyui_tcd.training.optimizer import learning_rate
from comfyui_tcd.training.pairs import CachedLatents, Source, generator
from comfyui_tcd.training.report import Validation, read_log
from comfyui_tcd.training.run import estimate, forwards_of, train
from comfyui_tcd.training.shards import write_shard
from comfyui_tcd.training.splus import attached
from comfyui_tcd.training.unet_layers import diffusers_names


def step_of(folder: Path) -> int:
    return json.loads(load_tensors(folder / CHECKPOINT)[1]["progress"])["step"]


def weights_of(folder: Path, group: str = "student") -> dict[str, Tensor]:
    tensors, _ = load_tensors(folder / CHECKPOINT)
    return {k.removeprefix(f"{group}/"): v for k, v in tensors.items() if k.startswith(f"{group}/")}


def validation_of(backbone: TinyUNet, config: DistillConfig, count: int = 2) -> Validation:
    noise = torch.randn(count, *backbone.latent_shape, generator=generator(99))
    return Validation(backbone, prompts(count), uncond(), grid_of(backbone, config), 1.0, noise)


def latents(folder: Path, config: DistillConfig, count: int = 12) -> CachedLatents:
    path = folder / "latents.safetensors"
    write_shard(path, torch.randn(count, *TinyUNet.latent_shape, generator=generator(5)), prompts(count))
    return CachedLatents([path], grid_of(TinyUNet(), config), config.seed)


# Algorithm 2, written a second time: sample by sample, on three networks, with every formula in place.


def by_the_book(
    config: DistillConfig, source: Source
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Weights, their average and the losses of a run."""
    teacher, ours, behind = TinyUNet(), TinyUNet(), TinyUNet()
    grid = grid_of(teacher, config)
    with student_on(ours, config) as student, student_on(behind, config) as lagging:
        theta, minus = student.parameters(), lagging.parameters()
        average = {k: v.detach().clone() for k, v in theta.items()}
        adam = torch.optim.AdamW(theta.values(), weight_decay=config.weight_decay)
        count = config.batch * config.accumulation
        losses: list[float] = []

        def at(index: int) -> Point:
            return grid.at(torch.tensor([index]))

        def line(x0: Tensor, eps: Tensor, at: Level) -> Tensor:
            return at.alpha.float() * x0 + at.sigma.float() * eps

        def second_order(predict: Any, x: Tensor, now: Point, down: Point) -> Tensor:
            middle = grid.schedule.at_lam((now.level.lam + down.level.lam) / 2)
            x_u = line(*predict(x, now, down), middle.level)  # pyright: ignore
            eps = predict(x_u, middle, down)[1]
            x0 = (x - now.level.sigma.float() * eps) / now.level.alpha.float()
            return line(x0, eps, down.level)

        for step in range(config.steps):
            pairs = source.batch(step, count, slice(None))
            draw = draw_times(grid, config, pairs.n, generator(config.seed, 1, step))
            guidance = draw.w
            if pairs.in_row is not None:  # what leads to the sample before
                guidance = torch.where(pairs.in_row.follows, pairs.in_row.w, guidance)
            total = torch.zeros(())
            for i in range(count):
                x, cond = pairs.x[i : i + 1], take(pairs.cond, slice(i, i + 1))
                n, m, w = int(draw.n[i]), int(draw.m[i]), float(guidance[i])
                now, prev, down = at(n), at(n - 1), at(m)

                def guided(x: Tensor, now: Point, down: Point, cond: Any = cond, w: float = w) -> Any:
                    on = teacher.predictor(cond)(x, now, down)
                    off = teacher.predictor(uncond())(x, now, down)
                    return tuple(b + (1 + w) * (a - b) for a, b in zip(on, off, strict=True))

                def f(who: Student, x: Tensor, now: Point, down: Point, cond: Any = cond) -> Tensor:
                    if float(now.t) == float(down.t):
                        return x
                    predict = who.predictor(cond)
                    if config.student == "tcf2":
                        return second_order(predict, x, now, down)
                    return line(*predict(x, now, down), down.level)

                with torch.no_grad():
                    if config.solver == "dpm2":
                        x_prev = second_order(guided, x, now, prev)
                    else:
                        x_prev = line(*guided(x, now, prev), prev.level)
                    aim = f(lagging, x_prev, prev, down)
                square = (f(student, x, now, down) - aim).square()
                if config.distance == "huber":
                    square = (square + config.huber_c**2).sqrt() - config.huber_c
                total = total + square.mean() / count
            adam.zero_grad()
            total.backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theta.values() if p.grad is not None))
            for parameter in theta.values():
                assert parameter.grad is not None
                parameter.grad *= min(1.0, config.clip / norm)
            warm = (step + 1) / config.warmup
            cosine = 0.5 + 0.5 * math.cos(math.pi * (step - config.warmup) / (config.steps - config.warmup))
            adam.param_groups[0]["lr"] = config.learning_rate * (warm if step < config.warmup else cosine)
            adam.step()
            losses.append(total.item())
            with torch.no_grad():
                keep = config.target_decay if config.target == "ema" else 0.0
                mu = min(config.average, (1 + step) / (10 + step))
                for k, p in theta.items():
                    minus[k].copy_(keep * minus[k] + (1 - keep) * p)
                    average[k].copy_(mu * average[k] + (1 - mu) * p)
        return {k: p.detach().clone() for k, p in theta.items()}, average, losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": "ema", "target_decay": 0.6, "cache_teacher": False},
        {"consecutive": 2, "accumulation": 2, "trajectories": 4},
        {"student": "tcfs", "accumulation": 2, "trajectories": 4, "s_range": "phases", "s_steps": 3},
        {"student": "tcf2", "solver": "dpm2", "cache_teacher": False, "distance": "l2"},
        {"student": "tcfs", "target": "ema", "target_decay": 0.9, "source": "latents", "weight_decay": 0.1},
    ],
    ids=["cached", "ema", "in a row", "S+ accumulated", "second order", "S+ ema latents"],
)
def test_the_loop_is_algorithm_2(tmp_path: Path, changes: dict[str, Any]):
    real = changes.pop("source", None) == "latents"
    config = settings(**changes, steps=4, save_every=4, average=0.5)

    def source(folder: Path) -> Source:
        return latents(tmp_path, config) if real else data_free(TinyUNet(), config, folder)

    theta, average, losses = by_the_book(config, source(tmp_path / "book"))
    backbone = TinyUNet()
    run(config, tmp_path, backbone, source(tmp_path) if real else data_free(backbone, config, tmp_path))
    seen = [r["loss"] for r in read_log(tmp_path / "log.jsonl")]
    assert seen == pytest.approx(losses, rel=2e-4)
    start: dict[str, Tensor] = {}
    with student_on(TinyUNet(), config) as student:
        start = {k: p.detach().clone() for k, p in student.parameters().items()}
    for group, expected in (("student", theta), ("average", average)):
        got = weights_of(tmp_path, group)
        assert set(got) == set(expected)
        moved = torch.cat([(expected[k] - start[k]).flatten() for k in expected])
        wrong = torch.cat([(expected[k] - got[k]).flatten() for k in expected])
        assert wrong.norm() < 0.01 * moved.norm(), group  # Adam makes much of a small gradient's rounding


def test_the_second_shard_is_the_teachers_too(tmp_path: Path):
    """Made in the middle of a run, with adapters that have learnt."""
    config = settings(learning_rate=0.05)
    run(config, tmp_path / "run")
    alone = data_free(TinyUNet(), config, tmp_path / "alone")
    for step in range(config.steps):
        alone.batch(step, 4, slice(None))
    a, b = (load_tensors(tmp_path / n / "pairs" / "pairs-00002.safetensors")[0] for n in ("run", "alone"))
    assert all(torch.equal(a[k], b[k]) for k in b)


# One step: the order of the forwards, and paths that must agree.


def test_teacher_target_and_student_run_in_this_order_with_no_graph_alive(tmp_path: Path):
    """The target has the adapter on (B16 of docs/known-defects.md)."""
    config = settings(
        steps=2, batch=2, accumulation=2, target="ema", target_decay=0.5, cache_teacher=False, warmup=0
    )
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    calls: list[tuple[str, int, bool, int]] = []

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive.add(self)

    backbone = TinyUNet()

    def watch(student: Student) -> None:
        layer = next(iter(student.lora.layers.values()))
        own = layer.lora_A["tcd"].weight.data_ptr()

        def before(x: Tensor) -> None:
            lent = layer.lora_A["tcd"].weight.data_ptr() != own
            who = "teacher" if layer._disable_adapters else "target" if lent else "student"
            calls.append((who, len(x), torch.is_grad_enabled(), len(alive)))

        backbone.before = before

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        run(config, tmp_path, backbone, latents(tmp_path, config), inside=watch)
    one = [("teacher", 4, False, 0), ("target", 2, False, 0), ("student", 2, True, 0)]
    assert calls == one * 4


def gradient(config: DistillConfig, folder: Path, source: Source | None = None) -> tuple[Tensor, float]:
    """Of the first step, from adapters that have learnt something, in float64 as far as it goes."""
    backbone = TinyUNet()
    backbone.network.double()
    kept: list[Any] = []

    def begin(student: Student) -> None:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in student.parameters().items():
                if name.endswith("lora_up") or "net.2" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        kept.append(student.parameters())

    outcome = run(config, folder, backbone, source or data_free(backbone, config, folder), inside=begin)
    grads = [p.grad for p in kept[0].values()]
    assert all(g is not None for g in grads)
    return torch.cat([g.flatten() for g in grads]), outcome.loss


ONE = {"steps": 1, "warmup": 0, "clip": 0.0, "save_every": 1}


@pytest.mark.parametrize(
    "form",
    [{}, {"consecutive": 3}, {"student": "tcfs", "target": "ema"}, {"all_s": True, "distance": "l2"}],
)
def test_micro_batches_are_one_batch(tmp_path: Path, form: dict[str, Any]):
    shape = {"trajectories": 4, **ONE, **form}
    whole, loss = gradient(settings(batch=8, accumulation=1, **shape), tmp_path / "1")
    for cuts in (2, 8):
        parts, mean = gradient(settings(batch=8 // cuts, accumulation=cuts, **shape), tmp_path / str(cuts))
        exact = 2e-5 if "student" in form else 1e-6  # the embedding of s computes in float32
        assert (parts - whole).norm() < exact * whole.norm()
        assert mean == pytest.approx(loss, rel=1e-6)


class Unchained(stage.ChainedTargets):
    """Computes every target by a forward of its own, as Algorithm 1 is written."""

    def loss(self, predictor: Any, batch: Batch, follows: Tensor, start: int, grid: Any, config: Any):
        predict = predictor(batch.cond)
        return tcd_loss(predict, predict, batch, grid, config)


@pytest.mark.parametrize("length", [2, 3, 5])
@pytest.mark.parametrize("form", [{}, {"all_s": True, "distance": "l2"}])
def test_the_students_word_on_one_pair_is_the_aim_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, form: dict[str, Any]
):
    config = settings(batch=8, trajectories=4, consecutive=length, **ONE, **form)
    linked, loss = gradient(config, tmp_path / "linked")
    monkeypatch.setattr(stage, "ChainedTargets", Unchained)
    asked, same = gradient(config, tmp_path / "asked")
    assert (linked - asked).norm() < 1e-5 * asked.norm()  # the teacher's step was made in float32
    assert loss == pytest.approx(same, rel=1e-5)


@pytest.mark.parametrize(("batch", "asked"), [(12, [6]), (4, [2, 2, 2]), (3, [2, 1, 2, 1]), (1, [1, 0] * 6)])
def test_the_target_is_asked_of_the_first_in_a_row_alone(tmp_path: Path, batch: int, asked: list[int]):
    """Also where a row is cut: the part before hands on what was said."""
    shape = {"consecutive": 2, "skip": 250, "trajectories": 3, **ONE}  # 4 times: rows of two throughout
    backbone, seen = TinyUNet(), list[int]()

    def watch(student: Student) -> None:
        backbone.before = lambda x: None if torch.is_grad_enabled() else seen.append(len(x))

    config = settings(batch=batch, accumulation=12 // batch, **shape)
    data_free(backbone, config, tmp_path).batch(0, 12, slice(None))
    run(config, tmp_path, backbone, data_free(backbone, config, tmp_path), inside=watch)
    assert seen == [count for count in asked if count]


@pytest.mark.parametrize("form", [{}, {"distance": "l2"}, {"all_s": True, "distance": "l2"}])
def test_a_cached_teacher_and_one_asked_in_the_loop_give_the_same_gradient(
    tmp_path: Path, form: dict[str, Any]
):
    cached, _ = gradient(settings(cache_teacher=True, **ONE, **form), tmp_path / "a")
    asked, _ = gradient(settings(cache_teacher=False, **ONE, **form), tmp_path / "b")
    assert (cached - asked).norm() < 1e-6 * asked.norm()


def test_a_cached_teacher_is_not_used_for_dpm2(tmp_path: Path):
    shape = {"solver": "dpm2", "cache_teacher": False, **ONE}
    config = settings(**shape)
    backbone = TinyUNet()
    backbone.network.double()
    with_teacher = data_free(backbone, settings(**ONE), tmp_path / "a")
    assert with_teacher.keep_teacher
    given, _ = gradient(config, tmp_path / "a", with_teacher)
    asked, _ = gradient(config, tmp_path / "b")
    assert (given - asked).norm() < 1e-6 * asked.norm()


def test_a_batch_is_the_mean_of_its_samples(tmp_path: Path):
    """Prompts of a batch do not mix: each sample alone gives its share of the gradient."""
    config = settings(trajectories=4, batch=8, **ONE)
    whole, _ = gradient(config, tmp_path / "whole")
    alone: list[Tensor] = []
    backbone = TinyUNet()
    backbone.network.double()
    shared = data_free(backbone, config, tmp_path / "shared")
    all_pairs = shared.batch(0, 8, slice(None))
    grid = grid_of(backbone, config)
    for i in range(8):

        class OnlyOne:
            def batch(self, step: int, total: int, part: slice, i: int = i) -> Any:
                return shared.batch(0, 8, slice(i, i + 1))

        class Drawn:
            def __call__(self, *args: Any, i: int = i) -> Any:
                return draw_times(
                    grid, config, all_pairs.n[i : i + 1], generator(7, 1, 0), 8, slice(i, i + 1)
                )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "draw_times", Drawn())
            alone.append(gradient(settings(batch=1, **ONE), tmp_path / str(i), OnlyOne())[0])
    assert (torch.stack(alone).mean(0) - whole).norm() < 1e-6 * whole.norm()


# The base, and the host.


@pytest.mark.parametrize("form", [{"student": "tcf1"}, {"student": "tcfs", "target": "ema"}])
def test_a_run_leaves_base_and_random_numbers_as_they_were(tmp_path: Path, form: dict[str, Any]):
    backbone = TinyUNet()
    backbone.network.eval()
    for parameter in list(backbone.network.parameters())[::2]:
        parameter.requires_grad_(False)
    before, state = fingerprint(backbone.network), torch.get_rng_state()
    config = settings(**form)
    run(config, tmp_path, backbone, validation=validation_of(backbone, config))
    assert fingerprint(backbone.network) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_hangs_on_its_seed_and_not_on_the_hosts(tmp_path: Path):
    for name, seed, host in (("a", 7, 0), ("b", 7, 1), ("c", 8, 0)):
        torch.manual_seed(host)
        run(settings(seed=seed, steps=3), tmp_path / name)
    assert same_run(tmp_path / "a", tmp_path / "b")
    assert not same_run(tmp_path / "a", tmp_path / "c")


# Stops.


class Count:
    """Raises at the n-th call of the network."""

    def __init__(self, at: int, how: Callable[[], None]) -> None:
        self.calls, self.at, self.how = 0, at, how

    def __call__(self, x: Tensor) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.how()


def ctrl_c() -> None:
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)


def broken() -> None:
    raise RuntimeError("the network failed")


def calls_of(config: DistillConfig, folder: Path) -> int:
    counter = Count(0, broken)
    backbone = TinyUNet()
    backbone.before = counter
    run(config, folder, backbone, validation=validation_of(backbone, config))
    return counter.calls


def test_a_step_that_is_cut_off_in_the_optimizer_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings(steps=5, save_every=2, target="ema")
    run(config, tmp_path / "whole")
    real = torch.optim.AdamW.step
    counter = Count(4, ctrl_c)

    def half(self: torch.optim.AdamW, closure: Any = None) -> Any:
        if counter.calls == 3:  # one parameter is already changed
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1)
        counter(torch.empty(0))
        return real(self, closure)

    backbone = TinyUNet()
    before = fingerprint(backbone.network)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", half)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut", backbone)
    assert fingerprint(backbone.network) == before
    assert step_of(tmp_path / "cut") == 2, "three steps were whole, two of them saved"
    run(config, tmp_path / "cut", backbone)
    assert same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_stop_while_weights_are_lent_saves_the_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An interrupt may hit the very lines that give the weights back."""
    config = settings(steps=4, save_every=4, target="ema", target_decay=0.5)
    run(config, tmp_path / "whole")
    backbone, stuck = TinyUNet(), Count(3, ctrl_c)

    def lend(predict: Any, trained: Any, other: Any) -> Any:
        def never_back(x: Tensor, now: Point, target: Point) -> Any:
            mine = {k: p.data for k, p in trained.items()}
            for k, p in trained.items():
                p.data = other[k]
            out = predict(x, now, target)
            stuck(x)  # the weights are still lent
            for k, p in trained.items():
                p.data = mine[k]
            return out

        return never_back

    with monkeypatch.context() as patch:
        patch.setattr(stage, "averaged", lend)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "cut", backbone)
    assert step_of(tmp_path / "cut") == 2
    assert any(
        not torch.equal(v, weights_of(tmp_path / "cut", "target")[k])
        for k, v in weights_of(tmp_path / "cut").items()
    )
    run(config, tmp_path / "cut", backbone)
    assert same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_hosts_interrupt_keeps_a_checkpoint_and_a_lora(tmp_path: Path):
    config = settings(save_every=100)
    with pytest.raises(Stop, match="at 3"):
        run(config, tmp_path, on_step=stop_at(3))
    assert step_of(tmp_path) == 3
    tensors, metadata = load_lora(tmp_path / LORA)
    assert metadata["tcd.step"] == "3"
    assert any(bool(v.any()) for k, v in tensors.items() if k.endswith("lora_up.weight"))
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]


def poison(at: int, value: float, student_of: list[Student]) -> Callable[[int, float], None]:
    def on_step(done: int, loss: float) -> None:
        if done == at:
            with torch.no_grad():
                next(iter(student_of[0].parameters().values())).fill_(value)

    return on_step


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_stops_and_the_last_good_checkpoint_stays(tmp_path: Path, value: float):
    config = settings(save_every=2)
    with pytest.raises(Stop):
        run(config, tmp_path / "good", on_step=stop_at(2))
    students: list[Student] = []
    backbone = TinyUNet()
    before = fingerprint(backbone.network)
    with pytest.raises(
        ValueError, match=r"loss (nan|inf).* at step 4: the run diverged. Lower learning_rate"
    ) as stop:
        run(config, tmp_path / "bad", backbone, inside=students.append, on_step=poison(3, value, students))
    assert f"{tmp_path / 'bad' / CHECKPOINT}" in str(stop.value) and "0.001" in str(stop.value)
    assert fingerprint(backbone.network) == before
    good, bad = (load_tensors(tmp_path / n / CHECKPOINT)[0] for n in ("good", "bad"))
    assert set(good) == set(bad) and all(torch.equal(good[k], bad[k]) for k in good)
    assert not (tmp_path / "bad" / LORA).exists()
    run(config, tmp_path / "bad")  # nothing is poisoned this time
    run(config, tmp_path / "good")
    assert same_run(tmp_path / "bad", tmp_path / "good")


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path):
    def break_gradient(student: Student) -> None:
        next(iter(student.parameters().values())).register_hook(lambda g: g * math.nan)

    with pytest.raises(ValueError, match=r"gradient norm nan at step 1: .* Nothing had been saved yet"):
        run(settings(), tmp_path, inside=break_gradient)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_run_that_learns_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="every lora_up is zero, so nothing was learnt"):
        run(settings(learning_rate=0.0), tmp_path)
    assert not (tmp_path / LORA).exists()


def test_a_step_larger_than_a_shard_and_no_prompts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="less than one step of 16; raise trajectories"):
        run(settings(batch=16), tmp_path)
    empty = {k: v[:0] for k, v in prompts(1).items()}
    for shards in (None, []):
        with pytest.raises(ValueError, match="the prompt list is empty"):
            train(settings(), TinyUNet(), empty, uncond(), tmp_path, shards=shards)


# What a run writes.


def test_learning_rate_and_log(tmp_path: Path):
    config = settings(steps=6, warmup=2, learning_rate=1e-3)
    run(config, tmp_path)
    records = read_log(tmp_path / "log.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    cosine = [1e-3 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert [r["lr"] for r in records] == pytest.approx([5e-4, 1e-3, *cosine])
    assert all(math.isfinite(r["loss"]) and r["norm"] > 0 for r in records)
    flat = settings(warmup=0, decay="constant")
    assert [learning_rate(flat, s) for s in range(6)] == [flat.learning_rate] * 6


def test_settings_go_into_the_folder_and_the_lora(tmp_path: Path):
    config = settings(s_range="near")
    run(config, tmp_path, metadata={"base": "tiny"})
    assert DistillConfig.resolve("sdxl", tmp_path / "config.toml") == config
    metadata = load_lora(tmp_path / LORA)[1]
    assert metadata.pop("base") == "tiny" and metadata.pop("tcd.step") == "6"
    assert {k.removeprefix("tcd."): json.loads(v) for k, v in metadata.items()} == config.as_dict()


def test_the_saved_lora_is_the_average_and_with_average_0_the_last(tmp_path: Path):
    for average in (0.9, 0.0):
        folder = tmp_path / str(average)
        run(settings(average=average, steps=4), folder)
        tensors, _ = load_lora(folder / LORA)
        last, mean = weights_of(folder), weights_of(folder, "average")
        assert all(torch.equal(last[k], mean[k]) for k in last) == (average == 0.0)
        names = diffusers_names(name.rpartition(".")[0] for name in mean)
        for name, value in mean.items():
            layer, _, factor = name.rpartition(".")
            saved = tensors[f"lora_unet_{names[layer].replace('.', '_')}.{factor}.weight"]
            assert torch.equal(saved, value.half())


def test_validations_draw_pictures_and_the_best_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings(steps=7, validate_every=2)
    figures = iter([math.nan, 0.5, 0.2, 0.3])
    real = Validation.figure

    def told(self: Validation, students: dict[int, Tensor]) -> dict[str, float]:
        return {**real(self, students), "validation": next(figures)}

    monkeypatch.setattr(Validation, "figure", told)
    backbone = TinyUNet()
    outcome = run(config, tmp_path, backbone, validation=validation_of(backbone, config))
    assert (outcome.best, outcome.best_step, outcome.validation) == (0.2, 6, 0.3)
    assert outcome.steps == 7 and math.isfinite(outcome.loss)
    best, metadata = load_lora(tmp_path / BEST)
    assert (metadata["tcd.step"], metadata["tcd.validation"]) == ("6", "0.200000")
    last, _ = load_lora(tmp_path / LORA)
    assert any(not torch.equal(best[k], last[k]) for k in best)
    records = {r["step"]: r for r in read_log(tmp_path / "log.jsonl")}
    assert [s for s, r in records.items() if "validation" in r] == [2, 4, 6, 7]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == [f"step-00000{s}.png" for s in (2, 4, 6, 7)]
    with Image.open(tmp_path / "step-000002.png") as picture:
        assert picture.size == (4 * 4, 2 * 4)  # the teacher and 1, 2, 4 steps of five, for two prompts


@pytest.mark.parametrize("form", ["tcf1", "tcf2", "tcfs"])
def test_a_validation_is_of_the_averaged_student_with_its_own_map(tmp_path: Path, form: str):
    """Against a network that the saved LoRA was merged into."""
    config = settings(student=form, steps=3, learning_rate=0.01, average=0.5)
    backbone = TinyUNet()
    outcome = run(config, tmp_path, backbone, validation=validation_of(backbone, config))
    tensors, _ = load_lora(tmp_path / LORA)
    merged = TinyUNet()
    merge_lora(merged.network, tensors)
    check = validation_of(TinyUNet(), config)
    teacher = check.teacher()
    predict = merged.predictor(check.prompts)
    if form == "tcfs":
        with attached(merged.network, tensors=tensors) as embedding, torch.no_grad():
            students = check.student(embedding.told(predict))
    else:
        with torch.no_grad():
            students = check.student(predict, 2 if form == "tcf2" else 1)
    assert sorted(students) == [1, 2, 4]
    expected = sum(float((x - teacher).square().mean().sqrt()) for x in students.values()) / 3
    assert outcome.validation == pytest.approx(expected, rel=2e-3)
    with torch.no_grad():
        others = check.student(check.backbone.predictor(check.prompts))
    assert check.figure(others)["validation"] != pytest.approx(expected, rel=1e-2)


# The entry point.


@pytest.mark.parametrize("real", [False, True])
def test_train_puts_the_parts_together(tmp_path: Path, real: bool):
    config = settings(steps=3, validation_prompts=2)
    shards = None
    if real:
        latents(tmp_path, config)
        shards = [tmp_path / "latents.safetensors"]
    backbone = TinyUNet()
    before = fingerprint(backbone.network)
    folder = tmp_path / "run"
    outcome = train(config, backbone, prompts(3), uncond(), folder, shards=shards, quiet=True)
    assert fingerprint(backbone.network) == before
    assert outcome.steps == 3 and outcome.best_step == 3
    assert {p.name for p in folder.iterdir()} >= {CHECKPOINT, LORA, BEST, "log.jsonl", "config.toml"}
    assert bool(list(folder.glob("pairs-*"))) != real
    metadata = load_lora(folder / LORA)[1]
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "4.0")


def test_an_estimate_counts_what_is_trained_and_leaves_the_network_alone():
    backbone = TinyUNet()
    before = fingerprint(backbone.network)
    sizes = [estimate(settings(rank=rank, student="tcfs"), backbone, prompts(3)) for rank in (2, 4)]
    assert fingerprint(backbone.network) == before
    with student_on(backbone, settings(rank=4, student="tcfs")) as student:
        assert sizes[1].parameters == sum(p.numel() for p in student.parameters().values())
    assert sizes[0].memory < sizes[1].memory and sizes[0].seconds > 0
    assert "M trained parameters" in str(sizes[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"reuse": 2, "consecutive": 2},
        {"consecutive": 3},
        {"student": "tcf2", "consecutive": 2},
        {"solver": "dpm2", "cache_teacher": False},
        {"student": "tcfs", "target": "ema", "source": "latents"},
    ],
    ids=["in a row", "cut", "second order", "dpm2", "latents"],
)
def test_the_forwards_of_an_estimate_are_those_of_a_run(tmp_path: Path, changes: dict[str, Any]):
    pictures = changes.pop("source", None) == "latents"
    config = settings(skip=250, trajectories=2, steps=4, s_range="zero", **changes)  # whole shards of 8 pairs
    backbone, seen = tinier(), {True: 0, False: 0}

    def watch(student: Student) -> None:
        backbone.before = lambda x: seen.update({(on := torch.is_grad_enabled()): seen[on] + len(x)})

    source = latents(tmp_path, config) if pictures else data_free(backbone, config, tmp_path)
    run(config, tmp_path, backbone, source, inside=watch)
    sample = forwards_of(config, pictures)
    cut = 2 if config.linked == 3 else 0  # of four steps; which of them cut a row is a matter of chance
    assert seen[True] == 16 * sample.trained and abs(seen[False] - 16 * sample.alone) <= cut


def test_distill_resumes_nothing_in_a_fresh_folder(tmp_path: Path):
    config = settings(steps=2, warmup=0)
    backbone = TinyUNet()
    with student_on(backbone, config) as student:
        source = data_free(backbone, config, tmp_path)
        outcome = distill(config, student, source, uncond(), grid_of(backbone, config), tmp_path, quiet=True)
    assert (outcome.steps, outcome.validation, outcome.best, outcome.best_step) == (2, None, None, None)
