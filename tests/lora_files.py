"""LoRA files of every key format, written without the code under test."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from comfyui_tcd.training.unet_layers import Architecture, Names, layers

# What the published LCM and TCD LoRAs adapt.
PUBLISHED = re.compile(
    r"(to_[qkv]|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut|"
    r"downsamplers\.0\.conv|upsamplers\.0\.conv|time_emb_proj)$"
)


class Pair(NamedTuple):
    up: Tensor
    down: Tensor
    alpha: float

    @property
    def delta(self) -> Tensor:
        up, down = self.up.flatten(1).float(), self.down.flatten(1).float()
        return self.alpha / self.down.shape[0] * (up @ down)


Pairs = dict[Names, Pair]


def adapters(
    unet: Architecture,
    rank: int = 4,
    alpha: float = 3.0,
    dtype: torch.dtype = torch.float32,
    only: str = PUBLISHED.pattern,
    every: int = 1,
) -> Pairs:
    """Random factors for the layers of `unet`; a convolution's down-factor is one, as everywhere."""
    generator = torch.Generator().manual_seed(3)
    chosen = [row for row in layers(unet) if re.search(only, row.diffusers)][::every]

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5).to(dtype)

    return {
        row: Pair(
            random(row.shape[0], rank, *(1,) * (len(row.shape) - 2)), random(rank, *row.shape[1:]), alpha
        )
        for row in chosen
    }


def kohya(pairs: Pairs, ldm: bool = False) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for row, pair in pairs.items():
        base = "lora_unet_" + (row.ldm if ldm else row.diffusers).replace(".", "_")
        out[f"{base}.lora_down.weight"], out[f"{base}.lora_up.weight"] = pair.down, pair.up
        out[f"{base}.alpha"] = torch.tensor(pair.alpha)
    return out


def comfyui(pairs: Pairs) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for row, pair in pairs.items():
        base = f"diffusion_model.{row.ldm}"
        out[f"{base}.lora_down.weight"], out[f"{base}.lora_up.weight"] = pair.down, pair.up
        out[f"{base}.alpha"] = torch.tensor(pair.alpha)
    return out


def lora_ab(pairs: Pairs, prefix: str, adapter: str = "") -> dict[str, Tensor]:
    """peft's and diffusers' keys, alpha in the weights."""
    out: dict[str, Tensor] = {}
    for row, pair in pairs.items():
        base = prefix + row.diffusers
        out[f"{base}.lora_A{adapter}.weight"] = pair.down
        out[f"{base}.lora_B{adapter}.weight"] = pair.up * (pair.alpha / pair.down.shape[0])
    return out


def before_peft(pairs: Pairs, processor: bool = True) -> dict[str, Tensor]:
    """`...attn1.processor.to_q_lora.down.weight`, or `...attn1.to_q.lora.down.weight`."""
    out: dict[str, Tensor] = {}
    for row, pair in pairs.items():
        attention = re.match(r"(.*)\.(to_[qkv]|to_out)(\.0)?$", row.diffusers)
        base = f"unet.{row.diffusers}.lora"
        if attention and processor:
            base = f"unet.{attention[1]}.processor.{attention[2]}_lora"
        out[f"{base}.down.weight"] = pair.down
        out[f"{base}.up.weight"] = pair.up * (pair.alpha / pair.down.shape[0])
    return out


def every_format(pairs: Pairs) -> dict[str, dict[str, Tensor]]:
    return {
        "kohya": kohya(pairs),
        "kohya-ldm": kohya(pairs, ldm=True),
        "comfyui": comfyui(pairs),
        "peft": lora_ab(pairs, "base_model.model."),
        "peft, named": lora_ab(pairs, "base_model.model.", ".default"),
        "peft, in unet": lora_ab(pairs, "unet.base_model.model."),
        "diffusers": lora_ab(pairs, "unet."),
        "diffusers, bare": lora_ab(pairs, ""),
        "diffusers-old": before_peft(pairs),
        "diffusers-old, attention": before_peft(pairs, processor=False),
    }


def text_encoder(prefix: str, blocks: int = 2, width: int = 16, rank: int = 4) -> dict[str, Tensor]:
    """kohya's keys for a CLIP text encoder."""
    out: dict[str, Tensor] = {}
    for i in range(blocks):
        for name in ("self_attn_q_proj", "self_attn_out_proj", "mlp_fc1"):
            base = f"{prefix}text_model_encoder_layers_{i}_{name}"
            wide = 4 * width if name == "mlp_fc1" else width
            out[f"{base}.lora_down.weight"] = torch.randn(rank, width)
            out[f"{base}.lora_up.weight"] = torch.randn(wide, rank)
            out[f"{base}.alpha"] = torch.tensor(2.0)
    return out


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, dict(metadata or {}))
    return path
