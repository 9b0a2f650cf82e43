"""Runs in ComfyUI's interpreter: files with random weights, as small as its loaders take them, to distil.

    python distill_standins.py COMFYUI MODELS

A Stable Diffusion 1.5 checkpoint of one level (its text encoder has the size that the host fixes), a flow
transformer of SD3's kind with one block, and a VAE of the tiny kind for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import workflow_standins as standins

UNET: dict[str, Any] = {
    **standins.SD15,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
}
FLOW: dict[str, Any] = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 1,
    "input_size": None,
    "adm_in_channels": 16,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 16, "out_features": 64},
    },
    "num_patches": 64,
    "pos_embed_max_size": 8,
    "pos_embed_scaling_factor": None,
}

RUN: dict[str, Any] = {
    "prompts": "",
    "batch": 2,
    "rank": 4,
    "learning_rate": 1e-3,
    "cfg_min": 3.0,
    "cfg_max": 5.0,
    "s_range": "uniform",
    "preset": "sd15",
    "run_seed": 1,
}
"""Inputs of TCD_Distill for a tiny run."""


def vae(channels: int) -> dict[str, Any]:
    from comfy.taesd.taesd import TAESD

    found = standins.shapes(TAESD, latent_channels=channels)
    return {name: like for name, like in found.items() if like.ndim}  # scale and shift stay 1 and 0


def flow() -> dict[str, Any]:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    return standins.shapes(OpenAISignatureMMDITWrapper, **FLOW, **standins.host_layers())


def make(host: Any, models: Path) -> None:
    """Run this file."""
    standins.make(host, models, script=__file__)


def main(models: Path, _names: Sequence[str]) -> None:
    standins.write(models / "checkpoints/tiny-sd15.safetensors", standins.joined("SD15", UNET, vae(4)))
    standins.write(models / "diffusion_models/tiny-flow.safetensors", flow())
    standins.write(models / "vae/tiny-flow.safetensors", vae(16))


if __name__ == "__main__":
    standins.in_host(main)
