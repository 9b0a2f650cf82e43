"""What a sample of distillation costs beside the usual loop, in one run: seconds, FLOPs and peak memory.

    python benchmarks/training.py [--size small|sdxl] [--device cpu|cuda] [--batch N] [--steps N]

The usual loop is that of LCM-LoRA training scripts, written here from its description: two UNets, the text
encoder and the VAE in every step, the teacher's two predictions one after the other, the student before the
teacher, the loss read at every step. Both loops train a LoRA of the same kind on the same UNet of random
weights, each in a process of its own, which also gives their peak memory.

`small` is a UNet of Stable Diffusion's shape that a CPU can train, with a text encoder and a VAE that have
the share of the work that SDXL's have; `sdxl` is SDXL's size at 1024 x 1024 and needs diffusers. On a CPU the
seconds are of processor time.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from comfyui_tcd.embedded.unet import UNet, UNetConfig
from comfyui_tcd.samplers import DiscreteSchedule, Point, Predict, Schedule, tcf1, to_x0_eps
from comfyui_tcd.training.backbone import Cond, InParts
from comfyui_tcd.training.compiled import compiled
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import distill, student_on
from comfyui_tcd.training.lora import injected
from comfyui_tcd.training.memory import recomputed
from comfyui_tcd.training.objective import TimeGrid, distance
from comfyui_tcd.training.processes import ALONE
from comfyui_tcd.training.run import source_of

SKIP = 250
"""Four times of the grid, so that a short run is of whole shards, and these of whole rows: of two, as with
the fifty times of a usual run, and of four, of which that has one short row in thirteen.
"""


class Loop(NamedTuple):
    ours: bool
    recompute: bool
    reuse: int = 1
    consecutive: int = 1
    compile: bool = False


LOOPS = {
    "usual, blocks recomputed": Loop(False, True),
    "usual, everything kept": Loop(False, False),
    "ours, blocks recomputed": Loop(True, True, 2, 2),
    "ours, everything kept": Loop(True, False, 2, 2),
    "ours, everything kept, each pair on its own": Loop(True, False, 2),
    "ours, everything kept, 4 in a row": Loop(True, False, 2, 4),
    "ours, everything kept, compiled": Loop(True, False, 2, 2, compile=True),
    "ours, everything kept, reuse 4": Loop(True, False, 4, 2),
    "ours, everything kept, compiled, reuse 4": Loop(True, False, 4, 2, compile=True),
}


class Size(NamedTuple):
    latent: int  # side
    tokens: int
    width: int  # of a token
    pooled: int
    text: tuple[tuple[int, int], ...]  # (width, layers) of the text encoders
    vae: int  # channels


SIZES = {
    "small": Size(16, 77, 128, 128, ((128, 2),), 24),
    "sdxl": Size(128, 77, 2048, 2816, ((768, 12), (1280, 32)), 128),
}


class Bench:
    """A UNet of random weights as a backbone of SDXL's kind of conditioning."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.size = SIZES[name]
        torch.manual_seed(0)
        with device:
            self.network: nn.Module = _small(self.size) if name == "small" else _sdxl()
        self.network.to(dtype).eval().requires_grad_(False)
        for p in self.network.parameters():
            if not bool(p.any()):  # zeroed layers would hide what is before them
                nn.init.normal_(p, std=0.02)
        self.name, self.device, self.dtype = name, device, dtype
        self.latent_shape: tuple[int, ...] = (4, self.size.latent, self.size.latent)
        self.schedule: Schedule = DiscreteSchedule.from_betas()

    def eps(self, network: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = next(network.parameters()).dtype
        x, text, pooled = (v.to(dtype) for v in (x, cond["text"], cond["pooled"]))
        t = t.to(x.device)
        if self.name == "small":
            return network(x, t, text, pooled)
        added = {"text_embeds": pooled[:, :1280], "time_ids": torch.ones(len(x), 6).to(x)}
        return network(x, t, text, added_cond_kwargs=added, return_dict=False)[0]

    def predictor(self, cond: Cond) -> Predict:
        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            out = self.eps(self.network, x, now.t.expand(len(x)), cond)
            return to_x0_eps("epsilon", out.float(), x, now.level)

        return predict

    def decode(self, latents: Tensor) -> Tensor:
        raise AssertionError("these runs do not validate")

    def prompts(self, count: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(1)
        text = torch.randn(count, self.size.tokens, self.size.width, generator=draw)
        pooled = torch.randn(count, self.size.pooled, generator=draw)
        return {"text": text.to(self.device), "pooled": pooled.to(self.device)}


def _small(size: Size) -> nn.Module:
    config = UNetConfig(4, 4, 128, (1, 2), 1, 64, size.width, size.pooled)
    return UNet(config)


def _sdxl() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        use_linear_projection=True,
    )


class Encoders(nn.Module):
    """What the usual loop keeps and runs beside the UNet: text encoders, and the encoding half of a VAE."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.texts = nn.ModuleList(
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True), layers
            )
            for width, layers in size.text
        )
        rows: list[nn.Module] = [nn.Conv2d(3, size.vae, 3, padding=1)]
        channels = size.vae
        for level, factor in enumerate((1, 2, 4, 4)):
            for _ in range(4):  # two residual blocks of two convolutions
                rows += [
                    nn.GroupNorm(4, channels),
                    nn.SiLU(),
                    nn.Conv2d(channels, factor * size.vae, 3, 1, 1),
                ]
                channels = factor * size.vae
            if level < 3:
                rows.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        self.vae = nn.Sequential(*rows, nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """Latents `[B, 4, H/8, W/8]`. The embeddings of texts are dropped: their size is not the UNet's."""
        for encoder, (width, _) in zip(self.texts, self.size.text, strict=True):
            encoder(torch.zeros(len(pictures), self.size.tokens, width).to(pictures))
        return torch.cat([self.vae(part) for part in pictures.split(8)])


class Usual:
    """The usual loop; `step` is one optimizer step. The LoRA is the pack's own: only the loops differ."""

    def __init__(
        self, bench: Bench, config: DistillConfig, teacher: nn.Module, trained: Sequence[nn.Parameter]
    ) -> None:
        self.bench, self.config, self.teacher, self.trained = bench, config, teacher, trained
        self.grid = TimeGrid.discrete(bench.schedule, SKIP, "zero", 1)
        with bench.device:
            self.encoders = Encoders(bench.size).to(bench.dtype).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.trained, lr=config.learning_rate)
        self.cond, self.uncond = bench.prompts(config.batch), bench.prompts(1)

    def step(self) -> float:
        bench, count = self.bench, self.config.batch
        side = 8 * bench.size.latent
        pictures = torch.rand(count, 3, side, side).to(bench.device, bench.dtype)
        with torch.no_grad():
            latents = self.encoders(pictures).float()
        n = torch.randint(1, self.grid.n + 1, (count,))
        w = 3 + 5 * torch.rand(count, 1, 1, 1).to(latents)
        now, prev, end = self.grid.at(n), self.grid.at(n - 1), self.grid.at(torch.zeros_like(n))
        level = now.level.broadcast(latents)
        x = level.alpha * latents + level.sigma * torch.randn_like(latents)
        guess = tcf1(*bench.predictor(self.cond)(x, now, end), end.level)
        with torch.no_grad():
            uncond = {k: v.expand(count, *v.shape[1:]) for k, v in self.uncond.items()}
            eps = [bench.eps(self.teacher, x, now.t, c).float() for c in (self.cond, uncond)]
            mixed = eps[0] + w * (eps[0] - eps[1])
            before = tcf1(*to_x0_eps("epsilon", mixed, x, now.level), prev.level)
            aim = tcf1(*bench.predictor(self.cond)(before, prev, end), end.level)
        loss = distance(guess, aim, "huber", self.config.huber_c).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()


