"""The autoencoder: 16x16 pictures to 4x4 latents of 8 channels and back, as Stable Diffusion's first stage.

Trained with noise on the latents as large as a diffusion model's own errors, so that the decoder answers with
clean pixels.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.checkpoint import load_tensors, save_tensors
from .avatars import draw_images, draw_labels

WEIGHTS = Path(__file__).parent / "weights"
FILE = WEIGHTS / "vae.safetensors"

CHANNELS = 8
SIDE = 4  # of a latent; 16 / 4
WIDTH = 96
KL_WEIGHT = 0.002
EXTRA_NOISE = 0.3  # the most that is added to a latent in training


class Residual(nn.Module):
    """Two 3x3 convolutions on a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(16, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(16, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class VAE(nn.Module):
    """`encode(uint8 [B, 16, 16, 3]) -> [B, 8, 4, 4]`, of unit variance by training; `decode` goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, WIDTH, 3, padding=1), Residual(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 2, stride=2), Residual(WIDTH), Residual(WIDTH),
            nn.GroupNorm(16, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), Residual(WIDTH), Residual(WIDTH),
            nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), Residual(WIDTH),
            Residual(WIDTH), nn.GroupNorm(16, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )  # fmt: skip
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # to unit deviation, as SD's 0.18215

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents."""
        mean, logvar = self.encoder(to_unit(images)).chunk(2, dim=1)
        return mean, logvar.clamp(-10.0, 4.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of deviation 1."""
        return self.moments(images)[0] * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """uint8 `[B, 16, 16, 3]`."""
        x: Tensor = self.decoder(latents.float() / self.scale)
        return ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    @classmethod
    def load(cls, path: Path = FILE) -> VAE:
        """The shipped autoencoder."""
        vae = cls()
        vae.load_state_dict({k: v.float() for k, v in load_tensors(path)[0].items()})
        return vae.eval().requires_grad_(False)


def to_unit(images: Tensor) -> Tensor:
    """uint8 `[B, H, W, 3]` to `[B, 3, H, W]` in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def vae_loss(vae: VAE, images: Tensor, noise: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """`(loss, mean absolute error)`: L1 on pixels, which keeps flat colours flat, and KL to N(0, I) per
    latent value.

    `noise [B, 8, 4, 4]`; `extra [B, 1, 1, 1]` is the deviation of noise beyond the posterior's own.
    """
    mean, logvar = vae.moments(images)
    out = vae.decoder(mean + (logvar.exp() + extra**2).sqrt() * noise)
    error = F.l1_loss(out, to_unit(images))
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return error + KL_WEIGHT * kl, error


def train_vae(out: Path, *, steps: int = 2500, batch: int = 128, seed: int = 0) -> float:
    """Train, and write `out`; returns the mean absolute error on held-out pictures in grey levels."""
    torch.manual_seed(seed)
    vae = VAE()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
    began = time.monotonic()
    pool = torch.empty(0)
    for step in range(steps):
        if step % 250 == 0:
            pool = _pictures(32_768, seed, step)
        rng = np.random.default_rng([seed, 15, step])
        images = pool[rng.integers(len(pool), size=batch)]
        noise = torch.from_numpy(rng.standard_normal((batch, CHANNELS, SIDE, SIDE), np.float32))
        extra = torch.from_numpy(rng.random((batch, 1, 1, 1), np.float32) * EXTRA_NOISE)
        loss, _ = vae_loss(vae, images, noise, extra)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval()
    held_out = _pictures(4096, seed, -1)
    vae.scale.fill_(1.0 / vae.encode(held_out).std())
    error = (vae.decode(vae.encode(held_out)).float() - held_out.float()).abs().mean().item()
    metadata = {
        "steps": str(steps),
        "batch": str(batch),
        "seed": str(seed),
        "seconds": f"{time.monotonic() - began:.0f}",
    }
    save_tensors(out, {k: v.half() for k, v in vae.state_dict().items()}, metadata)
    return error


def _pictures(count: int, seed: int, stretch: int) -> Tensor:
    rng = np.random.default_rng([seed, 14, stretch + 1])
    return torch.from_numpy(draw_images(draw_labels(count, rng), rng))
