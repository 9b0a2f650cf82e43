"""Trains the embedded teacher: a plain conditional diffusion model, before any distillation.

Every random choice is a function of (seed, step), so that a run that was stopped goes on as if it had not
been.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..samplers import Level
from ..training.checkpoint import load_tensors, save_tensors
from ..training.report import Log, Progress
from ..training.state import approach
from .avatars import Labels, draw_images, draw_labels, forget
from .model import EmbeddedModel
from .vae import VAE

POOL = 32_768  # pictures drawn at a time; each pool serves POOL_STEPS steps
POOL_STEPS = 1_000


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the teacher's training."""

    steps: int = 5_000  # optimizer steps
    batch: int = 128  # pictures a step
    learning_rate: float = 2e-3  # AdamW's, at its peak
    warmup: int = 200  # steps of linear warm-up; cosine to 0 afterwards
    weight_decay: float = 0.01
    clip: float = 1.0  # gradient norm
    ema: float = 0.999  # of the weights, per step; the average is what is saved
    seed: int = 0


def draw_pool(vae: VAE, seed: int, epoch: int) -> tuple[Tensor, Labels]:
    """Latents of the pictures of one stretch of steps, with their full prompts."""
    rng = np.random.default_rng([seed, 1, epoch])
    labels = draw_labels(POOL, rng)
    images = torch.from_numpy(draw_images(labels, rng))
    device = vae.scale.device
    return torch.cat([vae.encode(part.to(device)) for part in images.split(1024)]), labels


def velocity_target(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """v of Salimans and Ho: `alpha eps - sigma x0`."""
    return level.alpha * noise - level.sigma * x0


def learning_rate(config: TeacherConfig, step: int) -> float:
    """Linear warm-up, then a cosine that ends at 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train_teacher(
    config: TeacherConfig, out: Path, *, device: str = "cpu", save_every: int = 500
) -> EmbeddedModel:
    """Train (or go on training) the teacher; writes `out` at the end and `out` + `.state` on the way. Returns
    the average.
    """
    model = EmbeddedModel().to(device)
    torch.manual_seed(config.seed)
    _initialise(model)
    average = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
        fused=True,
    )
    state_file = out.with_suffix(".state.safetensors")
    start, spent = _resume(state_file, config, model, average, optimizer)
    log, bar = Log(out.with_suffix(".jsonl"), start), Progress(config.steps, start, label="teacher")
    vae = VAE.load().to(device)
    pool: tuple[int, Tensor, Labels] | None = None
    clock, running = time.monotonic() - spent, 0.0
    for step in range(start, config.steps):
        # Batch: pictures, prompts with gaps, one timestep per stratum.
        if pool is None or pool[0] != step // POOL_STEPS:
            pool = (step // POOL_STEPS, *draw_pool(vae, config.seed, step // POOL_STEPS))
        rng = np.random.default_rng([config.seed, 2, step])
        pick = rng.integers(len(pool[1]), size=config.batch)
        x0 = pool[1][pick]
        cond = model.encode_labels(forget(pool[2][pick], rng))
        strata = (np.arange(config.batch) + rng.random(config.batch)) / config.batch
        t = torch.from_numpy((strata * 1000).astype(np.int64)).to(device)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(device)
        level = model.schedule.point(t).level.broadcast(x0)

        # Loss: mean squared error of v, all timesteps alike.
        v = model.unet(level.alpha * x0 + level.sigma * noise, t, cond["context"], cond["pooled"])
        loss = F.mse_loss(v, velocity_target(x0, noise, level))

        # Step, average.
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        approach(average, dict(model.named_parameters()), decay)

        # Report.
        running += loss.item()
        if (step + 1) % 100 == 0:
            if not math.isfinite(running):
                raise ValueError(
                    f"teacher: the loss is {running} at step {step + 1}; lower learning_rate and start again"
                )
            log.write(step=step + 1, loss=running / 100, seconds=round(time.monotonic() - clock, 1))
            bar.show(step + 1, running / 100, config.batch)
            running = 0.0
        if (step + 1) % save_every == 0 or step + 1 == config.steps:
            _save_state(state_file, config, step + 1, time.monotonic() - clock, model, average, optimizer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(average[name])
    metadata = {
        "seconds": f"{time.monotonic() - clock:.0f}",
        "prediction_type": "v",
        "data": "pixel-art avatars, CC0-1.0",
    }
    model.save(out, {**{f"teacher.{k}": str(v) for k, v in asdict(config).items()}, **metadata})
    return model.eval().requires_grad_(False)


def _initialise(model: EmbeddedModel) -> None:
    """Redraw the weights from the seeded generator; zero-initialised layers stay zero."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and isinstance(weight, Tensor) and weight.any():
            reset()


def _fingerprint(config: TeacherConfig) -> str:
    return hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:16]


def _save_state(
    path: Path,
    config: TeacherConfig,
    step: int,
    seconds: float,
    model: EmbeddedModel,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"ema.{k}": v for k, v in average.items()
    }
    for i, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in slots.items()}
    save_tensors(path, tensors, {"step": str(step), "seconds": str(seconds), "config": _fingerprint(config)})


def _resume(
    path: Path,
    config: TeacherConfig,
    model: EmbeddedModel,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Steps and seconds already done, with everything put back."""
    if not path.is_file():
        return 0, 0.0
    tensors, metadata = load_tensors(path)
    if metadata.get("config") != _fingerprint(config):
        raise ValueError(
            f"teacher: {path.name} was made with other settings; delete it or choose another --out"
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name in average:
        average[name].copy_(tensors[f"ema.{name}"])
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            slots.setdefault(int(index), {})[name] = value
    whole = optimizer.state_dict()
    whole["state"] = slots
    optimizer.load_state_dict(whole)
    return int(metadata["step"]), float(metadata["seconds"])