def usual(bench: Bench, config: DistillConfig, recompute: bool) -> dict[str, float]:
    teacher = copy.deepcopy(bench.network)
    kept = recomputed(bench.network) if recompute else nullcontext()
    with injected(bench.network, config.rank, config.alpha, config.targets, 0) as lora, kept:
        loop = Usual(bench, config, teacher, list(lora.parameters().values()))
        loop.step()  # makes the optimizer's moments
        began = clock(bench.device)
        for _ in range(config.steps):
            loop.step()
        seconds, peak = clock(bench.device) - began, peak_memory(bench.device)
        flops = counted(loop.step)
    return {"seconds": seconds / config.steps / config.batch, "peak": peak, "flops": flops / config.batch}


def ours(bench: Bench, config: DistillConfig, recompute: bool) -> dict[str, float]:
    """A whole run of the pack's loop: the teacher's trajectories, every step, the files at the end. What it
    compiles is compiled in a run before it.
    """
    cond, uncond = bench.prompts(config.trajectories), bench.prompts(1)
    grid = TimeGrid.discrete(bench.schedule, SKIP, config.s_range, config.s_steps)
    parts = InParts(bench, 2 * config.batch)

    def run(config: DistillConfig) -> float:
        with tempfile.TemporaryDirectory() as folder:
            source = source_of(config, parts, cond, uncond, grid, Path(folder), None, ALONE)
            kept = recomputed(bench.network) if recompute else nullcontext()
            with student_on(bench, config) as student, kept:
                began = clock(bench.device)
                distill(config, student, source, uncond, grid, Path(folder), quiet=True)
                return clock(bench.device) - began

    with compiled(bench.network) if config.compile else nullcontext():
        if config.compile:
            run(config)
        seconds, peak = run(config), peak_memory(bench.device)
    flops = counted(lambda: run(config))
    samples = config.steps * config.batch
    return {"seconds": seconds / samples, "peak": peak, "flops": flops / samples}


