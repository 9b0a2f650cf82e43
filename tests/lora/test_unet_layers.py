"""The table of layers against diffusers' models and its converter of ldm checkpoints."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_files import PUBLISHED
from torch import nn

from comfyui_tcd.training.unet_layers import (
    ARCHITECTURES,
    REFINER,
    SD2,
    SD15,
    SDXL,
    SSD1B,
    Architecture,
    all_layers,
    layers,
)

ATTENTION, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
SD_BLOCKS = {
    "down_block_types": (*(ATTENTION.format("Down"),) * 3, PLAIN.format("Down")),
    "up_block_types": (PLAIN.format("Up"), *(ATTENTION.format("Up"),) * 3),
    "block_out_channels": (320, 640, 1280, 1280),
}
SDXL_BLOCKS = {
    "down_block_types": (PLAIN.format("Down"), *(ATTENTION.format("Down"),) * 2),
    "up_block_types": (*(ATTENTION.format("Up"),) * 2, PLAIN.format("Up")),
    "block_out_channels": (320, 640, 1280),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "cross_attention_dim": 2048,
}
CONFIGS: dict[Architecture, dict[str, Any]] = {
    SD15: {**SD_BLOCKS, "cross_attention_dim": 768},
    SD2: {**SD_BLOCKS, "cross_attention_dim": 1024, "use_linear_projection": True},
    SDXL: {**SDXL_BLOCKS, "transformer_layers_per_block": [1, 2, 10]},
    SSD1B: {
        **SDXL_BLOCKS,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    REFINER: {
        **SDXL_BLOCKS,
        **SD_BLOCKS,
        "down_block_types": (PLAIN.format("Down"), *(ATTENTION.format("Down"),) * 2, PLAIN.format("Down")),
        "up_block_types": (PLAIN.format("Up"), *(ATTENTION.format("Up"),) * 2, PLAIN.format("Up")),
        "block_out_channels": (384, 768, 1536, 1536),
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
}


def model(unet: Architecture) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[unet])


def ids(unets: list[Architecture]) -> dict[str, Any]:
    return {"argvalues": unets, "ids": [a.name for a in unets]}


@pytest.mark.parametrize("unet", **ids(list(ARCHITECTURES)))
def test_every_layer_of_diffusers_model_is_listed_with_its_shape(unet: Architecture):
    there = {
        name: tuple(module.weight.shape)
        for name, module in model(unet).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    }
    assert {row.diffusers: row.shape for row in all_layers(unet)} == there
    assert set(layers(unet)) == {row for row in all_layers(unet) if len(there[row.diffusers]) > 1}


@pytest.mark.parametrize("unet", **ids([SD15, SD2, SDXL, REFINER]))
def test_both_names_mean_the_same_layer_as_in_diffusers_converter(unet: Architecture):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    rows = all_layers(unet)
    ldm = {f"model.diffusion_model.{row.ldm}.weight": torch.tensor(i) for i, row in enumerate(rows)}
    ldm |= {k.replace(".weight", ".bias"): v for k, v in ldm.items()}
    config = {
        **CONFIGS[unet],
        "layers_per_block": 2,
        "class_embed_type": None,
        "addition_embed_type": "text_time" if unet.vector else None,
    }
    theirs = convert_ldm_unet_checkpoint(ldm, config)
    named = {k.removesuffix(".weight"): int(v) for k, v in theirs.items() if k.endswith(".weight")}
    assert named == {row.diffusers: i for i, row in enumerate(rows)}


@pytest.mark.parametrize(("unet", "millions"), [(SD15, 67.5), (SSD1B, 105), (SDXL, 197)])
def test_size_of_the_published_lcm_loras(unet: Architecture, millions: float):
    """The model cards' counts of parameters, at rank 64."""
    shapes = [row.shape for row in layers(unet) if PUBLISHED.search(row.diffusers)]
    assert 64e-6 * sum(s[0] + math.prod(s[1:]) for s in shapes) == pytest.approx(millions, rel=0.005)


@pytest.mark.parametrize("unet", **ids(list(ARCHITECTURES)))
def test_names_stay_apart_without_their_dots(unet: Architecture):
    names = [name for row in all_layers(unet) for name in (row.ldm, row.diffusers)]
    assert len({name.replace(".", "_") for name in names}) == len(set(names)) == len(names)
