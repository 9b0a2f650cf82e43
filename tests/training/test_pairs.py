"""Where training states come from: the teacher's trajectories, and shards of latents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import TinyUNet, data_free, grid_of, prompts, settings, uncond
from torch import Tensor

from comfyui_tcd.samplers import Level
from comfyui_tcd.training import pairs as module
from comfyui_tcd.training.backbone import cond_and_uncond, repeat, take
from comfyui_tcd.training.checkpoint import load_tensors, save_tensors
from comfyui_tcd.training.objective import TimeGrid, guided, solver_step, teacher_predictor
from comfyui_tcd.training.pairs import (
    CachedLatents,
    OnPairs,
    Pairs,
    Trajectories,
    eps_of,
    generator,
    roll_out,
)
from comfyui_tcd.training.shards import write_shard

EVERY = slice(None)


def grid() -> TimeGrid:
    return grid_of(TinyUNet(), settings())


def flat(pairs: Pairs) -> list[Tensor]:
    teacher = [] if pairs.teacher is None else [v for prediction in pairs.teacher for v in prediction]
    return [pairs.x, pairs.n, *(pairs.cond[k] for k in sorted(pairs.cond)), *teacher]


def same(a: Pairs, b: Pairs) -> bool:
    return all(torch.equal(u, v) for u, v in zip(flat(a), flat(b), strict=True))


# The teacher's trajectories.


def test_a_trajectory_is_the_guided_teachers_ddim():
    backbone, of = TinyUNet(), grid()
    noise = torch.randn(3, *backbone.latent_shape, generator=generator(1))
    w = torch.tensor([0.0, 2.0, 7.0])
    data = roll_out(backbone, prompts(3), uncond(), of, w, noise)
    assert data["n"].tolist() == [n for n in range(of.n, 0, -1) for _ in range(3)]
    assert data["row"].tolist() == [0, 1, 2] * of.n
    guided = teacher_predictor(backbone, prompts(3), repeat(uncond(), 3), w)
    x = noise
    for n in range(of.n, 0, -1):
        here = data["n"] == n
        torch.testing.assert_close(data["x"][here], x, rtol=1e-5, atol=1e-5)
        now, down = of.at(torch.tensor(n)), of.at(torch.tensor(n - 1))
        with torch.no_grad():
            on, off = cond_and_uncond(backbone, prompts(3), repeat(uncond(), 3), x, now, down)
            x = solver_step(guided, x, now, down, "ddim", of.schedule)
        torch.testing.assert_close(data["x0_c"][here], on[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(data["x0_uncond"][here], off[0], rtol=1e-5, atol=1e-5)
    assert not any(v.requires_grad for v in data.values())


def test_every_pair_comes_with_its_prompt_and_what_the_teacher_says_of_it(tmp_path: Path):
    backbone, of = TinyUNet(), grid()
    source = data_free(backbone, settings(), tmp_path, count=5)
    for step in (0, 1, 2, 5):  # shards 0, 0, 1, 2
        pairs = source.batch(step, 4, EVERY)
        assert pairs.teacher is not None
        now = of.at(pairs.n)
        with torch.no_grad():
            asked = cond_and_uncond(backbone, pairs.cond, repeat(uncond(), 4), pairs.x, now, now)
        for kept, fresh in zip(pairs.teacher, asked, strict=True):
            for a, b in zip(kept, fresh, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_pair_is_used_as_often_as_asked(tmp_path: Path):
    config = settings(trajectories=4, reuse=3)  # 20 pairs, three times, in 12 steps of 5
    source = data_free(TinyUNet(), config, tmp_path)
    seen = torch.cat([source.batch(step, 5, EVERY).x for step in range(12)]).flatten(1)
    _, counts = seen.unique(dim=0, return_counts=True)
    assert counts.tolist() == [3] * 20
    for turn in range(0, 12, 4):  # each pass over the shard is complete, in an order of its own
        assert len(seen[turn * 5 : (turn + 4) * 5].unique(dim=0)) == 20
    assert not torch.equal(seen[:20], seen[20:40])
    assert [p.name for p in (tmp_path / "pairs").iterdir()] == ["pairs-00000.safetensors"]
    assert not torch.isin(source.batch(12, 5, EVERY).x, seen).any(), "the next shard is new"
    assert [p.name for p in (tmp_path / "pairs").iterdir()] == ["pairs-00001.safetensors"]


@pytest.mark.parametrize("length", [2, 3, 5, 10**9])
def test_pairs_in_a_row_lead_to_one_another(tmp_path: Path, length: int):
    backbone, of = TinyUNet(), grid()
    config = settings(trajectories=4, reuse=2, consecutive=length)
    source = data_free(backbone, config, tmp_path)
    pairs = source.batch(0, 20, EVERY)
    assert pairs.in_row is not None and pairs.teacher is not None
    follows, w = pairs.in_row
    assert len(pairs.x.flatten(1).unique(dim=0)) == 20, "a pass over the shard is complete"
    rows_each = -(-of.n // min(length, of.n))
    assert int((~follows).sum()) == 4 * rows_each and not follows[0]
    here = follows.nonzero()[:, 0]
    on, off = ((x0[here], eps[here]) for x0, eps in pairs.teacher)
    step = guided(on, off, w[here])
    now, prev = of.at(pairs.n[here]), of.at(pairs.n[here] - 1)
    x_prev = solver_step(lambda *_: step, pairs.x[here], now, prev, "ddim", of.schedule)
    torch.testing.assert_close(x_prev, pairs.x[here - 1], rtol=1e-4, atol=1e-4)
    for name, value in pairs.cond.items():
        assert torch.equal(value[here], value[here - 1]), name
    again = source.batch(1, 20, EVERY)
    assert not torch.equal(again.x, pairs.x), "the next pass has an order of its own"
    cut = [source.batch(0, 20, slice(i, i + 5)) for i in range(0, 20, 5)]
    assert torch.equal(torch.cat([c.in_row.follows for c in cut if c.in_row]), follows)


def test_a_row_that_a_step_cuts_begins_anew(tmp_path: Path):
    source = data_free(TinyUNet(), settings(trajectories=4, consecutive=5), tmp_path)
    first, second = source.batch(0, 4, EVERY), source.batch(1, 4, EVERY)
    assert first.n.tolist() == [1, 2, 3, 4] and second.n.tolist() == [5, 1, 2, 3]
    assert first.in_row and first.in_row.follows.tolist() == [False, True, True, True]
    assert second.in_row and second.in_row.follows.tolist() == [False, False, True, True]


def test_prompts_are_used_evenly(tmp_path: Path):
    source = data_free(TinyUNet(), settings(trajectories=6), tmp_path, count=3)
    whole = source.batch(0, 30, EVERY)
    for i in range(3):
        rows = (whole.cond["pooled"] == prompts(3)["pooled"][i]).all(1)
        assert rows.sum().item() == 2 * 5


@pytest.mark.parametrize("cached", [True, False])
def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path, cached: bool):
    config = settings(cache_teacher=cached)
    backbone = TinyUNet()
    first = data_free(backbone, config, tmp_path / "a")
    steps = [first.batch(step, 4, EVERY) for step in range(6)]
    assert (steps[0].teacher is not None) == cached
    later = data_free(backbone, config, tmp_path / "a")  # reads the last shard, makes the others again
    other = data_free(backbone, config, tmp_path / "b")
    for step in (5, 0, 3, 4):
        assert same(later.batch(step, 4, EVERY), steps[step])
        assert same(other.batch(step, 4, EVERY), steps[step])
    cut = [other.batch(4, 4, slice(i, i + 2)) for i in (0, 2)]
    assert torch.equal(torch.cat([c.x for c in cut]), steps[4].x)
    seeded = data_free(backbone, settings(cache_teacher=cached, seed=8), tmp_path / "c")
    assert not torch.equal(seeded.batch(0, 4, EVERY).x, steps[0].x)


def test_cached_and_asked_teachers_are_at_the_same_states(tmp_path: Path):
    a, b = (data_free(TinyUNet(), settings(cache_teacher=c), tmp_path / str(c)) for c in (True, False))
    for step in range(3):
        with_teacher, without = a.batch(step, 4, EVERY), b.batch(step, 4, EVERY)
        assert same(with_teacher._replace(teacher=None), without)
    (shard,) = (tmp_path / "False" / "pairs").iterdir()
    assert not [k for k in load_tensors(shard)[0] if k.startswith("x0_")]


def test_it_says_how_far_the_teacher_is_and_can_be_stopped_there(tmp_path: Path):
    told: list[tuple[int, int]] = []

    def stop(done: int, steps: int) -> None:
        told.append((done, steps))
        if done == 2:
            raise KeyboardInterrupt

    stopped = data_free(TinyUNet(), settings(), tmp_path, on_pairs=stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.batch(0, 4, EVERY)
    n = stopped.grid.n
    assert told == [(1, n), (2, n)] and not list((tmp_path / "pairs").glob("*"))
    told.clear()
    whole = data_free(TinyUNet(), settings(), tmp_path, on_pairs=lambda *at: told.append(at))
    whole.batch(0, 4, EVERY)
    whole.batch(1, 4, EVERY)
    assert told == [(i, n) for i in range(1, n + 1)]


def test_trajectories_run_with_w_in_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Tensor] = []

    def spy(
        backbone: TinyUNet,
        cond: dict[str, Tensor],
        un: dict[str, Tensor],
        of: TimeGrid,
        w: Tensor,
        noise: Tensor,
        on_step: OnPairs,
    ):
        seen.append(w)
        return roll_out(backbone, cond, un, of, w, noise, on_step)

    monkeypatch.setattr(module, "roll_out", spy)
    data_free(TinyUNet(), settings(trajectories=40, w_min=2.0, w_max=3.0), tmp_path).batch(0, 4, EVERY)
    (w,) = seen
    assert w.min() >= 2 and w.max() <= 3 and w.std() > 0.2


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"w_max": 3.0}, {"skip": 250}, {"trajectories": 3}, {"cache_teacher": False}, "prompts"],
)
def test_a_shard_that_another_run_left_is_not_used(tmp_path: Path, changes: dict[str, object] | str):
    data_free(TinyUNet(), settings(), tmp_path / "a").batch(0, 4, EVERY)
    config, count = (settings(), 4) if isinstance(changes, str) else (settings(**changes), 3)
    there = data_free(TinyUNet(), config, tmp_path / "a", count).batch(0, 4, EVERY)
    clean = data_free(TinyUNet(), config, tmp_path / "b", count).batch(0, 4, EVERY)
    assert same(there, clean)


def test_a_whole_shard_is_read_and_not_made_again(tmp_path: Path):
    backbone = TinyUNet()
    first = data_free(backbone, settings(), tmp_path).batch(1, 4, EVERY)

    def refuse(x: Tensor) -> None:
        raise AssertionError("the teacher was asked again")

    backbone.before = refuse
    assert same(data_free(backbone, settings(), tmp_path).batch(1, 4, EVERY), first)


def test_a_cut_shard_is_named(tmp_path: Path):
    data_free(TinyUNet(), settings(), tmp_path).batch(0, 4, EVERY)
    path = tmp_path / "pairs" / "pairs-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"pairs-00000.safetensors: not a whole safetensors file .* again"):
        data_free(TinyUNet(), settings(), tmp_path).batch(0, 4, EVERY)


def test_left_overs_of_a_killed_process_are_removed(tmp_path: Path):
    (tmp_path / "pairs").mkdir()
    left = tmp_path / "pairs" / ".pairs-00000.safetensors.123.tmp"
    left.write_bytes(b"half")
    data_free(TinyUNet(), settings(), tmp_path)
    assert not left.exists()


def test_an_empty_prompt_list_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="the prompt list is empty; give at least one"):
        data_free(TinyUNet(), settings(), tmp_path, count=0)


def test_a_shard_too_small_for_a_step_is_refused(tmp_path: Path):
    source = data_free(TinyUNet(), settings(), tmp_path)
    with pytest.raises(ValueError, match="holds 10 pairs, less than one step of 11; raise trajectories"):
        source.batch(0, 11, EVERY)


# Latents of pictures.


def shard(path: Path, count: int, seed: int, shape: tuple[int, ...] = (4, 4, 4)) -> Path:
    """Latents that can be told apart: the prompt holds the latent's first number."""
    latents = torch.randn(count, *shape, generator=generator(seed))
    write_shard(path, latents, {"pooled": latents.flatten(1)[:, :1].clone()})
    return path


