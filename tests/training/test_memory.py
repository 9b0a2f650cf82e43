"""Blocks that are recomputed give the same gradients, plans fit into the memory that is free, and a run that
meets its end goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyUNet, fingerprint, grid_of, prompts, settings, uncond
from torch import Tensor, nn

from comfyui_tcd.training.backbone import InParts, take
from comfyui_tcd.training.checkpoint import load_tensors
from comfyui_tcd.training.distill import CHECKPOINT, student_on
from comfyui_tcd.training.memory import (
    Kept,
    Needs,
    Plan,
    blocks_of,
    fitting,
    kept_by,
    plans,
    recomputed,
)
from comfyui_tcd.training.objective import Batch, draw_times, tcd_loss
from comfyui_tcd.training.pairs import generator
from comfyui_tcd.training.report import read_log
from comfyui_tcd.training.run import estimate, needs, train

# Gradients.


def gradients(student: str, recompute: bool, passes: int = 2) -> dict[str, Tensor]:
    """Of every trained parameter, summed over micro-batches. Up-factors are drawn: at 0 there are fewer."""
    config, backbone = settings(student=student), TinyUNet()
    grid = grid_of(backbone, config)
    with student_on(backbone, config) as made, recomputed(backbone.network) if recompute else nullcontext():
        trained = made.parameters()
        for i, (name, p) in enumerate(trained.items()):
            if name.endswith("lora_up"):
                p.data = torch.randn(p.shape, generator=generator(3, i)) * 0.1
        for i in range(passes):
            cond = take(prompts(4, seed=i), slice(None))
            predict = made.predictor(cond)
            x, x_prev = torch.randn(2, 4, *backbone.latent_shape, generator=generator(4, i))
            draw = draw_times(grid, config, torch.tensor([1, 2, 4, 5]), generator(5, i))
            tcd_loss(predict, predict, Batch(x, x_prev, draw, cond), grid, config).mean().backward()
        found = {k: p.grad for k, p in trained.items()}
    return {k: g for k, g in found.items() if g is not None}


@pytest.mark.parametrize("student", ["tcf1", "tcf2", "tcfs"])
def test_the_gradients_of_recomputed_blocks_are_those_of_kept_ones(student: str):
    kept, again = gradients(student, False), gradients(student, True)
    assert kept.keys() == again.keys() and len(kept) > 20
    assert all(bool(g.any()) for k, g in kept.items() if k.endswith("lora_up"))
    for k, g in kept.items():
        assert float((g - again[k]).abs().max()) <= 1e-6 * max(1.0, float(g.abs().max())), k


class HostLike(nn.Module):
    """What a host's transformer does: options that change from block to block, inputs that are overwritten, a
    result of several parts.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.first = first

    def forward(
        self, x: Tensor, text: Tensor | None, *, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        y = self.one(x).sin() * options["scale"] * options["nested"]["at"]
        x += y
        options["scale"] = 100.0  # seen by whoever looks at it afterwards
        options["written"] = options.get("written", 0) + 1
        if text is None:
            return x + self.two(x).cos(), None
        text += x.mean(1, keepdim=True)
        return x + self.two(x * text).cos(), text[:, :, :] if self.first else None


class Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.blocks = nn.ModuleList([HostLike(True), HostLike(False), HostLike(False)])
        self.few = nn.ModuleList([nn.Linear(1, 1)])

    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"nested": {"at": 0.0}}
        text: Tensor | None = torch.ones(2, 3, 8)
        for i, block in enumerate(self.blocks):
            options["scale"] = 1.0 + i
            options["nested"]["at"] = 0.5 + i
            x, text = block(x, text, options=options)
            x *= 0.9
        assert options["written"] == 3 and options["scale"] == 100.0
        return x


