"""The embedded model: words -> tokens, the UNet, the autoencoder: Stable Diffusion's three parts, small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers import DiscreteSchedule, Point, Predict, Schedule, placed, timesteps, to_x0_eps
from ..training.backbone import Cond
from ..training.checkpoint import load_tensors, save_tensors
from .avatars import SLOTS, Labels
from .prompts import parse_all
from .unet import UNet, UNetConfig
from .vae import CHANNELS, SIDE, VAE, WEIGHTS

TEACHER = WEIGHTS / "teacher.safetensors"

LATENT = (CHANNELS, SIDE, SIDE)
PREDICTION = "v"

CONFIG = UNetConfig(in_channels=CHANNELS, out_channels=CHANNELS)


class TextEncoder(nn.Module):
    """A table: each value of each slot, "unspecified" included, has its own token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        sizes = torch.tensor([len(slot.phrases) + 1 for slot in SLOTS])
        self.first = (sizes.cumsum(0) - sizes).tolist()
        self.embedding = nn.Embedding(int(sizes.sum()), dim)

    def forward(self, labels: Tensor) -> dict[str, Tensor]:
        """`labels [B, 9]` slot values; `context [B, 9, 96]`, a token a slot, and `pooled [B, 864]`, the same
        in a row (SDXL's y).
        """
        context = self.embedding(labels + torch.tensor(self.first, device=labels.device))
        return {"context": context, "pooled": context.flatten(1)}


class EmbeddedModel(nn.Module):
    """Teacher and student live in here: the student is this network with a LoRA switched on."""

    def __init__(self, config: UNetConfig = CONFIG) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.text = TextEncoder(config.context_dim)
        self.vae: VAE | None = None  # loaded when the first picture is decoded
        self.told: Callable[[Predict], Predict] | None = None  # set where the network is a TCF(S+) student
        self.schedule: Schedule = DiscreteSchedule.from_betas("scaled_linear", 0.00085, 0.012, 1000)

    def times(self, steps: int) -> list[float]:
        """Where the official sampler evaluates a student of so many steps, in the model's own time."""
        return [float(t) for t in timesteps(steps)]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def encode_labels(self, labels: Labels | Tensor) -> dict[str, Tensor]:
        encoded: dict[str, Tensor] = self.text(torch.as_tensor(labels, device=self.device))
        return encoded

    def encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Encode word prompts; ValueError names an unknown word."""
        return self.encode_labels(parse_all(prompts))

    def unconditional(self) -> dict[str, Tensor]:
        """The empty prompt, `[1, ...]`."""
        return self.encode_labels(torch.zeros(1, len(SLOTS), dtype=torch.long))

    # What the trainer asks of a network (training.backbone.Backbone).
    latent_shape = LATENT

    @property
    def network(self) -> nn.Module:
        return self.unet

    def predictor(self, cond: Cond) -> Predict:
        """The network as the samplers see it: `(x [B, 8, 4, 4], now, target) -> (x0, eps)`."""

        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            t = placed(now.t.float(), x.device).expand(len(x))
            return to_x0_eps(PREDICTION, self.unet(x, t, cond["context"], cond["pooled"]), x, now.level)

        return predict

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B, 8, 4, 4]` to uint8 `[B, 16, 16, 3]`."""
        if self.vae is None:
            self.vae = VAE.load().to(self.device)
        return self.vae.decode(latents)

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """One file in half precision, the UNet under SD's own prefix."""
        tensors = {f"model.diffusion_model.{k}": v.half() for k, v in self.unet.state_dict().items()}
        tensors |= {f"text.{k}": v.half() for k, v in self.text.state_dict().items()}
        config = {k: str(v) for k, v in asdict(self.config).items()}
        save_tensors(path, tensors, {**config, **metadata})

    @classmethod
    def load(cls, path: Path = TEACHER) -> EmbeddedModel:
        """The shipped teacher, in float32 on the CPU, without gradients."""
        if not path.is_file():
            raise FileNotFoundError(f"teacher: {path} is missing; `tcd embedded train-teacher` makes one")
        tensors = {k: v.float() for k, v in load_tensors(path)[0].items()}
        model = cls()
        model.unet.load_state_dict(_under(tensors, "model.diffusion_model."))
        model.text.load_state_dict(_under(tensors, "text."))
        return model.eval().requires_grad_(False)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