def test_a_shard_is_written_where_it_is_not_there_or_differs(tmp_path: Path):
    path = shard(tmp_path / "a.safetensors", 4, seed=1)
    first = path.stat().st_ino  # writing replaces the file
    assert shard(path, 4, seed=1).stat().st_ino == first
    assert shard(path, 4, seed=2).stat().st_ino != first
    assert torch.equal(load_tensors(path)[0]["latents"], torch.randn(4, 4, 4, 4, generator=generator(2)))


def test_latents_are_noised_to_a_uniform_time(tmp_path: Path):
    of = grid()
    paths = [shard(tmp_path / f"{i}.safetensors", 40 + i, i) for i in range(3)]
    source = CachedLatents(paths, of, seed=1)
    total = 4000
    pairs = source.batch(0, total, EVERY)
    assert pairs.teacher is None and pairs.x.dtype == torch.float32
    latents = torch.cat([load_tensors(p)[0]["latents"] for p in paths])
    own = (latents.flatten(1)[:, 0] == pairs.cond["pooled"]).int().argmax(1)
    level = of.at(pairs.n).level.broadcast(pairs.x)
    noise = (pairs.x - level.alpha * latents[own]) / level.sigma
    assert noise.mean().abs() < 5 / noise.numel() ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    counts = torch.bincount(pairs.n, minlength=of.n + 1)
    assert counts[0] == 0 and len(counts) == of.n + 1
    assert ((counts[1:] - total / of.n).abs() < 5 * (total / of.n) ** 0.5).all()
    assert len(own.unique()) == len(latents), "every latent of every shard is drawn"


