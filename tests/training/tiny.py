"""Networks small enough to distil in a test: a UNet, and one whose every map is a scalar (method.md 6.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comfyui_tcd.embedded.unet import UNet, UNetConfig
from comfyui_tcd.samplers import DiscreteSchedule, Point, Predict, Schedule, placed, to_x0_eps
from comfyui_tcd.training.backbone import Cond, digest
from comfyui_tcd.training.checkpoint import load_tensors
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import CHECKPOINT, LORA, Outcome, Student, distill, student_on
from comfyui_tcd.training.objective import TimeGrid
from comfyui_tcd.training.pairs import OnPairs, Source, Trajectories
from comfyui_tcd.training.processes import ALONE, Crew
from comfyui_tcd.training.report import read_log


def settings(**changes: Any) -> DistillConfig:
    """A run of seconds: 5 times, 10 pairs a shard, so that 3 steps of 4 samples need two shards."""
    small: dict[str, Any] = {
        "steps": 6,
        "batch": 4,
        "learning_rate": 1e-3,
        "warmup": 2,
        "rank": 4,
        "alpha": 4.0,
        "skip": 200,
        "w_min": 0.5,
        "w_max": 2.0,
        "trajectories": 2,
        "reuse": 1,
        "consecutive": 1,
        "save_every": 4,
        "validate_every": 3,
        "seed": 7,
    }
    return DistillConfig(**{**small, **changes})


class TinyUNet:
    """The embedded model's UNet at its smallest, untrained, as a backbone. `before` sees each call of the
    network.
    """

    latent_shape: tuple[int, ...] = (4, 4, 4)

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # 64 channels: with 32, GroupNorm would have one channel a group and remove the embedding of time
            config = UNetConfig(4, 4, 64, (1,), 1, num_head_channels=16, context_dim=32, adm_in_channels=8)
            self.network: nn.Module = UNet(config)
            for parameter in self.network.parameters():
                if not bool(parameter.any()):  # ldm's zeros would hide the prompt
                    nn.init.normal_(parameter, std=0.1)
        self.schedule: Schedule = DiscreteSchedule.from_betas()
        self.before: Callable[[Tensor], None] | None = None

    def predictor(self, cond: Cond) -> Predict:
        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            if self.before is not None:
                self.before(x)
            dtype = self.network.get_submodule("label_emb.0.0").weight.dtype
            y, context, pooled = (v.to(dtype) for v in (x, cond["context"], cond["pooled"]))  # pyright: ignore
            return to_x0_eps(
                "v", self.network(y, placed(now.t, x.device).expand(len(x)), context, pooled), x, now.level
            )

        return predict

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents[:, :3].permute(0, 2, 3, 1) + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def tinier() -> TinyUNet:
    """Its middle block alone, for tests of what a run does and not of what a network is."""
    backbone = TinyUNet()
    assert isinstance(backbone.network, UNet)
    backbone.network.input_blocks = backbone.network.input_blocks[:1]  # the convolution from the latents
    backbone.network.output_blocks = nn.ModuleList()
    return backbone


class Scalar(nn.Module):
    """`eps = factor[kind, t] x`, the factors being the weights of one linear layer, so that a LoRA can learn
    them.
    """

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.table = nn.Linear(factors.numel(), 1, bias=False)
        with torch.no_grad():
            self.table.weight.copy_(factors.reshape(1, -1))

    def forward(self, x: Tensor, cell: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(cell, self.table.in_features).to(x)
        out: Tensor = self.table(one_hot).reshape(-1, *([1] * (x.ndim - 1))) * x
        return out


class Gaussians:
    """The exact teacher of data `N(0, std^2)`: one std with the prompt, another without. Every map is a
    scalar.

    `factors [2, N + 1]`, row 0 without and row 1 with the prompt: `k_t = sigma_t / (alpha_t^2 std^2 +
    sigma_t^2)`.
    """

    def __init__(self, times: Sequence[float], std_uncond: float, std_cond: float, shape: tuple[int, ...]):
        self.schedule: Schedule = DiscreteSchedule.from_betas()
        self.latent_shape = shape
        self.times = torch.tensor(list(times), dtype=torch.float64)
        alpha, sigma = self.schedule.point(self.times).level
        stds = torch.tensor([[std_uncond], [std_cond]], dtype=torch.float64)
        self.factors = sigma / (alpha**2 * stds**2 + sigma**2)
        self.network: nn.Module = Scalar(self.factors)

    def predictor(self, cond: Cond) -> Predict:
        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            index = torch.searchsorted(self.times, now.t.contiguous())
            cell = cond["kind"][:, 0].long() * len(self.times) + index
            return to_x0_eps("epsilon", self.network(x, cell), x, now.level)

        return predict

    def decode(self, latents: Tensor) -> Tensor:
        raise AssertionError("scalars have no pictures: these runs do not validate")


def kind(value: int, count: int = 1) -> dict[str, Tensor]:
    """The prompts of `Gaussians`: 1 with, 0 without."""
    return {"kind": torch.full((count, 1), float(value))}


def prompts(count: int, seed: int = 1) -> dict[str, Tensor]:
    """Encoded prompts for `TinyUNet`."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "context": torch.randn(count, 3, 32, generator=draw),
        "pooled": torch.randn(count, 8, generator=draw),
    }


