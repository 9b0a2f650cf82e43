"""Runs in ComfyUI's interpreter: the layers of its models at their real sizes, on the meta device.

    python base_models_inside.py COMFYUI FILE.json

writes {base model: {key of a LoRA: [shape of the weight, name of the weight]}} for every model of `MODELS`
whose class this ComfyUI has. The sizes are those of the published weights.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

_FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_FLUX2 = _FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "axes_dim": [32] * 4,
    "mlp_ratio": 3.0,
    "theta": 2000,
    "global_modulation": True,
    "mlp_silu_act": True,
    "qkv_bias": False,
    "ops_bias": False,
}
_CHROMA = {key: value for key, value in _FLUX.items() if key != "guidance_embed"} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 3072,
    "hidden_dim": 5120,
    "n_layers": 5,
    "vec_in_dim": None,
}
_RADIANCE: dict[str, Any] = {
    "image_model": "chroma_radiance",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 16,
    "nerf_hidden_size": 64,
    "nerf_mlp_ratio": 4,
    "nerf_depth": 4,
    "nerf_max_freqs": 8,
    "nerf_tile_size": 512,
    "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None,
    "use_x0": False,
    "use_sequential_txt_ids": False,
}
_WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "freq_dim": 256,
    "patch_size": (1, 2, 2),
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "dim": 5120,
    "num_heads": 40,
    "ffn_dim": 13824,
    "num_layers": 40,
}
_HUNYUAN: dict[str, Any] = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 20,
    "depth_single_blocks": 40,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_HUNYUAN15 = {
    "in_channels": 65,
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "vec_in_dim": None,
    "context_in_dim": 3584,
    "hidden_size": 2048,
    "num_heads": 16,
    "depth": 54,
    "depth_single_blocks": 0,
    "byt5": True,
    "use_cond_type_embedding": True,
    "vision_in_dim": 1152,
    "meanflow_sum": True,
    "guidance_embed": False,
}
_HUNYUAN_IMAGE = {
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [64, 64],
    "vec_in_dim": None,
    "context_in_dim": 3584,
    "hidden_size": 3584,
    "num_heads": 28,
    "byt5": True,
    "guidance_embed": False,
}
_COSMOS: dict[str, Any] = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 256,
}
_COSMOS1 = _COSMOS | {
    "image_model": "cosmos",
    "model_channels": 4096,
    "num_blocks": 28,
    "num_heads": 32,
    "block_config": "FA-CA-MLP",
    "pos_emb_learnable": False,
    "block_x_format": "THWBD",
    "affline_emb_norm": True,
    "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}
_COSMOS2 = _COSMOS | {
    "image_model": "cosmos_predict2",
    "model_channels": 2048,
    "num_blocks": 28,
    "num_heads": 16,
    "crossattn_emb_channels": 1024,
    "pos_emb_learnable": True,
    "extra_per_block_abs_pos_emb": False,
}
_COSMOS2_LARGE = {"model_channels": 5120, "num_blocks": 36, "num_heads": 40}


def _text(width: int) -> dict[str, Any]:
    return {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": width}}


_SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": _text(1536),
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
    "depth": 24,
    "x_block_self_attn_layers": [],
}
_LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 2304,
    "n_layers": 26,
    "qk_norm": True,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
_Z_IMAGE = _LUMINA | {
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_HIDREAM: dict[str, Any] = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [4096, 4096],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "llama_layers": [*range(32), *[31] * 16],
    "num_attention_heads": 20,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "num_layers": 16,
    "num_single_layers": 32,
    "out_channels": 16,
    "patch_size": 2,
    "text_emb_dim": 2048,
}
_KANDINSKY: dict[str, Any] = {
    "image_model": "kandinsky5",
    "model_dim": 2560,
    "ff_dim": 10240,
    "time_dim": 512,
    "axes_dims": (32, 48, 48),
    "visual_embed_dim": 16,
    "num_text_blocks": 2,
    "num_visual_blocks": 50,
}
_KANDINSKY_VIDEO = _KANDINSKY | {
    "model_dim": 1792,
    "ff_dim": 7168,
    "axes_dims": (16, 24, 24),
    "visual_embed_dim": 33,
    "num_visual_blocks": 32,
}
_KANDINSKY_PRO = _KANDINSKY | {
    "model_dim": 4096,
    "ff_dim": 16384,
    "time_dim": 1024,
    "visual_embed_dim": 33,
    "num_text_blocks": 4,
    "num_visual_blocks": 60,
}
_PIXART: dict[str, Any] = {
    "image_model": "pixart_sigma",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 28,
    "model_max_length": 300,
    "input_size": 128,
    "pe_interpolation": 2,
    "micro_condition": False,
}
_PIXART_ALPHA = _PIXART | {"image_model": "pixart_alpha", "model_max_length": 120, "micro_condition": True}
_OMNIGEN: dict[str, Any] = {
    "image_model": "omnigen2",
    "axes_dim_rope": [40, 40, 40],
    "axes_lens": [1024, 1664, 1664],
    "ffn_dim_multiplier": None,
    "hidden_size": 2520,
    "in_channels": 16,
    "multiple_of": 256,
    "norm_eps": 1e-5,
    "num_attention_heads": 21,
    "num_kv_heads": 7,
    "num_layers": 32,
    "num_refiner_layers": 2,
    "out_channels": None,
    "patch_size": 2,
    "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}
_CASCADE_B: dict[str, Any] = {
    "stable_cascade_stage": "b",
    "c_hidden": [320, 640, 1280, 1280],
    "nhead": [-1, -1, 20, 20],
    "blocks": [[2, 6, 28, 6], [6, 28, 6, 2]],
    "block_repeat": [[1, 1, 1, 1], [3, 3, 2, 2]],
}
_MOCHI: dict[str, Any] = {
    "image_model": "mochi_preview",
    "depth": 48,
    "patch_size": 2,
    "num_heads": 24,
    "hidden_size_x": 3072,
    "hidden_size_y": 1536,
    "mlp_ratio_x": 4.0,
    "mlp_ratio_y": 4.0,
    "learn_sigma": False,
    "in_channels": 12,
    "qk_norm": True,
    "qkv_bias": False,
    "out_bias": True,
    "attn_drop": 0.0,
    "patch_embed_bias": True,
    "posenc_preserve_area": True,
    "timestep_mlp_bias": True,
    "attend_to_padding": False,
    "timestep_scale": 1000.0,
    "use_t5": True,
    "t5_feat_dim": 4096,
    "t5_token_length": 256,
    "rope_theta": 10000.0,
}
_COGVIDEO: dict[str, Any] = {
    "image_model": "cogvideox",
    "attention_head_dim": 64,
    "time_embed_dim": 512,
    "in_channels": 16,
    "patch_size": 2,
    "text_embed_dim": 4096,
}


def _ltx(kind: str, layers: int, head: int) -> dict[str, Any]:
    sizes = {"num_layers": layers, "attention_head_dim": head, "cross_attention_dim": 32 * head}
    return {"image_model": kind, **sizes}


# Base model: (family, class of comfy.supported_models, its unet_config). Sizes that are not given are the
# defaults of the network's class, which are those of the published weights.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Flux": ("Flux", "Flux", _FLUX),
    "Ovis-Image": (
        "Ovis-Image",
        "Flux",
        _FLUX
        | {"vec_in_dim": None, "context_in_dim": 2048, "yak_mlp": True, "txt_norm": True}
        | {"depth": 6, "depth_single_blocks": 27},
    ),
    "LongCat-Image": (
        "LongCat-Image",
        "LongCatImage",
        _FLUX
        | {"vec_in_dim": None, "context_in_dim": 3584, "depth": 10, "depth_single_blocks": 20}
        | {"guidance_embed": False},
    ),
    "Flux.2 dev": (
        "Flux.2",
        "Flux2",
        _FLUX2
        | {"hidden_size": 6144, "num_heads": 48, "depth": 8, "depth_single_blocks": 48}
        | {"context_in_dim": 15360},
    ),
    "Flux.2 Klein 4B": (
        "Flux.2",
        "Flux2",
        _FLUX2 | {"depth": 5, "depth_single_blocks": 20, "context_in_dim": 7680} | {"guidance_embed": False},
    ),
    "Flux.2 Klein 9B": (
        "Flux.2",
        "Flux2",
        _FLUX2
        | {"hidden_size": 4096, "num_heads": 32, "depth": 8, "depth_single_blocks": 24}
        | {"context_in_dim": 12288, "guidance_embed": False},
    ),
    "Chroma": ("Chroma", "Chroma", _CHROMA),
    "Chroma Radiance": ("Chroma", "ChromaRadiance", _CHROMA | _RADIANCE),
    "SD3 medium": ("SD3", "SD3", _SD3),
    "SD3.5 medium": (
        "SD3",
        "SD3",
        _SD3
        | {"qk_norm": "rms", "x_block_self_attn_layers": list(range(13))}
        | {"num_patches": 147456, "pos_embed_max_size": 384},
    ),
    "SD3.5 large": (
        "SD3",
        "SD3",
        _SD3 | {"qk_norm": "rms", "depth": 38, "context_embedder_config": _text(2432)},
    ),
    "Qwen-Image": (
        "Qwen-Image",
        "QwenImage",
        {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60},
    ),
    "Mage-Flow": ("Mage-Flow", "MageFlow", {"image_model": "mage_flow", "in_channels": 128}),
    "Lens": ("Lens", "Lens", {"image_model": "lens"}),
    "Z-Image": ("Z-Image", "ZImage", _Z_IMAGE),
    "Lumina2": ("Lumina2", "Lumina2", _LUMINA),
    "Wan 2.1 1.3B": (
        "Wan",
        "WAN21_T2V",
        _WAN | {"dim": 1536, "num_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "Wan 2.1 or 2.2 14B": ("Wan", "WAN21_T2V", _WAN),
    "Wan 2.1 14B image to video": ("Wan", "WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}),
    "Wan 2.2 5B": (
        "Wan",
        "WAN22_T2V",
        _WAN
        | {"in_dim": 48, "out_dim": 48, "dim": 3072, "num_heads": 24, "ffn_dim": 14336, "num_layers": 30},
    ),
    "HunyuanVideo": ("HunyuanVideo", "HunyuanVideo", _HUNYUAN),
    "HunyuanVideo 1.5": ("HunyuanVideo", "HunyuanVideo15", _HUNYUAN | _HUNYUAN15),
    "HunyuanImage 2.1": ("HunyuanImage 2.1", "HunyuanImage21", _HUNYUAN | _HUNYUAN_IMAGE),
    "LTX-Video 2B": ("LTX-Video", "LTXV", _ltx("ltxv", 28, 64)),
    "LTX-Video 13B": ("LTX-Video", "LTXV", _ltx("ltxv", 48, 128)),
    "LTX-2": ("LTX-2", "LTXAV", _ltx("ltxav", 48, 128)),
    "HiDream": ("HiDream", "HiDream", _HIDREAM),
    "HiDream-O1": ("HiDream-O1", "HiDreamO1", {"image_model": "hidream_o1"}),
    "Cosmos 7B": ("Cosmos", "CosmosT2V", _COSMOS1),
    "Cosmos Predict2 2B": ("Cosmos Predict2", "CosmosT2IPredict2", _COSMOS2),
    "Cosmos Predict2 14B": ("Cosmos Predict2", "CosmosT2IPredict2", _COSMOS2 | _COSMOS2_LARGE),
    "Anima": ("Anima", "Anima", _COSMOS2 | {"image_model": "anima"}),
    "Krea 2": ("Krea 2", "Krea2", {"image_model": "krea2"}),
    "Kandinsky 5 image lite": ("Kandinsky 5", "Kandinsky5Image", _KANDINSKY),
    "Kandinsky 5 video lite": ("Kandinsky 5", "Kandinsky5", _KANDINSKY_VIDEO),
    "Kandinsky 5 video pro": ("Kandinsky 5", "Kandinsky5", _KANDINSKY_PRO),
    "PixArt Sigma": ("PixArt", "PixArtSigma", _PIXART),
    "PixArt Alpha": ("PixArt", "PixArtAlpha", _PIXART_ALPHA),
    "AuraFlow": (
        "AuraFlow",
        "AuraFlow",
        {"max_seq": 9216, "cond_seq_dim": 2048, "n_double_layers": 4, "n_layers": 36},
    ),
    "HunyuanDiT": (
        "HunyuanDiT",
        "HunyuanDiT",
        {"image_model": "hydit", "depth": 40, "hidden_size": 1408, "mlp_ratio": 4.3637},
    ),
    "Omnigen2": ("Omnigen2", "Omnigen2", _OMNIGEN),
    "Boogu-Image": ("Boogu-Image", "Boogu", {"image_model": "boogu"}),
    "Ernie-Image": ("Ernie-Image", "ErnieImage", {"image_model": "ernie"}),
    "Ideogram 4": ("Ideogram 4", "Ideogram4", {"image_model": "ideogram4"}),
    "JoyImage": ("JoyImage", "JoyImage", {"image_model": "joyimage"}),
    "Stable Cascade, stage C": ("Stable Cascade", "Stable_Cascade_C", {"stable_cascade_stage": "c"}),
    "Stable Cascade, stage B": ("Stable Cascade", "Stable_Cascade_B", _CASCADE_B),
    "Mochi": ("Mochi", "GenmoMochi", _MOCHI),
    "CogVideoX 2B": ("CogVideoX", "CogVideoX_T2V", _COGVIDEO | {"num_attention_heads": 30, "num_layers": 30}),
    "CogVideoX 5B": ("CogVideoX", "CogVideoX_T2V", _COGVIDEO | {"num_attention_heads": 48, "num_layers": 42}),
}


def keys(name: str) -> dict[str, tuple[list[int], str]] | None:
    """{key under which this ComfyUI takes a layer: (shape, weight)}, of matrices and convolutions.

    None where this ComfyUI does not have the model. The key of a part of a fused weight has the part's shape.
    """
    import comfy.lora
    import comfy.supported_models

    _, kind, config = MODELS[name]
    made = getattr(comfy.supported_models, kind, None)
    if made is None:
        return None
    try:
        model = network(made, config)
    except TypeError:
        return None  # the class is there, for other models of its family
    weights: dict[str, Any] = model.state_dict()
    found: dict[str, tuple[list[int], str]] = {}
    targets: dict[str, Any] = comfy.lora.model_lora_keys_unet(model, {})
    for key, target in targets.items():
        weight: str = target if isinstance(target, str) else target[0]
        part: Any = None if isinstance(target, str) else target[1]
        if weight not in weights or weights[weight].ndim < 2 or not weight.endswith(".weight"):
            continue  # of a layer that only other sizes have, or no matrix
        shape = list(weights[weight].shape)
        if part:
            dim, _, length = part
            shape = [length if i == dim else n for i, n in enumerate(shape)]
        found[key] = (shape, weight)
    return found


def network(
    kind: Any, config: dict[str, Any], device: str = "meta", dtype: Any = None, compute: Any = None
) -> Any:
    """A model of the host's class; without options that an older ComfyUI does not know."""
    import torch

    made = kind(dict(config))
    made.set_inference_dtype(dtype or torch.bfloat16, compute)
    try:
        return made.get_model({}, "", device=torch.device(device))
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not found or found[1] not in config:
            raise
        rest = {key: value for key, value in config.items() if key != found[1]}
        return network(kind, rest, device, dtype, compute)


def main() -> None:
    host, out = sys.argv[1:3]
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing()
    found = {name: made for name in MODELS if (made := keys(name)) is not None}
    Path(out).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main()