def test_a_batch_of_latents_is_a_function_of_seed_and_step(tmp_path: Path):
    path = shard(tmp_path / "a.safetensors", 20, 0)
    source, again = (CachedLatents([path], grid(), seed=1) for _ in range(2))
    whole = source.batch(3, 8, EVERY)
    assert same(again.batch(3, 8, EVERY), whole)
    parts = [again.batch(3, 8, slice(i, i + 2)) for i in range(0, 8, 2)]
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.n for p in parts]), whole.n)
    assert not torch.equal(source.batch(4, 8, EVERY).x, whole.x)
    assert not torch.equal(CachedLatents([path], grid(), seed=2).batch(3, 8, EVERY).x, whole.x)


def test_captions_come_on_the_devices_of_the_prompts(tmp_path: Path):
    """What a backbone keeps on the CPU, to read it without a wait, stays there."""
    captions = {"context": torch.ones(2, 3, 32), "role": torch.ones(2)}
    write_shard(tmp_path / "a.safetensors", torch.ones(2, 4, 4, 4), captions)
    like = {"context": torch.empty(1, 3, 32, device="meta"), "role": torch.zeros(1)}
    pairs = CachedLatents([tmp_path / "a.safetensors"], grid(), 0, like).batch(0, 3, EVERY)
    assert pairs.x.is_meta and pairs.cond["context"].is_meta and not pairs.cond["role"].is_meta