def uncond() -> dict[str, Tensor]:
    """The empty prompt of `TinyUNet`."""
    return prompts(1, seed=2)


def grid_of(backbone: Any, config: DistillConfig) -> TimeGrid:
    return TimeGrid.discrete(backbone.schedule, config.skip, config.s_range, config.s_steps)


def data_free(
    backbone: TinyUNet,
    config: DistillConfig,
    folder: Path,
    count: int = 3,
    crew: Crew = ALONE,
    on_pairs: OnPairs = lambda done, steps: None,
) -> Trajectories:
    """The source that a run with prompts only has."""
    return Trajectories(
        backbone,
        prompts(count),
        uncond(),
        grid_of(backbone, config),
        folder / "pairs",
        seed=config.seed,
        trajectories=config.trajectories,
        reuse=config.reuse,
        w_range=(config.w_min, config.w_max),
        keep_teacher=config.cache_teacher,
        consecutive=config.linked,
        crew=crew,
        on_pairs=on_pairs,
    )


def fingerprint(network: nn.Module) -> dict[str, object]:
    """All that a run must leave as it was: names, classes, bytes, flags, hooks."""
    return {
        "modules": [(n, type(m), m.training, len(m._forward_hooks)) for n, m in network.named_modules()],
        "parameters": [
            (n, p.dtype, p.requires_grad, p.grad is None, digest({n: p}))
            for n, p in network.named_parameters()
        ],
        "peft": hasattr(network, "peft_config"),
    }


def same_run(a: Path, b: Path) -> bool:
    """Two run folders equal bit for bit: weights, averages, optimizer, progress, LoRA."""
    files = [[load_tensors(folder / name) for name in (CHECKPOINT, LORA)] for folder in (a, b)]
    return all(
        left[1] == right[1]
        and set(left[0]) == set(right[0])
        and all(torch.equal(v, right[0][k]) for k, v in left[0].items())
        for left, right in zip(*files, strict=True)
    )


def assert_near_run(a: Path, b: Path) -> None:
    """Runs by unlike numbers of processes: moments to 1e-6, weights to 1e-5 of root mean square, and losses.

    What a step adds up in another order is off by its rounding, some 1e-7. Of a gradient that is 0 but for it
    Adam makes a whole step: single weights are up to a learning rate apart, so the tests take a low one.
    """
    (one, _), (other, _) = (load_tensors(folder / CHECKPOINT) for folder in (a, b))
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart = (value - other[name]).float()
        if name.startswith("optimizer/"):
            assert float(apart.abs().max()) < 1e-6, name
        else:
            assert float(apart.square().mean().sqrt()) < 1e-5, name
    losses = [[record["loss"] for record in read_log(folder / "log.jsonl")] for folder in (a, b)]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-5)


class Stop(Exception):
    """What a host raises to interrupt a run."""


def stop_at(step: int) -> Callable[[int, float], None]:
    def on_step(done: int, loss: float) -> None:
        if done == step:
            raise Stop(f"at {step}")

    return on_step


def run(
    config: DistillConfig,
    folder: Path,
    backbone: TinyUNet | None = None,
    source: Source | None = None,
    inside: Callable[[Student], None] | None = None,
    **options: Any,
) -> Outcome:
    """A whole run as an entry point makes one. `inside` sees the student before it starts."""
    backbone = backbone or TinyUNet()
    with student_on(backbone, config) as student:
        if inside is not None:
            inside(student)
        source = source or data_free(backbone, config, folder, crew=options.get("crew", ALONE))
        grid = grid_of(backbone, config)
        return distill(config, student, source, uncond(), grid, folder, quiet=True, **options)


def run_tinier(
    config: DistillConfig, folder: Path, backbone: TinyUNet | None = None, *given: Any, **options: Any
) -> Outcome:
    """`run` on the tinier network."""
    return run(config, folder, backbone or tinier(), *given, **options)