def test_options_that_change_and_inputs_that_are_overwritten():
    found: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        host = Host()
        x = torch.randn(2, 3, 8, generator=generator(6), requires_grad=True)
        kept = torch.autograd.graph.allow_mutation_on_saved_tensors()
        with kept, recomputed(host) if recompute else nullcontext():
            host(x * 1.0).square().sum().backward()
        grads = {n: p.grad for n, p in host.named_parameters() if p.grad is not None}
        assert x.grad is not None
        found.append({**grads, "x": x.grad})
    kept_ones, again = found
    assert len(kept_ones) == 13 and kept_ones.keys() == again.keys()
    for name, grad in kept_ones.items():
        assert torch.allclose(grad, again[name], rtol=1e-6, atol=1e-6), name


def test_blocks_by_class_then_by_the_longest_list():
    found = blocks_of(TinyUNet().network)
    assert {type(b).__name__ for b in found} == {"ResBlock", "SpatialTransformer"} and len(found) > 6
    host = Host()
    assert blocks_of(host) == list(host.blocks)
    assert blocks_of(nn.Linear(2, 2)) == []
    with pytest.raises(ValueError, match="checkpointing = none"), recomputed(nn.Linear(2, 2)):
        pass


def test_the_network_is_left_as_it_was():
    network = TinyUNet().network
    theirs = blocks_of(network)[0]
    theirs.forward = patched = theirs.forward  # another extension's
    before = fingerprint(network)
    with pytest.raises(KeyboardInterrupt), recomputed(network):
        raise KeyboardInterrupt
    assert fingerprint(network) == before
    assert [b for b in blocks_of(network) if "forward" in b.__dict__] == [theirs]
    assert theirs.__dict__["forward"] is patched


# Metering.


