"""Where training states come from: the teacher's own trajectories (prompts only), or cached latents of real
pictures.

Both hand out `Pairs`: states `x_t` at grid index n, with their prompts, and for cached trajectories the
teacher's two predictions, so that the guidance w and the target s stay free each time a pair is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..samplers import Level, placed, tcf1
from .backbone import Backbone, Cond, Prediction, cond_and_uncond, digest, repeat, size, take
from .checkpoint import load_tensors, save_tensors, sweep
from .objective import TimeGrid, guided
from .processes import ALONE, Crew
from .shards import COND, check_shards, read_shards


class InRow(NamedTuple):
    """Which pairs have the one before them as their next state (the first pair of a step never has), with the
    guidance that leads there; on the CPU.
    """

    follows: Tensor  # [B]
    w: Tensor  # [B]


class Pairs(NamedTuple):
    """A batch of states: `x [B, ...]` at `t = g_n`; `teacher` is None where it still has to be asked,
    `in_row` where each pair stands by itself.
    """

    x: Tensor
    n: Tensor
    cond: Cond
    teacher: tuple[Prediction, Prediction] | None
    in_row: InRow | None = None


class Source(Protocol):
    """Batches as a function of (seed, step): a resumed run sees what the first would have seen.

    `total` samples make an optimizer step; `part` are those wanted now (a micro-batch, or one process's
    share).
    """

    def batch(self, step: int, total: int, part: slice) -> Pairs: ...


def generator(*key: int) -> torch.Generator:
    """A CPU generator that is a function of the given numbers alone."""
    mixed = 0
    for part in key:
        mixed = (mixed * 0x9E3779B97F4A7C15 + part + 0x632BE59BD9B4E019) % 2**64
        mixed = (mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9 % 2**64
    return torch.Generator().manual_seed(mixed % 2**63)


OnPairs = Callable[[int, int], None]
"""`on_pairs(done, steps)` while the teacher draws: so many of the steps of its trajectories are done."""


@torch.no_grad()
def roll_out(
    backbone: Backbone,
    cond: Cond,
    uncond: Cond,
    grid: TimeGrid,
    w: Tensor,
    noise: Tensor,
    on_step: OnPairs = lambda done, steps: None,
) -> dict[str, Tensor]:
    """The guided teacher's DDIM trajectories over the whole grid, from `noise [T, ...]`, with guidance `w
    [T]`.

    Each of the N steps of a trajectory is one pair: returns `x`, `x0_c`, `x0_uncond` `[T N, ...]`, `n`, `w`
    and `row [T N]`.
    x0 is what is kept: with x it gives eps, also where alpha is 0 and eps would not give x0.
    """
    x, rows = noise, torch.arange(len(noise))
    empty = repeat(uncond, len(noise))
    kept: dict[str, list[Tensor]] = {"x": [], "x0_c": [], "x0_uncond": [], "n": [], "w": [], "row": []}
    for n in range(grid.n, 0, -1):
        now, down = grid.at(torch.tensor(n)), grid.at(torch.tensor(n - 1))
        on, off = cond_and_uncond(backbone, cond, empty, x, now, down)
        for name, value in (
            ("x", x),
            ("x0_c", on[0]),
            ("x0_uncond", off[0]),
            ("n", torch.full_like(rows, n)),
            ("w", w),
            ("row", rows),
        ):
            kept[name].append(value)
        x = tcf1(*guided(on, off, w), down.level)
        on_step(grid.n - n + 1, grid.n)
    return {name: torch.cat(values) for name, values in kept.items()}


class Trajectories:
    """Data-free pairs, made a shard at a time as the run needs them, and kept as files so that a resume costs
    nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Cond,
        uncond: Cond,
        grid: TimeGrid,
        folder: Path,
        *,
        seed: int,
        trajectories: int,
        reuse: int,
        w_range: tuple[float, float],
        keep_teacher: bool = True,
        consecutive: int = 1,
        crew: Crew = ALONE,
        on_pairs: OnPairs = lambda done, steps: None,
    ) -> None:
        if size(prompts) == 0:
            raise ValueError("the prompt list is empty; give at least one prompt")
        self.backbone, self.prompts, self.uncond, self.grid = backbone, prompts, uncond, grid
        self.folder, self.seed, self.trajectories, self.reuse = folder, seed, trajectories, reuse
        self.w_range, self.keep_teacher, self.crew = w_range, keep_teacher, crew
        self.consecutive = consecutive
        self.on_pairs = on_pairs
        self.device = next(iter(prompts.values())).device
        self._made_from = {
            "format": "2",
            "seed": str(seed),
            "trajectories": str(trajectories),
            "w": json.dumps(w_range),
            "times": json.dumps(grid.points.t.tolist()),
            "teacher": str(keep_teacher),
            "prompts": digest(prompts),
            "uncond": digest(uncond),
        }
        self._held: tuple[int, dict[str, Tensor]] | None = None
        if crew.first:
            sweep(folder)

    def batch(self, step: int, total: int, part: slice) -> Pairs:
        per_shard = self.trajectories * self.grid.n
        uses = per_shard * self.reuse // total  # whole steps a shard serves
        if uses == 0:
            raise ValueError(
                f"a shard holds {per_shard} pairs, less than one step of {total}; raise trajectories"
            )
        shard, turn = divmod(step, uses)
        data = self._shard(shard)
        order, links = self._order(shard)
        here = slice(turn * total, (turn + 1) * total)
        pick, follows = order[here][part], links[here]
        follows[0] = False
        follows = follows[part]
        x, n = placed(data["x"][pick], self.device), data["n"][pick]
        cond = take(self.prompts, self._prompts_of(shard)[data["row"][pick]])
        teacher = None
        if self.keep_teacher:
            now = self.grid.at(n).level
            on, off = (placed(data[k][pick], self.device) for k in ("x0_c", "x0_uncond"))
            teacher = (on, eps_of(x, on, now)), (off, eps_of(x, off, now))
        return Pairs(x, n, cond, teacher, InRow(follows, data["w"][pick]) if self.consecutive > 1 else None)

    def _order(self, shard: int) -> tuple[Tensor, Tensor]:
        """The pairs of a shard as they are used, row by row, `reuse` times over, and which of them have the
        one before as their next state.
        """
        rows, links = in_a_row(self.grid.n, self.trajectories, self.consecutive)
        draws = [generator(self.seed, 11, shard, r) for r in range(self.reuse)]
        shuffled = torch.cat([torch.randperm(len(rows), generator=draw) for draw in draws])
        index, links = rows[shuffled].flatten(), links[shuffled].flatten()
        return index[index >= 0], links[index >= 0]

    def _prompts_of(self, shard: int) -> Tensor:
        """Which prompt each trajectory of a shard follows."""
        count = size(self.prompts)
        rounds = -(-self.trajectories // count)
        orders = [torch.randperm(count, generator=generator(self.seed, 12, shard, r)) for r in range(rounds)]
        return torch.cat(orders)[: self.trajectories]

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if self._held is not None and self._held[0] == shard:
            return self._held[1]
        path = self.folder / f"pairs-{shard:05d}.safetensors"
        made_from = {**self._made_from, "shard": str(shard)}
        data, metadata = self.crew.told(lambda: load_tensors(path) if path.is_file() else ({}, {}))
        if metadata != made_from:  # there is none, or one that another run left
            data = self._made(shard)
            if self.crew.first:
                save_tensors(path, data, made_from)
                for old in self.folder.glob("pairs-*.safetensors"):
                    if old < path:  # zero-padded, so that names sort as numbers
                        old.unlink(missing_ok=True)
        self._held = (shard, data)
        return data

    def _made(self, shard: int) -> dict[str, Tensor]:
        """A shard's trajectories, those of this process by its own network; on the CPU, as a shard of a large
        model would fill the accelerator.
        """
        draw = generator(self.seed, 13, shard)
        noise = torch.randn(self.trajectories, *self.backbone.latent_shape, generator=draw)
        low, high = self.w_range
        w = low + (high - low) * torch.rand(self.trajectories, generator=draw, dtype=torch.float64)
        mine = self.crew.rows(self.trajectories)
        cond = take(self.prompts, self._prompts_of(shard)[mine])
        z, w = noise[mine].to(self.device), w[mine]
        rolled = roll_out(self.backbone, cond, self.uncond, self.grid, w, z, self.on_pairs)
        kept = {k: v.cpu() for k, v in rolled.items() if self.keep_teacher or not k.startswith("x0_")}
        by_time = {k: v.unflatten(0, (self.grid.n, len(mine))) for k, v in kept.items()}
        data = {k: self.crew.gathered(v, self.trajectories).flatten(0, 1) for k, v in by_time.items()}
        return {**data, "row": torch.arange(self.trajectories).repeat(self.grid.n)}


def in_a_row(steps: int, trajectories: int, length: int) -> tuple[Tensor, Tensor]:
    """The pairs of `roll_out` in rows of `length` that lead to one another, the last of a trajectory first:
    their indices `[rows, length]`, with -1 where a trajectory has no more, and which have the one before them
    as their next state.
    """
    length = min(length, steps)
    index = torch.arange(steps * trajectories).view(steps, trajectories)
    index = torch.cat([index, index.new_full((-steps % length, trajectories), -1)])
    rows = index.view(-1, length, trajectories).flip(1).transpose(1, 2).reshape(-1, length)
    links = torch.zeros_like(rows, dtype=torch.bool)
    links[:, 1:] = rows[:, :-1] >= 0
    return rows, links


class CachedLatents:
    """Pairs from real pictures: latents and encoded captions in safetensors shards, noised to a drawn
    timestep. Captions come on the devices of `like`, name by name, and states on that of its first; without
    it on the CPU.
    """

    def __init__(self, shards: Sequence[Path], grid: TimeGrid, seed: int, like: Cond | None = None) -> None:
        check_shards(shards)
        self.grid, self.seed = grid, seed
        self.devices = {name: value.device for name, value in (like or {}).items()}
        self.device = next(iter(self.devices.values()), torch.device("cpu"))
        held = read_shards(shards)
        self.latents = held["latents"]
        self.cond = {k.removeprefix(COND): v for k, v in held.items() if k.startswith(COND)}

    def batch(self, step: int, total: int, part: slice) -> Pairs:
        draw = generator(self.seed, 21, step)
        pick = torch.randint(len(self.latents), (total,), generator=draw)[part]
        n = torch.randint(1, self.grid.n + 1, (total,), generator=draw)[part]
        noise = torch.randn(total, *self.latents.shape[1:], generator=draw)[part]
        x0 = placed(self.latents[pick].float(), self.device)
        level = self.grid.at(n).level.broadcast(x0)
        cond = {k: placed(v, self.devices.get(k, self.device)) for k, v in take(self.cond, pick).items()}
        return Pairs(level.alpha * x0 + level.sigma * placed(noise, x0.device), n, cond, None)


def eps_of(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """eps from the state and x0: `(x - alpha x0) / sigma`."""
    at = level.broadcast(x)
    return (x - at.alpha * x0) / at.sigma
