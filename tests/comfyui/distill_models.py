"""Tiny models of the host's own classes to distil: Stable Diffusion's, SDXL's, Flux's and SD3's layout."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import comfy.ldm.flux.model
import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import comfyui_inside
import torch
from distill_standins import FLOW

FLUX: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "vec_in_dim": 16,
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
SD3 = {**FLOW, "in_channels": 4, "context_size": 16}
FP8 = ("fp8", "rounded to fp8")
"""Stable Diffusion's layout with weights kept in 8 bits, and the same weights in 32."""
POOLED = {"flux": 16, "sd3": 16, "sdxl": 1280}


def _network(kind: str) -> Any:
    known, config = comfy.supported_models, comfyui_inside.UNET
    if kind == "flux":
        given = {f.name for f in fields(comfy.ldm.flux.model.FluxParams)}
        config = {k: v for k, v in FLUX.items() if k in given} | {"dtype": torch.float32}
        made = known.Flux({**config, "image_model": "flux"})
        made.latent_format = comfy.latent_formats.SD15()  # of four channels
        return comfy.model_base.Flux(made)
    if kind == "sd3":
        made = known.SD3({**SD3, "dtype": torch.float32})
        made.latent_format = comfy.latent_formats.SD15()
        return comfy.model_base.SD3(made)
    made = known.SDXL({**config, "adm_in_channels": 2816, "num_classes": "sequential"})
    made.unet_config.update(num_heads=4, num_head_channels=-1)
    return comfy.model_base.SDXL(made)


def _fp8(kind: str) -> Any:
    if kind == "fp8":
        return comfyui_inside.base("epsilon", dtype=torch.float8_e4m3fn)
    made = comfyui_inside.base.__wrapped__("epsilon", dtype=torch.float32)
    for weight in made.model.diffusion_model.parameters():
        weight.data = weight.data.to(torch.float8_e4m3fn).float()
    return made


@cache
def base(kind: str) -> Any:
    """A ModelPatcher of random weights, made in inference mode as the host's loaders do; one per kind."""
    if kind not in POOLED:
        with torch.inference_mode():
            return _fp8(kind) if kind in FP8 else comfyui_inside.base(kind, dtype=torch.float32)
    with torch.inference_mode():
        network = _network(kind)
        generator = torch.Generator().manual_seed(5)
        for _, weight in sorted(network.diffusion_model.named_parameters()):
            scale = 1 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
            weight.data = torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1)
        for table in network.diffusion_model.buffers():  # of positions; a file's loading would fill it
            table.copy_(torch.randn(table.shape, generator=generator))
        network.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)


def text(kind: str, seed: int, count: int = 1) -> Any:
    """A CONDITIONING of `count` entries, each with the pooled text that the model wants."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[Any] = []
    for _ in range(count):
        extra = {}
        if kind in POOLED:
            extra["pooled_output"] = torch.randn(1, POOLED[kind], generator=generator)
        rows.append([torch.randn(1, 7, 16, generator=generator), extra])
    return rows