def held_by(network: nn.Module, forward: Callable[[], Tensor]) -> int:
    """The bytes of what a graph really holds: each memory once, none of the network's."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = forward()
    assert out.requires_grad
    return sum(t.untyped_storage().nbytes() for k, t in held.items() if k not in own)


def test_metering_finds_what_is_kept_and_recomputing_keeps_less():
    backbone = TinyUNet()
    backbone.latent_shape = (4, 16, 16)
    config = settings()
    x, cond = torch.randn(1, 4, 16, 16, generator=generator(1)), prompts(1)
    now = grid_of(backbone, config).at(torch.tensor([3]))
    with student_on(backbone, config) as student:
        network = backbone.network

        def forward() -> Tensor:
            return student.predictor(cond)(x, now, now)[0]

        metered = kept_by(network, forward)
        assert metered.whole == held_by(network, forward)
        with recomputed(network):
            left = held_by(network, forward)
    assert metered.blocks == len(blocks_of(network))
    assert abs(metered.inputs - left) <= 0.02 * left
    assert metered.inputs + metered.block < 0.5 * metered.whole


# Plans.

NEEDS = Needs(1000, Kept(whole=100, inputs=10, block=20, blocks=5))


def test_the_fastest_plan_that_fits():
    config = settings(batch=4, accumulation=2)
    able = plans(NEEDS, config)
    wanted = [(False, 4, 2, 1400), (True, 4, 2, 1120), (True, 2, 4, 1060), (True, 1, 8, 1030)]
    assert [tuple(p) for p in able] == wanted
    for free, first in ((None, 0), (1400, 0), (1399, 1), (1120, 1), (1119, 2), (1030, 3)):
        assert fitting(able, free) == able[first:]
    with pytest.raises(MemoryError, match=r"0\.00 GiB beside the model.*rank"):
        fitting(able, 1029)
    assert able[2].applied(config) == settings(batch=2, accumulation=4)
    assert "batch 4 x 2, blocks recomputed" in str(able[1])


def test_plans_as_the_setting_says_and_for_several_processes():
    one = settings(batch=6, checkpointing="none")
    assert [(p.recompute, p.batch, p.accumulation) for p in plans(NEEDS, one)] == [
        (False, 6, 1), (False, 3, 2), (False, 2, 3), (False, 1, 6),
    ]  # fmt: skip
    blocks = settings(batch=4, checkpointing="blocks")
    assert [(p.recompute, p.batch) for p in plans(NEEDS, blocks, 2)] == [(True, 4), (True, 2)]
    assert plans(NEEDS, blocks, 2)[0].need == 1000 + 2 * 30  # in each
    no_blocks = Needs(0, NEEDS.kept._replace(blocks=0))
    assert not any(p.recompute for p in plans(no_blocks, settings(batch=4)))


def test_needs_grow_with_rank_and_size_and_leave_the_network_alone():
    backbone, large = TinyUNet(), TinyUNet()
    large.latent_shape = (4, 16, 16)
    before = fingerprint(backbone.network)
    small = needs(settings(), backbone, prompts(2))
    assert fingerprint(backbone.network) == before
    assert needs(settings(rank=8, alpha=8.0), backbone, prompts(2)).fixed == 2 * small.fixed
    assert needs(settings(), backbone, prompts(100)) == small  # the table of prompts is no part of a sample
    assert needs(settings(target="ema"), backbone, prompts(2)).fixed * 5 == small.fixed * 6
    assert needs(settings(), large, prompts(2)).kept.whole > 10 * small.kept.whole


def test_an_estimate_is_of_the_plan_that_fits():
    backbone, config = TinyUNet(), settings()
    roomy = estimate(config, backbone, prompts(2), lambda device: None)
    assert "everything kept" in str(roomy)
    tight = estimate(config, backbone, prompts(2), lambda device: roomy.plan.need - 1)
    assert tight.plan.recompute and "blocks recomputed" in str(tight) and tight.memory < roomy.memory


# Whole runs.


def near(one: Path, other: Path, within: float = 2e-5) -> bool:
    """What two runs have trained, apart by no more than this share of it, in float32. Adam's first steps have
    the size of the learning rate however small a gradient is, so rounding shows.
    """
    a, b = (
        {k: v for k, v in load_tensors(f / CHECKPOINT)[0].items() if "student/" in k} for f in (one, other)
    )
    assert a.keys() == b.keys() and len(a) > 20
    apart = sum(float((a[k] - b[k]).square().sum()) for k in a)
    return apart <= within**2 * sum(float(v.square().sum()) for v in a.values())


def run(folder: Path, network: TinyUNet | None = None, **changes: Any) -> list[str]:
    """A run by the entry point, and the plans it told."""
    told: list[str] = []
    options = {k: changes.pop(k) for k in ("free", "on_step") if k in changes}
    train(
        settings(**changes), network or TinyUNet(), prompts(3), uncond(), folder, quiet=True, validate=False,
        on_plan=told.append, **options,
    )  # fmt: skip
    return told


class Full(TinyUNet):
    """Out of memory in the `at`th forward that has a graph, once or `times` times."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self.at, self.times, self.graphs = at, times, 0
        self.before = self.count
        self.state = fingerprint(self.network)

    def count(self, x: Tensor) -> None:
        if torch.is_grad_enabled() and x.shape[0] > 0:
            self.graphs += 1
            if self.at <= self.graphs < self.at + self.times:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_recomputing_and_smaller_batches_train_the_same_lora(tmp_path: Path):
    run(tmp_path / "kept", checkpointing="none")
    told = run(tmp_path / "recomputed", checkpointing="blocks")
    assert "blocks recomputed" in told[0]
    assert near(tmp_path / "kept", tmp_path / "recomputed")
    able = plans(needs(settings(), TinyUNet(), prompts(3)), settings())
    told = run(tmp_path / "small", free=lambda device: able[-1].need)
    assert told == [str(able[-1])] and able[-1].batch == 1
    assert near(tmp_path / "kept", tmp_path / "small", 2e-4)