def clock(device: torch.device) -> float:
    """Seconds: of the processor on a CPU, which others use as well; by the wall on a GPU."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int:
    """Bytes of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One loop, in this process."""
    loop = LOOPS[options.loop]
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    # whole shards: trajectories x pairs x reuse = steps x batch
    trajectories = max(1, options.steps * options.batch // (1000 // SKIP * loop.reuse))
    steps = trajectories * (1000 // SKIP) * loop.reuse // options.batch
    config = DistillConfig(
        steps=steps, batch=options.batch, warmup=0, rank=options.rank, alpha=float(options.rank), skip=SKIP,
        trajectories=trajectories, reuse=loop.reuse, consecutive=loop.consecutive, compile=loop.compile,
        learning_rate=1e-4, save_every=10**6, validate_every=10**6,
    )  # fmt: skip
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    before = 0 if device.type == "cuda" else peak_memory(device)
    found = (ours if loop.ours else usual)(Bench(options.size, device, dtype), config, loop.recompute)
    return {**found, "peak": found["peak"] - before}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of each loop")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--loop", choices=sorted(LOOPS), help="this one only, as JSON")
    options = parser.parse_args()
    if options.loop:
        print(json.dumps(measure(options)))
        return
    print("| loop | s a sample | TFLOP a sample | TFLOP/s | peak, MiB | samples a second, ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    first = None
    for loop in LOOPS:
        command = [sys.executable, __file__, *sys.argv[1:], "--loop", loop]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(answer.splitlines()[-1])
        first = first or row["seconds"]
        cells = [loop, f"{row['seconds']:.4f}", f"{row['flops'] / 1e12:.4f}"]
        cells += [f"{row['flops'] / row['seconds'] / 1e12:.4f}", f"{row['peak'] / 2**20:.0f}"]
        cells.append(f"{first / row['seconds']:.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
