"""`compile = true`: the same run from compiled blocks, and a network that is as before afterwards."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tiny import TinyUNet, grid_of, prompts, settings
from torch import Tensor, nn

from comfyui_tcd.embedded.unet import ResBlock
from comfyui_tcd.training.backbone import take
from comfyui_tcd.training.compiled import compiled
from comfyui_tcd.training.distill import student_on
from comfyui_tcd.training.lora import injected
from comfyui_tcd.training.memory import blocks_of, recomputed
from comfyui_tcd.training.objective import Batch, draw_times, tcd_loss
from comfyui_tcd.training.pairs import generator

TRACED = "eager"  # what torch understands of the blocks, without the machine code, which needs a compiler


def gradients(compile: bool, recompute: bool, student: str = "tcf1") -> dict[str, Tensor]:
    config, backbone = settings(student=student), TinyUNet()
    grid = grid_of(backbone, config)
    fast = compiled(backbone.network, TRACED) if compile else nullcontext()
    kept = recomputed(backbone.network) if recompute else nullcontext()
    with student_on(backbone, config) as made, fast, kept:
        trained = made.parameters()
        for i, (name, p) in enumerate(trained.items()):
            if name.endswith("lora_up"):
                p.data = torch.randn(p.shape, generator=generator(3, i)) * 0.1
        cond = take(prompts(4), slice(None))
        predict = made.predictor(cond)
        x, x_prev = torch.randn(2, 4, *backbone.latent_shape, generator=generator(4))
        draw = draw_times(grid, config, torch.tensor([1, 2, 4, 5]), generator(5))
        tcd_loss(predict, predict, Batch(x, x_prev, draw, cond), grid, config).mean().backward()
        return {k: p.grad for k, p in trained.items() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(("student", "recompute"), [("tcf1", False), ("tcfs", True)])
def test_the_gradients_of_compiled_blocks_are_those_of_the_blocks(student: str, recompute: bool):
    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage]
    torch._dynamo.utils.counters.clear()  # pyright: ignore
    plain, fast = gradients(False, False, student), gradients(True, recompute, student)
    frames = torch._dynamo.utils.counters["frames"]  # pyright: ignore
    assert frames["ok"] > 0 and plain.keys() == fast.keys() and len(plain) > 20
    for k, g in plain.items():
        assert float((g - fast[k]).abs().max()) <= 1e-6 * max(1.0, float(g.abs().max())), k


def test_blocks_are_as_before_also_after_an_error():
    network = TinyUNet().network
    before = {n: dict(m.__dict__) for n, m in network.named_modules()}
    with pytest.raises(KeyError), compiled(network, TRACED):
        assert all("forward" in block.__dict__ for block in blocks_of(network))
        raise KeyError
    assert {n: dict(m.__dict__) for n, m in network.named_modules()} == before


def test_what_cannot_be_compiled_is_said_with_the_way_out():
    def broken(*_: object) -> None:
        raise OSError("no compiler found")

    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    with pytest.raises(RuntimeError, match=r"no compiler found.*compile = false"), compiled(network, broken):
        blocks_of(network)[0](torch.ones(1, 2))
    with pytest.raises(ValueError, match="no blocks"), compiled(nn.Linear(2, 2)):
        pass
    watched = torch.autograd.graph.allow_mutation_on_saved_tensors()
    with pytest.raises(ValueError, match=r"overwrite.*compile = false"), watched, compiled(network):
        pass


class Blocks(nn.Module):
    """Two blocks of one shape, and little else to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(64, 32, 64) for _ in range(2))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, emb)
        return x


def test_what_is_compiled_for_a_block_serves_others_of_its_shape():
    torch._dynamo.reset()  # pyright: ignore[reportPrivateUsage]
    torch._dynamo.utils.counters.clear()  # pyright: ignore
    torch.manual_seed(0)
    network = Blocks()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    x, emb = torch.randn(2, 64, 4, 4, requires_grad=True), torch.randn(2, 32)
    found: list[list[Tensor]] = []
    with injected(network, 4, 4.0, "all", 0) as lora:
        trained = lora.parameters()
        for p in trained.values():
            nn.init.normal_(p, std=0.1)
        for fast in (nullcontext(), compiled(network, TRACED)):
            with fast:
                network(x, emb).square().mean().backward()
            found.append([p.grad for p in trained.values() if p.grad is not None])
            network.zero_grad()
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(a.abs().max()))
    assert len(found[0]) == len(trained)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # pyright: ignore
