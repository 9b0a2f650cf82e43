"""Runs in ComfyUI's interpreter: a tiny model of each class of the host that makes pictures from texts.

Weights are random, written to a file and loaded by the host's own loader of diffusion models, so that its
operations, dtypes and key conversions are the real ones. Only the sizes are stand-ins: the detection, which
knows the released sizes, is told the class and the sizes of a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

Extra = Callable[[int, torch.Generator], dict[str, Any]]
"""What a family's encoder gives beside the text: of so many tokens."""


def nothing(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    return {}


class Recipe(NamedTuple):
    """Sizes of a tiny network, and the shapes of the conditioning that the family's encoder gives."""

    sizes: dict[str, Any]
    width: int = 16
    """Of a token."""
    pooled: int = 0
    """Width of the pooled text, 0 for none."""
    extra: Extra = nothing
    encoded: tuple[int, ...] = (9, 14, 23, 4)
    """Tokens of three prompts and of the empty text, as encoded."""
    side: int = 0
    """Of a picture in pixels; 0: eight latent pixels."""
    patches: tuple[tuple[str, str, Any], ...] = ()
    """Module, attribute and value of other sizes that the host fixes."""


def masked(tokens: int, generator: torch.Generator, used: int = 0) -> dict[str, Any]:
    """An attention mask, of `used` tokens and padding."""
    mask = torch.ones(1, tokens, dtype=torch.long)
    if used:
        mask[:, used:] = 0
    return {"attention_mask": mask}


def hydit(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    mt5 = torch.randn(1, 12, 24, generator=generator)
    mask = masked(12, generator, 7)["attention_mask"]
    return {**masked(tokens, generator, 5), "conditioning_mt5xl": mt5, "attention_mask_mt5xl": mask}


def llama(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    return {"conditioning_llama3": torch.randn(1, 2, 11, 12, generator=generator)}


def t5_ids(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    ids = torch.randint(0, 32000, (tokens + 2,), generator=generator)
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(tokens + 2)}


def qwen_ids(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    return {"text_input_ids": torch.randint(0, 1000, (1, tokens), generator=generator)}


def byt5(tokens: int, generator: torch.Generator) -> dict[str, Any]:
    """Only prompts with words in quotes have it: here, those of an odd number of tokens."""
    found = torch.randn(1, 5, 1472, generator=generator)
    return {"conditioning_byt5small": found} if tokens % 2 else {}


UNET: dict[str, Any] = {
    "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
    "in_channels": 4, "out_channels": 4, "model_channels": 64, "num_res_blocks": [1], "channel_mult": [1],
    "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1,
    "context_dim": 16, "use_linear_in_transformer": True,
}  # fmt: skip
ADM = {**UNET, "num_classes": "sequential"}
FLUX: dict[str, Any] = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": 16, "context_in_dim": 16, "hidden_size": 32,
    "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 6, 6],
    "theta": 10000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [], "guidance_embed": False,
}  # fmt: skip
FLUX2 = {
    **FLUX, "in_channels": 128, "out_channels": 128, "axes_dim": [4, 4, 4, 4], "theta": 2000, "patch_size": 1,
    "qkv_bias": False, "vec_in_dim": None, "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3],
}  # fmt: skip
CHROMA = {
    **{k: v for k, v in FLUX.items() if k != "guidance_embed"},
    "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32, "hidden_dim": 32, "n_layers": 1,
}  # fmt: skip
HUNYUAN: dict[str, Any] = {
    **{k: v for k, v in FLUX.items() if k != "txt_ids_dims"}, "axes_dim": [4, 6, 6], "theta": 256,
    "patch_size": [1, 2, 2], "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
    "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
PREDICT2: dict[str, Any] = {
    "max_img_h": 24, "max_img_w": 24, "max_frames": 16, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 48, "num_blocks": 2, "num_heads": 2,
    "crossattn_emb_channels": 16, "concat_padding_mask": True, "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True, "use_adaln_lora": True, "adaln_lora_dim": 8,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
LUMINA: dict[str, Any] = {
    "patch_size": 2, "in_channels": 16, "dim": 48, "cap_feat_dim": 16, "n_layers": 1, "n_refiner_layers": 1,
    "n_heads": 2, "n_kv_heads": 1, "axes_dims": [8, 8, 8], "axes_lens": [300, 64, 64], "multiple_of": 16,
    "ffn_dim_multiplier": 1.0, "qk_norm": True, "rope_theta": 10000.0,
}  # fmt: skip
ZIMAGE = {
    **LUMINA, "dim": 256, "n_heads": 8, "n_kv_heads": 8, "axes_dims": [8, 12, 12], "rope_theta": 256.0,
    "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
OMNIGEN: dict[str, Any] = {
    "axes_dim_rope": [8, 8, 8], "axes_lens": [256, 64, 64], "ffn_dim_multiplier": None, "hidden_size": 48,
    "in_channels": 16, "multiple_of": 16, "norm_eps": 1e-5, "num_attention_heads": 2, "num_kv_heads": 1,
    "num_layers": 2, "num_refiner_layers": 1, "patch_size": 2, "text_feat_dim": 16, "timestep_scale": 1000.0,
}  # fmt: skip
KANDINSKY: dict[str, Any] = {
    "in_text_dim": 16, "in_text_dim2": 16, "time_dim": 16, "model_dim": 48, "ff_dim": 64,
    "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (8, 8, 8),
    "rope_scale_factor": (1.0, 1.0, 1.0),
}  # fmt: skip
PIXART: dict[str, Any] = {
    "num_heads": 2, "patch_size": 2, "hidden_size": 32, "in_channels": 4, "depth": 2, "caption_channels": 16,
    "model_max_length": 300, "micro_condition": False,
}  # fmt: skip
HYDIT: dict[str, Any] = {
    "hidden_size": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "text_states_dim": 16,
    "text_states_dim_t5": 24, "text_len": 77, "text_len_t5": 12,
}  # fmt: skip
CLIP = (77, 154, 77, 77)
"""Texts of CLIP come in chunks of 77 tokens."""
XL = Recipe({**ADM, "adm_in_channels": 2816}, pooled=1280, encoded=CLIP)
SMALL_ADAPTER = (16, 16, 16, 1, 2, True, False, None, None, None)
"""Of Anima: widths, layers and heads, in the order of its arguments."""
T5_MASK = partial(masked, used=6)

RECIPES: dict[str, Recipe] = {
    "SD15": Recipe(
        {**UNET, "num_heads": 4, "num_head_channels": -1, "use_linear_in_transformer": False}, encoded=CLIP
    ),
    "SD20": Recipe(UNET, encoded=CLIP),
    "SD21UnclipL": Recipe({**ADM, "adm_in_channels": 1536}, encoded=CLIP),
    "SD21UnclipH": Recipe({**ADM, "adm_in_channels": 2048}, encoded=CLIP),
    "SD15_instructpix2pix": Recipe(
        {**UNET, "in_channels": 8, "num_heads": 4, "num_head_channels": -1}, encoded=CLIP
    ),
    "SDXL_instructpix2pix": XL._replace(sizes={**XL.sizes, "in_channels": 8}),
    "SDXLRefiner": XL._replace(sizes={**ADM, "adm_in_channels": 2560}),
    "SDXL": XL,
    "SSD1B": XL,
    "KOALA_700M": XL,
    "KOALA_1B": XL,
    "Segmind_Vega": XL,
    "SD3": Recipe(
        {
            "in_channels": 16, "patch_size": 2, "depth": 1, "input_size": None, "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 64},
            },
            "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms", "out_channels": 16,
        },
        pooled=2048, encoded=(154, 190, 154, 154),
    ),
    "AuraFlow": Recipe(
        {"dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 2, "global_conddim": 64,
         "cond_seq_dim": 16, "max_seq": 64},
        encoded=(256,) * 4,
    ),
    "PixArtAlpha": Recipe(PIXART, encoded=(4, 18, 24, 1), side=320),
    "PixArtSigma": Recipe({**PIXART, "pe_interpolation": 1}, encoded=(4, 18, 24, 1), side=320),
    "HunyuanDiT": Recipe(HYDIT, extra=hydit, encoded=(77,) * 4),
    "HunyuanDiT1": Recipe(
        {**HYDIT, "size_cond": True, "use_style_cond": True}, extra=hydit, encoded=(77,) * 4
    ),
    "FluxInpaint": Recipe({**FLUX, "guidance_embed": True, "in_channels": 96}, pooled=16, encoded=(256,) * 4),
    "Flux": Recipe({**FLUX, "guidance_embed": True}, pooled=16, encoded=(256,) * 4),
    "FluxSchnell": Recipe(FLUX, pooled=16, encoded=(256,) * 4),
    "LongCatImage": Recipe({**FLUX, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, encoded=(64,) * 4),
    "Flux2": Recipe(FLUX2, pooled=16, encoded=(512,) * 4),
    "Chroma": Recipe(CHROMA, pooled=16, encoded=(4, 18, 24, 1)),
    "ChromaRadiance": Recipe(
        {
            **CHROMA, "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 8,
            "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 512,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": True,
            "use_sequential_txt_ids": False,
        },
        pooled=16, encoded=(4, 18, 24, 1), side=128,
    ),
    "Lens": Recipe(
        {
            "in_channels": 128, "out_channels": 32, "num_layers": 1, "num_attention_heads": 2,
            "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "enc_hidden_dim": 16,
            "selected_layer_index": (0, 1),
        },
        width=32, extra=masked,
    ),
    "GenmoMochi": Recipe(
        {
            "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 48, "hidden_size_y": 32,
            "mlp_ratio_x": 256.0, "mlp_ratio_y": 256.0, "learn_sigma": False, "in_channels": 12,
            "qk_norm": True,
            "qkv_bias": False, "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True,
            "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False,
            "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 16, "t5_token_length": 16,
            "rope_theta": 10000.0,
        },
        extra=T5_MASK, encoded=(16,) * 4,
    ),
    "LTXV": Recipe(
        {"in_channels": 128, "cross_attention_dim": 32, "attention_head_dim": 16, "num_attention_heads": 2,
         "caption_channels": 16, "num_layers": 2},
        extra=T5_MASK, encoded=(128, 128, 140, 128), side=128,
    ),
    "HunyuanVideo": Recipe(HUNYUAN, pooled=16),
    "HunyuanVideo15": Recipe(
        {**HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
         "byt5": False, "use_cond_type_embedding": True, "vision_in_dim": 16, "meanflow_sum": True},
        pooled=16,
    ),
    "HunyuanImage21": Recipe(
        {**HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [8, 8],
         "vec_in_dim": None, "byt5": True},
        extra=byt5, encoded=(37, 49, 55, 35),
    ),
    "CosmosT2IPredict2": Recipe(PREDICT2, encoded=(512,) * 4),
    "Anima": Recipe(
        PREDICT2, extra=t5_ids, encoded=(2, 14, 20, 1),
        patches=(("comfy.ldm.anima.model", "LLMAdapter.__init__.__defaults__", SMALL_ADAPTER),),
    ),
    "Lumina2": Recipe(LUMINA, extra=masked, encoded=(10, 22, 28, 8)),
    "ZImage": Recipe(ZIMAGE, encoded=(10, 22, 28, 8)),
    "ZImagePixelSpace": Recipe(
        {**ZIMAGE, "patch_size": 16, "in_channels": 3, "decoder_in_channels": 768, "decoder_hidden_size": 16,
         "decoder_num_res_blocks": 1, "decoder_max_freqs": 4},
        encoded=(10, 22, 28, 8), side=32,
    ),
    "PixelDiTT2I": Recipe(
        {"num_groups": 2, "hidden_size": 32, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32,
         "pixel_num_groups": 2, "patch_depth": 1, "pixel_depth": 1, "txt_embed_dim": 16},
        extra=masked, side=32,
    ),
    "WAN21_T2V": Recipe(
        {"dim": 48, "in_dim": 16, "out_dim": 16, "ffn_dim": 64, "num_heads": 2, "num_layers": 2,
         "text_dim": 16, "freq_dim": 16},
        encoded=(512,) * 4,
    ),
    "WAN22_T2V": Recipe(
        {"dim": 48, "in_dim": 48, "out_dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2,
         "text_dim": 16, "freq_dim": 16},
        encoded=(512,) * 4,
    ),
    "HiDream": Recipe(
        {
            "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1,
            "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [16, 12],
            "text_emb_dim": 16, "num_routed_experts": 2, "num_activated_experts": 1,
            "axes_dims_rope": (8, 4, 4), "max_resolution": [64, 64], "llama_layers": [0, 1],
        },
        pooled=16, extra=llama, encoded=(128,) * 4,
    ),
    "HiDreamO1": Recipe(
        {
            "text_config_overrides": {
                "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "head_dim": 16, "rope_dims": [4, 2, 2],
            },
            "vision_config_overrides": {
                "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "depth": 1,
                "num_position_embeddings": 16, "deepstack_visual_indexes": (),
            },
        },
        extra=qwen_ids, side=64,
    ),
    "Omnigen2": Recipe(OMNIGEN, extra=masked, encoded=(27, 39, 45, 25)),
    "Boogu": Recipe(
        {**{k: v for k, v in OMNIGEN.items() if k != "text_feat_dim"}, "instruction_feat_dim": 16,
         "num_double_stream_layers": 1},
        extra=masked, encoded=(27, 39, 45, 25),
    ),
    "MageFlow": Recipe({**QWEN, "in_channels": 128}, encoded=(41, 53, 59, 39)),
    "QwenImage": Recipe({**QWEN, "in_channels": 64, "out_channels": 16}, encoded=(41, 53, 59, 39)),
    "JoyImage": Recipe(
        {"in_channels": 16, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 16, "num_layers": 1,
         "rope_dim_list": [4, 6, 6], "patch_size": [1, 2, 2]},
        encoded=(41, 53, 59, 39),
    ),
    "Ideogram4": Recipe(
        {"in_channels": 128, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16,
         "intermediate_size": 32, "adaln_dim": 16, "llm_features_dim": 16, "mrope_section": (4, 2, 2)},
        encoded=(10, 22, 28, 8),
    ),
    "Krea2": Recipe(
        {"features": 64, "tdim": 16, "txtdim": 16, "heads": 2, "kvheads": 1, "multiplier": 2, "layers": 2,
         "txtlayers": 2, "txtheads": 2, "txtkvheads": 1, "channels": 16},
        width=32, encoded=(41, 53, 59, 39),
    ),
    "Kandinsky5": Recipe(
        {**KANDINSKY, "visual_embed_dim": 132}, pooled=16, extra=masked, encoded=(44, 56, 62, 42)
    ),
    "Kandinsky5Image": Recipe(
        {**KANDINSKY, "visual_embed_dim": 64}, pooled=16, extra=masked, encoded=(44, 56, 62, 42)
    ),
    "ErnieImage": Recipe(
        {"hidden_size": 64, "num_attention_heads": 4, "num_layers": 2, "ffn_hidden_size": 64,
         "text_in_dim": 16, "rope_axes_dim": (4, 6, 6)}
    ),
}  # fmt: skip

ANIMATES = "makes a video of a given picture, video or pose"
VOLUME = "makes a 3D shape"
SOUND = "makes sound"
UPSCALES = "makes a picture larger or clearer that is given"
SEES = "describes a picture and makes none"
LEVELS = "its schedule is neither a flow nor the 1000 timesteps of Stable Diffusion"
UNSERVED: dict[str, str] = {
    "LotusD": "makes depth of a given picture in one step",
    "Stable_Zero123": ANIMATES,
    "SD_X4Upscaler": UPSCALES,
    "Stable_Cascade_C": LEVELS,
    "Stable_Cascade_B": LEVELS,
    "SVD_img2vid": ANIMATES,
    "SV3D_u": ANIMATES,
    "SV3D_p": ANIMATES,
    "StableAudio": SOUND,
    "StableAudio1": SOUND,
    "StableAudio3": SOUND,
    "ACEStep": SOUND,
    "ACEStep15": SOUND,
    "MiniMaxMusic3": SOUND,
    "LTXAV": "makes a video and its sound together, as latents of two shapes",
    "MiniMaxH3": "makes a video and its sound together, as latents of two shapes",
    "HunyuanVideo15_SR_Distilled": UPSCALES,
    "HunyuanImage21Refiner": UPSCALES,
    "HunyuanVideoI2V": ANIMATES,
    "HunyuanVideoSkyreelsI2V": ANIMATES,
    "CosmosT2V": LEVELS,
    "CosmosI2V": LEVELS,
    "CosmosI2VPredict2": ANIMATES,
    "PiD": UPSCALES,
    "WAN21_CausalAR_T2V": "makes a video frame by frame, by a sampler of its own",
    "WAN21_I2V": ANIMATES,
    "WAN21_FunControl2V": ANIMATES,
    "WAN21_Vace": ANIMATES,
    "WAN21_Camera": ANIMATES,
    "WAN22_Camera": ANIMATES,
    "WAN22_S2V": ANIMATES,
    "WAN21_HuMo": ANIMATES,
    "WAN22_Animate": ANIMATES,
    "WAN_Animate2": ANIMATES,
    "WAN21_FlowRVS": "makes a mask of a given video",
    "WAN21_SCAIL": ANIMATES,
    "WAN21_SCAIL2": ANIMATES,
    "WAN22_WanDancer": ANIMATES,
    "Hunyuan3Dv2": VOLUME,
    "Hunyuan3Dv2mini": VOLUME,
    "Hunyuan3Dv2_1": VOLUME,
    "TripoSplat": VOLUME,
    "Trellis2": VOLUME,
    "SeedVR2": UPSCALES,
    "RT_DETR_v4": SEES,
    "SAM3": SEES,
    "SAM31": SEES,
    "DepthAnything3": SEES,
    "CogVideoX_T2V": "predicts v of a state that is not scaled, which no sampler of the pack serves",
    "CogVideoX_I2V": ANIMATES,
    "CogVideoX_Inpaint": ANIMATES,
}
"""Classes of the host that a distillation cannot serve, with the reason of each."""
REFUSED: dict[str, str] = {"HiDreamO1": "keeps what it computed of a prompt"}
"""Classes that are sampled, and that TCD_Distill refuses in these words."""


def classes() -> list[str]:
    """Names of all classes of models that the host can detect."""
    import comfy.supported_models

    return [made.__name__ for made in comfy.supported_models.models]


def configured(name: str) -> Any:
    """The host's class of a model with the sizes of its recipe."""
    import comfy.supported_models

    made = getattr(comfy.supported_models, name)
    sizes = {k: v for k, v in RECIPES[name].sizes.items() if k not in UNKNOWN.get(name, ())}
    config = made({**made.unet_config, **sizes})
    config.unet_config.update(sizes)
    return config


UNKNOWN: dict[str, list[str]] = {}
"""Sizes that an older host's network has no argument for."""


def network(name: str) -> Any:
    """The model of a class with its network, made as the host makes it before it loads weights."""
    while True:
        config = configured(name)
        config.set_inference_dtype(torch.float32, None)
        try:
            return config.get_model({}, "").diffusion_model
        except TypeError as error:
            found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if found is None or found[1] not in RECIPES[name].sizes:
                raise
            UNKNOWN.setdefault(name, []).append(found[1])


@contextmanager
def small(name: str) -> Generator[None, None, None]:
    """The host's detection finds the sizes of a recipe, whatever the file holds."""
    import comfy.model_detection

    with ExitStack() as stack:
        for module, attribute, value in RECIPES[name].patches:
            stack.enter_context(mock.patch(f"{module}.{attribute}", value))
        found = lambda *_, **__: configured(name)  # noqa: E731
        stack.enter_context(mock.patch.object(comfy.model_detection, "model_config_from_unet", found))
        yield


def random_weights(made: Any) -> dict[str, Tensor]:
    """Weights with which every layer matters: of the size that keeps a signal's, norms near 1."""
    generator = torch.Generator().manual_seed(5)
    found: dict[str, Tensor] = {}
    for name, like in made.state_dict().items():
        if not like.is_floating_point():
            found[name] = like
            continue
        scale = 1 / max(like[0].numel(), 1) ** 0.5 if like.ndim > 1 else 0.1
        around = 1.0 if like.ndim == 1 and name.endswith(("weight", "scale", "gamma")) else 0.0
        found[name] = torch.randn(like.shape, generator=generator) * scale + around
    return found


def write(name: str, path: Path) -> None:
    """The file of a tiny model, with the keys that its network has."""
    from safetensors.torch import save_file

    with small(name), torch.inference_mode():
        save_file(random_weights(network(name)), path)


@cache
def base(name: str, folder: Path) -> Any:
    """The MODEL of a class, as Load Diffusion Model makes it; the file is made where it is missing."""
    import comfy.sd

    path = folder / f"{name}.safetensors"
    if not path.is_file():
        write(name, path)
    with small(name), torch.inference_mode():
        return comfy.sd.load_diffusion_model(str(path))


def text(name: str, seed: int, lengths: tuple[int, ...]) -> list[Any]:
    """A CONDITIONING with an entry for each length, in the shapes of the family's encoder."""
    recipe, generator = RECIPES[name], torch.Generator().manual_seed(seed)
    rows: list[Any] = []
    for tokens in lengths:
        extra = recipe.extra(tokens, generator)
        if recipe.pooled:
            extra["pooled_output"] = torch.randn(1, recipe.pooled, generator=generator)
        rows.append([torch.randn(1, tokens, recipe.width, generator=generator), extra])
    return rows


def side(name: str, form: Any) -> int:
    """Of a picture in pixels."""
    return RECIPES[name].side or 8 * int(getattr(form, "spacial_downscale_ratio", 8))