def test_half_precision_latents_become_float32(tmp_path: Path):
    write_shard(tmp_path / "a.safetensors", torch.ones(2, 4, 4, 4).half(), {"pooled": torch.ones(2, 1)})
    assert CachedLatents([tmp_path / "a.safetensors"], grid(), 0).batch(0, 3, EVERY).x.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"cond.pooled": torch.ones(2, 1)}, "needs `latents`"),
        ({"latents": torch.ones(2, 4, 4, 4)}, "needs `latents` and `cond"),
        ({"latents": torch.ones(2, 4, 4, 4), "cond.pooled": torch.ones(3, 1)}, "of one length"),
        ({"latents": torch.ones(0, 4, 4, 4), "cond.pooled": torch.ones(0, 1)}, "above 0"),
        ({"latents": torch.ones(2, 4, 8, 8), "cond.pooled": torch.ones(2, 1)}, "encode them alike"),
        ({"latents": torch.ones(2, 4, 4, 4), "cond.context": torch.ones(2, 1)}, "encode them alike"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, Tensor], message: str):
    good, bad = shard(tmp_path / "good.safetensors", 2, 0), tmp_path / "bad.safetensors"
    save_tensors(bad, tensors, {})
    with pytest.raises(ValueError, match=f"bad.safetensors.*{message}"):
        CachedLatents([good, bad], grid(), 0)


def test_cut_missing_or_no_shards_are_named(tmp_path: Path):
    good, cut = (shard(tmp_path / f"{n}.safetensors", 20, 0) for n in ("good", "cut"))
    for keep in (0, 5, 100, cut.stat().st_size - 1):
        cut.write_bytes(good.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"cut.safetensors: not a whole safetensors file .* again"):
            CachedLatents([good, cut], grid(), 0)
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors: no such file"):
        CachedLatents([good, tmp_path / "absent.safetensors"], grid(), 0)
    with pytest.raises(ValueError, match="has no shards"):
        CachedLatents([], grid(), 0)
    with pytest.raises(ValueError, match="2 latents but 3 captions"):
        write_shard(cut, torch.ones(2, 1), {"pooled": torch.ones(3, 1)})


# Small things.


def test_generators_differ_in_every_part_of_their_key():
    keys = [(s, tag, i) for s in range(4) for tag in (1, 11, 12, 13, 21) for i in range(40)]
    draws = {tuple(torch.rand(3, generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)
    assert generator(1, 2).initial_seed() == generator(1, 2).initial_seed() != generator(2, 1).initial_seed()


def test_eps_is_what_is_left_of_x(tmp_path: Path):
    level = Level(torch.tensor([0.8, 0.0]).double(), torch.tensor([0.6, 1.0]).double())
    x0, eps = torch.randn(2, 2, 3, 3, 3, generator=generator(0), dtype=torch.float64)
    at = level.broadcast(x0)
    torch.testing.assert_close(eps_of(at.alpha * x0 + at.sigma * eps, x0, level), eps)


def test_take_takes_the_same_rows_of_everything():
    cond = prompts(4)
    picked = take(cond, torch.tensor([2, 0]))
    assert all(torch.equal(picked[k], cond[k][[2, 0]]) for k in cond)


def test_trajectories_is_a_source() -> None:
    source: module.Source = Trajectories.__new__(Trajectories)
    assert hasattr(source, "batch")
