"""Every way to sample that is compared: TCD and LCM students by our sampler, the teacher by diffusers'
solvers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..samplers import Predict, plan, sample, timesteps
from ..training.backbone import repeat, take
from ..training.lora import load_lora, merge_lora
from ..training.objective import teacher_predictor
from ..training.pairs import generator
from ..training.splus import PREFIX, attach
from .avatars import Labels
from .model import LATENT, EmbeddedModel

CHUNK = 250


@dataclass(frozen=True)
class Prompts:
    """What all methods share: prompts `[B, 9]`, their starting noise `[B, 8, 4, 4]`, and the seed of later
    noise.
    """

    labels: Labels
    noise: Tensor
    seed: int

    @classmethod
    def make(cls, labels: Labels, seed: int) -> Prompts:
        return cls(labels, torch.randn(len(labels), *LATENT, generator=generator(seed, 31)), seed)

    def chunks(self) -> Iterator[tuple[int, Labels, Tensor]]:
        for first in range(0, len(self.labels), CHUNK):
            yield first, self.labels[first : first + CHUNK], self.noise[first : first + CHUNK]


def with_lora(model: EmbeddedModel, path: Path) -> EmbeddedModel:
    """A copy of the model with a LoRA merged into its weights; the embedding of a TCF(S+) student stays hung
    on.
    """
    tensors, _ = load_lora(path)
    student = copy.deepcopy(model)
    merge_lora(student.unet, tensors)
    if any(k.startswith(PREFIX) for k in tensors):
        # left on: this copy of the network is the student for the rest of its life
        student.told = attach(student.unet, tensors=tensors)[0].told
    return student


@torch.no_grad()
def sample_student(
    model: EmbeddedModel, prompts: Prompts, steps: int, gamma: float, *, order: int = 1, end: str = "official"
) -> Tensor:
    """Pictures of a few-step student, unguided: uint8 `[B, 16, 16, 3]`. `gamma = 1` is LCM's sampler."""
    turns = plan(model.schedule, model.times(steps), gamma, end)
    done: list[Tensor] = []
    for first, labels, noise in prompts.chunks():
        draw = generator(prompts.seed, 32, first)
        predict = model.predictor(model.encode_labels(labels))
        if model.told is not None:
            predict = model.told(predict)
        fresh = lambda: torch.randn(noise.shape, generator=draw)  # noqa: B023, E731
        done.append(
            model.decode(sample(predict, noise, turns, fresh, model.schedule, 2 if order == 2 else 1))
        )
    return torch.cat(done)


def ddim(steps: int, final: str) -> Any:
    """diffusers' DDIM on trailing timesteps, so that it starts from pure noise."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        **_sd_schedule(), set_alpha_to_one=final == "clean", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    return scheduler


def dpmpp_2s(steps: int, final: str) -> Any:
    """diffusers' DPM-Solver++(2S); `steps` counts evaluations."""
    from diffusers import DPMSolverSinglestepScheduler

    scheduler = DPMSolverSinglestepScheduler(
        **_sd_schedule(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=steps % 2 == 1 or final == "clean",
        final_sigmas_type="zero" if final == "clean" else "sigma_min",
    )
    scheduler.set_timesteps(timesteps=timesteps(steps))
    return scheduler


SOLVERS: dict[str, Callable[[int, str], Any]] = {"ddim": ddim, "dpmpp_2s": dpmpp_2s}


@torch.no_grad()
def sample_teacher(
    model: EmbeddedModel, prompts: Prompts, solver: str, steps: int, cfg: float, *, end: str = "official"
) -> Tensor:
    """Pictures of the guided teacher by one of diffusers' solvers; `steps` counts guided evaluations (two
    network rows each).
    """
    done: list[Tensor] = []
    for _, labels, noise in prompts.chunks():
        scheduler = SOLVERS[solver](steps, end)
        predict = guided_predictor(model, labels, cfg)
        x = noise
        for t in scheduler.timesteps:
            now = model.schedule.point(int(t))
            _, eps = predict(x, now, now)
            x = scheduler.step(eps, t, x).prev_sample
        done.append(model.decode(x))
    return torch.cat(done)


@torch.no_grad()
def sample_guided(model: EmbeddedModel, prompts: Prompts, steps: int, cfg: float) -> Tensor:
    """Pictures of the guided teacher by our own sampler without noise: DDIM, on a flow model Euler."""
    turns = plan(model.schedule, model.times(steps), 0.0)
    done: list[Tensor] = []
    for _, labels, noise in prompts.chunks():
        predict = guided_predictor(model, labels, cfg)
        done.append(model.decode(sample(predict, noise, turns, noise.clone)))
    return torch.cat(done)


def guided_predictor(model: EmbeddedModel, labels: Labels, cfg: float) -> Predict:
    """The teacher with guidance `cfg = 1 + w` for a batch of prompts."""
    cond = model.encode_labels(labels)
    w = torch.full((len(labels),), cfg - 1.0, dtype=torch.float64)
    return teacher_predictor(model, cond, repeat(take(model.unconditional(), slice(0, 1)), len(labels)), w)


def _sd_schedule() -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
    }