# the first forward with a graph is the metered one, then one a step
@pytest.mark.parametrize("at", [2, 5])
def test_out_of_memory_goes_on_with_the_next_plan_and_loses_no_step(tmp_path: Path, at: int):
    run(tmp_path / "whole")
    network, steps = Full(at), list[int]()
    told = run(tmp_path / "broken", network, on_step=lambda step, loss: steps.append(step))
    assert fingerprint(network.network) == network.state
    assert "everything kept" in told[0] and "out of memory, so it goes on" in told[1]
    assert "batch 4 x 1, blocks recomputed" in told[1] and len(told) == 2
    assert steps == [1, 2, 3, 4, 5, 6]  # none twice
    assert near(tmp_path / "whole", tmp_path / "broken")
    assert [r["step"] for r in read_log(tmp_path / "broken" / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_out_of_memory_twice_says_what_to_do_and_keeps_a_checkpoint(tmp_path: Path):
    network = Full(4, times=2)
    with pytest.raises(MemoryError, match=r"out of memory with .* and with .*: lower rank"):
        run(tmp_path / "broken", network)
    assert fingerprint(network.network) == network.state
    run(tmp_path / "broken")
    run(tmp_path / "whole")
    assert near(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(MemoryError, match="not even one sample"):
        run(tmp_path / "none", Full(1))
    with pytest.raises(MemoryError, match="out of memory with batch 1 x 1, everything kept"):
        run(tmp_path / "last", Full(2), batch=1, checkpointing="none")


def test_a_run_may_go_on_with_another_checkpointing(tmp_path: Path):
    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", on_step=stop, checkpointing="none")
    run(tmp_path / "run", checkpointing="blocks")
    run(tmp_path / "whole")
    assert near(tmp_path / "whole", tmp_path / "run")


# What does not depend on the number of rows.


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_are_evaluated_a_part_at_a_time(rows: int):
    whole, seen = TinyUNet(), list[int]()
    whole.before = lambda x: seen.append(len(x))
    parts, cond = InParts(whole, rows), prompts(5)
    x = torch.randn(5, *whole.latent_shape, generator=generator(2))
    grid = grid_of(whole, settings())
    for n in (torch.tensor(3), torch.tensor([1, 2, 3, 4, 5])):
        now = grid.at(n)
        with torch.no_grad():
            expected = whole.predictor(cond)(x, now, now)
            seen.clear()
            found = parts.predictor(cond)(x, now, now)
        assert max(seen) == rows and sum(seen) == 5
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    seen.clear()
    parts.predictor(cond)(x, now, now)  # with a graph: the plan has said how many
    assert seen == [5]


def test_a_run_never_evaluates_more_rows_than_its_batch_asks_for(tmp_path: Path):
    network, rows = TinyUNet(), list[int]()
    network.before = lambda x: rows.append(len(x))
    config = settings(batch=1, accumulation=4, trajectories=8, validation_prompts=6, student="tcfs")
    train(config, network, prompts(6), uncond(), tmp_path, quiet=True)
    assert max(rows) == 2


def test_a_plan_is_read_at_a_glance():
    assert str(Plan(True, 2, 4, 3 * 2**29)) == "batch 2 x 4, blocks recomputed, 1.50 GiB for training"


# A base in bfloat16.


def test_what_is_kept_of_a_bfloat16_base_is_bfloat16():
    """The factors are float32, and no input of theirs is kept a second time in float32."""
    backbone = TinyUNet()
    backbone.latent_shape = (4, 16, 16)
    backbone.network.to(torch.bfloat16)
    config = settings()
    x, cond = torch.randn(1, 4, 16, 16, generator=generator(1)), prompts(1)
    now = grid_of(backbone, config).at(torch.tensor([3]))
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with student_on(backbone, config) as student:
        assert {p.dtype for p in student.parameters().values()} == {torch.float32}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            x0, _ = student.predictor(cond)(x, now, now)
        x0.square().mean().backward()
        ups = [p for k, p in student.parameters().items() if k.endswith("lora_up")]
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ups)
        assert sum(bool(p.grad.any()) for p in ups if p.grad is not None) == len(ups)
    activations = [t for t in kept.values() if t.numel() >= 64 * 16 * 16]
    wide = [t for t in activations if t.dtype == torch.float32]
    assert len(activations) > 20 and wide == []
