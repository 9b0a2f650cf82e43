"""Folders of diffusers' layout with random weights, made with its own classes: some hundred kilobytes."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 16
"""Of a text encoder."""
SIDE = 32
"""Pixels: two to a latent."""


def tokenizer() -> CLIPTokenizer:
    vocab = [*ascii_lowercase, *(f"{c}</w>" for c in ascii_lowercase), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={text: i for i, text in enumerate(vocab)}, merges=[], model_max_length=20)


def text_encoder(kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=20, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    return kind(config)


def unet(**more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=SIDE // 2, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 64), attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    )  # fmt: skip


def save(folder: Path, kind: str = "epsilon", **scheduler: Any) -> Path:
    """A pipeline of `epsilon` (SD 1.5), `v` (SD 2.x) or `sdxl`, with weights that a seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,  # pyright: ignore
                                 down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore
                                 up_block_types=("UpDecoderBlock2D",) * 2),  # pyright: ignore
            "text_encoder": text_encoder(CLIPTextModel),
            "tokenizer": tokenizer(),
        }  # fmt: skip
        if kind == "sdxl":
            parts["text_encoder_2"] = text_encoder(CLIPTextModelWithProjection)
            parts["tokenizer_2"] = tokenizer()
            parts["unet"] = unet(
                cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=WIDTH + 6 * 8, use_linear_projection=True,
            )  # fmt: skip
        else:
            parts["unet"] = unet(cross_attention_dim=WIDTH)
            parts |= {"safety_checker": None, "feature_extractor": None}
        parts["scheduler"] = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            steps_offset=1,
            prediction_type="v_prediction" if kind == "v" else "epsilon", **scheduler,
        )  # fmt: skip
    made = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    made(**parts).save_pretrained(folder, safe_serialization=True)
    return folder


def opened(folder: Path, kind: str) -> Any:
    """diffusers' own pipeline of such a folder."""
    made = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    pipeline: Any = made.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
