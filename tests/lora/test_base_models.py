"""The base model's name: by layers, by metadata, and not at all rather than a wrong one.

The layers come from diffusers' classes at the sizes of the published weights, and from layouts of published
LoRA files. tests/comfyui/test_lora_base_models.py does the same with ComfyUI's classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import write
from torch import Tensor, nn

from comfyui_tcd.training.formats import LoraFile, open_lora
from comfyui_tcd.training.lora_bases import base_models, named
from comfyui_tcd.training.lora_report import base, lines, remarks

Shapes = dict[str, tuple[int, int]]
Opened = Callable[..., LoraFile]
SUBSETS = {
    "all": r"",
    "attention": r"\.(attn\d?|attention|self_attn|cross_attn)\.|to_[qkv]",
    "mlp": r"\.(ffn?|ff_context|feed_forward|img_mlp|txt_mlp)\.",
    "first blocks": r"blocks\.[0-3]\.|layers\.[0-3]\.",
}
# diffusers' class, settings other than its defaults, what ComfyUI calls the model, and those whose layers of
# a subset are the same, name by name and shape by shape.
_EITHER = ["Flux", "Chroma"]
_FIRST = ["LongCat-Image", "HunyuanVideo"]
MODELS: list[tuple[str, dict[str, Any], str, dict[str, list[str]]]] = [
    (
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        "Flux",
        {"attention": _EITHER, "mlp": _EITHER, "first blocks": ["Flux", *_FIRST]},
    ),
    (
        "ChromaTransformer2DModel",
        {},
        "Chroma",
        {
            "all": _EITHER,
            "attention": _EITHER,
            "mlp": _EITHER,
            "first blocks": ["Flux", "LongCat-Image", "Chroma", "HunyuanVideo"],
        },
    ),
    ("Flux2Transformer2DModel", {}, "Flux.2 dev", {}),
    ("QwenImageTransformer2DModel", {}, "Qwen-Image", {"first blocks": ["Qwen-Image", "Mage-Flow"]}),
    ("ZImageTransformer2DModel", {}, "Z-Image", {}),
    ("Lumina2Transformer2DModel", {}, "Lumina2", {}),
    ("AuraFlowTransformer2DModel", {}, "AuraFlow", {}),
    ("LTXVideoTransformer3DModel", {}, "LTX-Video 2B", {}),
    ("PixArtTransformer2DModel", {"sample_size": 128}, "PixArt", {}),
    ("WanTransformer3DModel", {}, "Wan", {}),
    ("HunyuanVideoTransformer3DModel", {}, "HunyuanVideo", {}),
    (
        "SD3Transformer2DModel",
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "qk_norm": "rms_norm",
        },
        "SD3.5 large",
        {},
    ),
]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    def written(shapes: Shapes, metadata: dict[str, str] | None = None, name: str = "lora") -> LoraFile:
        tensors: dict[str, Tensor] = {}
        for key, (rows, columns) in shapes.items():
            tensors[f"{key}.lora_A.weight"] = torch.ones(1, columns)
            tensors[f"{key}.lora_B.weight"] = torch.ones(rows, 1)
        return open_lora(write(tmp_path / f"{name}.safetensors", tensors, metadata))

    return written


@cache
def of_diffusers(kind: str, *settings: tuple[str, Any]) -> Shapes:
    import diffusers

    with torch.device("meta"):
        network = getattr(diffusers, kind)(**dict(settings))
    return {
        f"transformer.{name}": (m.out_features, m.in_features)
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear) and re.search(r"block|layers\.", name)
    }


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize(("kind", "settings", "base", "same"), MODELS, ids=[m[0] for m in MODELS])
def test_models_of_diffusers(
    opened: Opened, kind: str, settings: dict[str, Any], base: str, same: dict[str, list[str]], subset: str
):
    shapes = of_diffusers(kind, *settings.items())
    part = {key: shape for key, shape in shapes.items() if re.search(SUBSETS[subset], key)}
    assert len(part) > 3
    found = opened(part).bases
    assert found == same.get(subset, [base])


# Layouts of published files, or of what trainers write.
def _blocks(n: int, name: str, rows: int, columns: int) -> Shapes:
    return {name.format(i): (rows, columns) for i in range(n)}


LAYOUTS: dict[str, tuple[Shapes, list[str]]] = {
    "lightx2v Qwen-Image-Lightning": (
        _blocks(60, "transformer_blocks.{}.attn.add_k_proj", 3072, 3072)
        | _blocks(60, "transformer_blocks.{}.attn.to_q", 3072, 3072)
        | _blocks(60, "transformer_blocks.{}.img_mlp.net.2", 3072, 12288),
        ["Qwen-Image"],
    ),
    "Flux, kohya, attention of double blocks": (
        _blocks(19, "lora_unet_double_blocks_{}_img_attn_qkv", 9216, 3072)
        | _blocks(19, "lora_unet_double_blocks_{}_txt_attn_qkv", 9216, 3072),
        ["Flux", "Chroma"],
    ),
    "Flux, kohya, double blocks": (
        _blocks(19, "lora_unet_double_blocks_{}_img_attn_qkv", 9216, 3072)
        | _blocks(19, "lora_unet_double_blocks_{}_img_mod_lin", 18432, 3072),
        ["Flux"],
    ),
    "HunyuanVideo, musubi": (
        _blocks(20, "lora_unet_double_blocks_{}_img_attn_qkv", 9216, 3072)
        | _blocks(40, "lora_unet_single_blocks_{}_linear1", 21504, 3072),
        ["HunyuanVideo"],
    ),
    "Z-Image, ai-toolkit": (
        _blocks(30, "diffusion_model.layers.{}.attention.to_q", 3840, 3840)
        | _blocks(30, "diffusion_model.layers.{}.feed_forward.w1", 10240, 3840),
        ["Z-Image"],
    ),
    "Wan 2.2 5B": (
        _blocks(30, "diffusion_model.blocks.{}.self_attn.q", 3072, 3072)
        | _blocks(30, "diffusion_model.blocks.{}.ffn.0", 14336, 3072),
        ["Wan 2.2 5B"],
    ),
    "Wan 14B, lightx2v": (_blocks(40, "diffusion_model.blocks.{}.cross_attn.k", 5120, 5120), ["Wan"]),
    "LTX-2, video layers": (
        _blocks(48, "diffusion_model.transformer_blocks.{}.attn1.to_q", 4096, 4096),
        ["LTX-Video 13B", "LTX-2"],
    ),
    "LTX-2, with audio": (
        _blocks(48, "diffusion_model.transformer_blocks.{}.attn1.to_q", 4096, 4096)
        | _blocks(48, "diffusion_model.transformer_blocks.{}.audio_attn1.to_q", 2048, 2048),
        ["LTX-2"],
    ),
    "Anima, kohya": (
        _blocks(28, "lora_unet_blocks_{}_cross_attn_q_proj", 2048, 2048)
        | _blocks(28, "lora_unet_blocks_{}_mlp_layer1", 8192, 2048),
        ["Cosmos Predict2 2B", "Anima"],
    ),
    "Flux.2 Klein 4B": (
        _blocks(20, "diffusion_model.single_blocks.{}.linear1", 27648, 3072),
        ["Flux.2 Klein 4B"],
    ),
    "HiDream": (
        _blocks(16, "diffusion_model.double_stream_blocks.{}.block.attn1.to_q", 2560, 2560),
        ["HiDream"],
    ),
    "Krea 2": (_blocks(28, "diffusion_model.blocks.{}.attn.wq", 6144, 6144), ["Krea 2"]),
    "a single layer of many models": ({"transformer.proj_out": (64, 3072)}, []),
    "a model of tomorrow": (_blocks(50, "diffusion_model.new_blocks.{}.mixer.to_q", 5000, 5000), []),
    "AnimateDiff": (
        {"down_blocks.0.motion_modules.0.temporal_transformer.proj_in": (320, 320)},
        ["AnimateDiff motion module"],
    ),
    "Flux's names at no size of a known model": (
        _blocks(19, "lora_unet_double_blocks_{}_img_mod_lin", 64, 64),
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_files(opened: Opened, layout: str):
    shapes, bases = LAYOUTS[layout]
    assert opened(shapes).bases == bases


ANIMA = LAYOUTS["Anima, kohya"][0]


@pytest.mark.parametrize(
    ("metadata", "bases"),
    [
        ({"ss_base_model_version": "anima"}, ["Anima"]),
        ({"modelspec.architecture": "anima-preview/lora"}, ["Anima"]),
        ({"tcd.teacher": "CosmosT2IPredict2", "ss_base_model_version": "anima"}, ["Cosmos Predict2 2B"]),
        ({"ss_base_model_version": "unknown"}, ["Cosmos Predict2 2B", "Anima"]),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, ["Cosmos Predict2 2B", "Anima"]),
    ],
)
def test_metadata_chooses_between_models_and_overrules_no_layer(
    opened: Opened, metadata: dict[str, str], bases: list[str]
):
    assert opened(ANIMA, metadata).bases == bases


def test_metadata_of_another_model_is_told(opened: Opened):
    other = remarks(opened(ANIMA, {"ss_base_model_version": "sdxl_base_v1-0"}))
    assert any("the metadata names SDXL" in text for text in other)
    assert not any(
        "metadata names" in text for text in remarks(opened(ANIMA, {"ss_base_model_version": "anima"}))
    )


def test_layers_that_are_unknown_leave_the_metadata(opened: Opened):
    file = opened(LAYOUTS["a model of tomorrow"][0], {"ss_base_model_version": "wan_2.2_14b"})
    assert file.bases == [] and base(file) == "Wan (by its metadata)"
    file = opened(LAYOUTS["a model of tomorrow"][0], {"tcd.teacher": "MiniMaxH3"})
    assert dict(lines(file))["base model"] == "MiniMaxH3 (by its metadata)"


@pytest.mark.parametrize(
    ("text", "base"),
    [
        # sd-scripts, musubi-tuner and ModelSpec
        ("stable-diffusion-xl-v1-base/lora", "SDXL"),
        ("stable-diffusion-v1/lora", "SD 1.5"),
        ("stable-diffusion-v2-768-v/lora", "SD 2.x"),
        ("stable-diffusion-3-5-large/lora", "SD3.5 large"),
        ("stable-diffusion-3-m/lora", "SD3"),
        ("flux-1-dev/lora", "Flux"),
        ("Flux.2-klein-4b", "Flux.2 Klein 4B"),
        ("Flux.2-dev", "Flux.2 dev"),
        ("chroma/lora", "Chroma"),
        ("lumina-2/lora", "Lumina2"),
        ("hunyuan-image-2.1/lora", "HunyuanImage 2.1"),
        ("hunyuan-video-1.5", "HunyuanVideo 1.5"),
        ("Qwen-Image-Edit-2511", "Qwen-Image"),
        ("Kandinsky-5", "Kandinsky 5"),
        ("HiDream-O1-Image", "HiDream-O1"),
        ("framepack", "HunyuanVideo"),
        ("sd_v1", "SD 1.5"),
        ("sd_v2", "SD 2.x"),
        # ai-toolkit
        ("sdxl_1.0", "SDXL"),
        ("sd_1.5", "SD 1.5"),
        ("flux.1_kontext", "Flux"),
        ("flux2_klein_9b", "Flux.2 Klein 9B"),
        ("flux2", "Flux.2"),
        ("wan_2.2_14b", "Wan"),
        ("zimage", "Z-Image"),
        ("ltx2", "LTX-2"),
        ("hidream_i1", "HiDream"),
        ("zeta_chroma", ""),
        # classes of ComfyUI, as in tcd.teacher
        ("SDXLRefiner", "SDXL refiner"),
        ("SSD1B", "SSD-1B"),
        ("SD20", "SD 2.x"),
        ("WAN21_T2V", "Wan"),
        ("LTXAV", "LTX-2"),
        ("LTXV", "LTX-Video"),
        ("HunyuanVideo15", "HunyuanVideo 1.5"),
        ("Stable_Cascade_C", "Stable Cascade"),
        ("CosmosT2IPredict2", "Cosmos Predict2"),
        ("StableDiffusionXLPipeline", "SDXL"),
        ("embedded", ""),
        ("", ""),
        ("animatediff", ""),
    ],
)
def test_what_others_call_a_model(text: str, base: str):
    assert named(text) == base


def test_every_name_that_metadata_may_give_is_one_that_layers_give():
    from comfyui_tcd.training.lora_bases import _SAID
    from comfyui_tcd.training.unet_layers import ARCHITECTURES

    known = {a.name for a in ARCHITECTURES} | set(base_models())
    known |= {kind.family for kind in base_models().values()}
    assert {name for _, name in _SAID} - known == {""}
