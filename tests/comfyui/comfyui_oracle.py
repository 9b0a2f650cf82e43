"""diffusers' TCDScheduler around a network inside ComfyUI: what a run there has to equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers.schedulers.scheduling_tcd as scheduling
import pytest
import torch
from torch import Tensor

PREDICTIONS = {
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v+zsnr": "v_prediction",
    "x0": "sample",
    "lcm": "epsilon",
}
TOLERANCE = {"epsilon": 1e-4, "v": 1e-4, "v+zsnr": 2e-3, "x0": 1e-4, "lcm": 1e-4}
"""Relative error. With zero terminal SNR the host and diffusers round the last alphas_cumprod differently."""
SCALE = 0.18215
"""Of SD 1.5's latents: a LATENT is the sampler's state over this."""


class Run(NamedTuple):
    x: Tensor
    timesteps: list[int]


def scheduler(kind: str, original_steps: int = 50) -> scheduling.TCDScheduler:
    # As a setting: set_timesteps takes any value of its own original_inference_steps for "all timesteps".
    return scheduling.TCDScheduler(
        original_inference_steps=original_steps,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=PREDICTIONS[kind],
        rescale_betas_zero_snr=kind == "v+zsnr",
    )


def exact(kind: str, original_steps: int = 50) -> scheduling.TCDScheduler:
    """`scheduler` with alphas_cumprod in float64: diffusers' float32 product is off by 2.6e-5 of sigma^2."""
    made = scheduler(kind, original_steps)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    made.alphas_cumprod = torch.cumprod(1 - betas, 0)
    made.final_alpha_cumprod = made.alphas_cumprod[0]
    return made


def timesteps_of_diffusers(kind: str, steps: int, strength: float = 1.0) -> list[int]:
    made = scheduler(kind)
    made.set_timesteps(steps, strength=strength)
    times: Any = made.timesteps
    return times.tolist()


def diffusers_run(
    network: Callable[[Tensor, Tensor], Tensor],
    kind: str,
    steps: int,
    gamma: float | Sequence[float],
    noise: Tensor,
    noises: Sequence[Tensor],
    strength: float = 1.0,
    original_steps: int = 50,
    latent: Tensor | None = None,
    mask: Tensor | None = None,
    made: Callable[[str, int], scheduling.TCDScheduler] = scheduler,
) -> Run:
    """As diffusers' pipelines do it: `latent` (in the model's scale) for img2img, `mask` for inpainting."""
    scheduler_ = made(kind, original_steps)
    scheduler_.set_timesteps(steps, strength=strength)
    times: Any = scheduler_.timesteps
    x = noise if latent is None else scheduler_.add_noise(latent, noise, times[:1])
    queue, gammas = list(noises), [gamma] * steps if isinstance(gamma, int | float) else list(gamma)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling, "randn_tensor", lambda *_, **__: queue.pop(0))
        for i, t in enumerate(times):
            x = scheduler_.step(network(x, t), t, x, eta=gammas[i], return_dict=False)[0]
            if mask is not None and latent is not None:
                # diffusers' inpainting pipeline for a network without mask channels
                last = i + 1 == len(times)
                kept = latent if last else scheduler_.add_noise(latent, noise, times[i + 1 : i + 2])
                x = mask * x + (1 - mask) * kept
    return Run(x, times.tolist())


def relative(a: Tensor, b: Tensor) -> float:
    assert torch.isfinite(a).all() and torch.isfinite(b).all()
    return float((a - b).norm() / b.norm())


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compare(
    inside: Callable[..., Any],
    kind: str,
    steps: int,
    gamma: float,
    strength: float,
    made: Callable[[str, int], scheduling.TCDScheduler] = scheduler,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Relative error of the LATENT of a run inside ComfyUI; AssertionError for other timesteps.

    `made` and `dtype` are of diffusers' side; ComfyUI's sampling is float32.
    """
    noise, noises = randn(1, 1, 4, 8, 8), [randn(100 + i, 1, 4, 8, 8) for i in range(steps)]
    latent = randn(2, 1, 4, 8, 8) if strength < 1 else None
    expected = diffusers_run(
        lambda x, t: inside("network", kind=kind, x=x, t=t),
        kind,
        steps,
        gamma,
        noise.to(dtype),
        [z.to(dtype) for z in noises],
        strength,
        latent=None if latent is None else latent.to(dtype),
        made=made,
    )
    sigmas = inside("grid", kind=kind, steps=steps, denoise=strength)
    given = torch.zeros_like(noise) if latent is None else latent / SCALE
    ours = inside("custom", kind=kind, sigmas=sigmas, latent=given, noise=noise, noises=noises, gamma=gamma)
    called = [call["t"][0] for call in ours["calls"]]
    assert called == expected.timesteps, f"{called} for {expected.timesteps}"
    return relative(ours["latent"].to(dtype) * SCALE, expected.x)
