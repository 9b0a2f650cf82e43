"""diffusers and peft load what we write and write what we load: the same weights, in small UNets of the real
layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import Pairs, adapters, kohya, text_encoder, write
from torch import Tensor, nn

from comfyui_tcd.training.formats import FORMATS, convert, open_lora
from comfyui_tcd.training.unet_layers import SD2, SD15, SDXL, Architecture

WIDTH, CONTEXT = 32, 24
PLAIN, CROSS = "{}Block2D", "CrossAttn{}Block2D"
SD = {
    "down_block_types": (*(CROSS.format("Down"),) * 3, PLAIN.format("Down")),
    "up_block_types": (PLAIN.format("Up"), *(CROSS.format("Up"),) * 3),
}
XL = {
    "down_block_types": (PLAIN.format("Down"), *(CROSS.format("Down"),) * 2),
    "up_block_types": (*(CROSS.format("Up"),) * 2, PLAIN.format("Up")),
    "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 48,
}
LAYOUTS: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "SD 1.5": (SD15, SD),
    "SD 2.x": (SD2, {**SD, "use_linear_projection": True}),
    "SDXL": (SDXL, {**XL, "use_linear_projection": True}),
}


def small(base: str) -> Architecture:
    unet = LAYOUTS[base][0]
    return replace(unet, width=WIDTH, context=CONTEXT, vector=48 if unet.vector else 0)


def network(base: str) -> Any:
    from diffusers import UNet2DConditionModel

    unet, blocks = LAYOUTS[base]
    torch.manual_seed(0)
    return UNet2DConditionModel(
        **blocks, block_out_channels=tuple(WIDTH * m for m in unet.mult), cross_attention_dim=CONTEXT
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def fused(base: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What diffusers' own loader makes of the file's tensors: changes of the weights by layer."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    model = network(base)
    before = weights(model)
    loader = StableDiffusionXLLoraLoaderMixin
    state, alphas = loader.lora_state_dict(dict(tensors), unet_config=model.config)[:2]
    model.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    model.fuse_lora()
    model.unload_lora()
    after = weights(model)
    changes = {k.removesuffix(".weight"): after[k] - before[k] for k in before}
    return {k: v for k, v in changes.items() if bool(v.any())}


def same(changes: Mapping[str, Tensor], pairs: Pairs) -> None:
    expected = {row.diffusers: pair.delta for row, pair in pairs.items()}
    assert set(changes) == set(expected)
    for name, change in changes.items():
        torch.testing.assert_close(change.flatten(1), expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("base", LAYOUTS)
@pytest.mark.parametrize("to", ["kohya", "diffusers", "diffusers-old"])
def test_diffusers_loads_what_we_write(tmp_path: Path, base: str, to: str):
    pairs = adapters(small(base), every=3)
    file = open_lora(write(tmp_path / "lora.safetensors", kohya(pairs)))
    same(fused(base, convert(file, to)[0]), pairs)


def test_diffusers_reads_ldm_names_of_sdxl_alike(tmp_path: Path):
    """Its converter of kohya's SDXL files on the names that we give: of full size, or names cannot change."""
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )

    class Config:
        layers_per_block = 2

    pairs = adapters(SDXL, rank=1, alpha=1.0)
    file = open_lora(write(tmp_path / "lora.safetensors", kohya(pairs)))
    ldm, _ = convert(file, "kohya-ldm")
    theirs, alphas = _convert_non_diffusers_lora_to_diffusers(
        _maybe_map_sgm_blocks_to_diffusers(ldm, Config())
    )
    ours, _ = convert(file, "diffusers-old")
    assert set(theirs) == set(ours) and set(alphas.values()) == {1.0}
    assert all(torch.equal(theirs[k], ours[k]) for k in ours)


def test_diffusers_converts_text_encoders_alike(tmp_path: Path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers

    tensors = text_encoder("lora_te1_") | text_encoder("lora_te2_")
    tensors = {k: v if k.endswith("weight") else torch.tensor(4.0) for k, v in tensors.items()}
    file = open_lora(write(tmp_path / "lora.safetensors", tensors))
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    again = open_lora(write(tmp_path / "theirs.safetensors", theirs))
    assert {x.part + x.name for x in file.layers} == {x.part + x.name for x in again.layers}
    by_name = {x.part + x.name: x.delta() for x in again.layers}
    assert all(torch.equal(x.delta(), by_name[x.part + x.name]) for x in file.layers)


@pytest.mark.parametrize("base", LAYOUTS)
@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_what_peft_and_diffusers_write(tmp_path: Path, base: str, rslora: bool):
    """Alpha differs from the rank, and per layer: their files keep it beside the weights."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.utils import get_peft_model_state_dict

    model = network(base)
    before = weights(model)
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        alpha_pattern={"attn1.to_k": 3},
        use_rslora=rslora,
        target_modules=["to_q", "to_k", "to_out.0", "conv1", "proj_in"],
        init_lora_weights=False,
    )
    peft_model = get_peft_model(model, config)
    assert isinstance(peft_model, PeftModel)
    peft_model.save_pretrained(str(tmp_path / "peft"))
    inner: Any = peft_model.base_model
    state: Any = get_peft_model_state_dict(inner.model, adapter_name="default")
    about = {k: v for k, v in config.to_dict().items() if not isinstance(v, set)}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path / "diffusers",
        unet_lora_layers=state,
        unet_lora_adapter_metadata=about,
    )
    after = weights(peft_model.merge_and_unload())
    peft_file = open_lora(tmp_path / "peft/adapter_model.safetensors")
    assert peft_file.formats == ["peft"]
    diffusers_file = open_lora(tmp_path / "diffusers/pytorch_lora_weights.safetensors")
    assert json.loads(diffusers_file.metadata["lora_adapter_metadata"])["unet.lora_alpha"] == 10
    for file in (peft_file, diffusers_file):
        changed = {x.name for x in file.layers}
        assert changed == {
            k[:-7] for k in before if k.endswith("weight") and not torch.equal(before[k], after[k])
        }
        for x in file.layers:
            change = after[f"{x.name}.weight"] - before[f"{x.name}.weight"]
            torch.testing.assert_close(x.delta(), change.flatten(1), rtol=1e-3, atol=1e-5, msg=x.name)


@pytest.mark.parametrize("base", LAYOUTS)
def test_peft_loads_what_we_write(tmp_path: Path, base: str):
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    pairs = adapters(small(base), every=3)
    file = open_lora(write(tmp_path / "lora.safetensors", kohya(pairs)))
    tensors, metadata = convert(file, "peft")
    write(tmp_path / "adapter_model.safetensors", tensors, metadata)
    model = network(base)
    before = weights(model)
    names = [row.diffusers for row in pairs]
    peft_model: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=names))
    result = set_peft_model_state_dict(peft_model, load_peft_weights(str(tmp_path), device="cpu"))
    assert result.unexpected_keys == []
    after = weights(peft_model.merge_and_unload())
    same({n: after[f"{n}.weight"] - before[f"{n}.weight"] for n in names}, pairs)


def test_the_formats_are_those_tested_here_and_in_the_host():
    assert set(FORMATS) == {"kohya", "kohya-ldm", "comfyui", "peft", "diffusers", "diffusers-old"}
