"""The repository's own small model as MODEL, CLIP, VAE and LATENT: TCD without a download, on any machine."""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor, nn

from ..embedded.avatars import SIZE
from ..embedded.model import LATENT, EmbeddedModel
from ..embedded.prompts import known_words, parse
from ..embedded.vae import WEIGHTS
from .api import schema
from .lora import apply, read

LORAS = {"tcd": "tcd-lora.safetensors", "lcm": "lcm-lora.safetensors", "none": None}


class LatentFormat(comfy.latent_formats.LatentFormat):
    latent_channels = LATENT[0]  # of deviation 1 as they are
    spacial_downscale_ratio = SIZE // LATENT[-1]


class Embedded(comfy.supported_models_base.BASE):
    """What the host has to know of the network; its name is shown as the model's."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012, as in the host
    latent_format = LatentFormat


class Network(comfy.model_base.BaseModel):
    """The host's UNet and v-prediction on SD's schedule, with the prompt's tokens in a row as `y`."""

    def encode_adm(self, **kwargs: Any) -> Tensor:
        return kwargs["pooled_output"]


class Words:
    """The tokenizer: a token for each of the nine slots, (value, weight 1)."""

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, Any]:
        return {"embedded": [[(value, 1.0, *([i] * return_word_ids)) for i, value in enumerate(parse(text))]]}

    def state_dict(self) -> dict[str, Any]:
        return {}


class TextEncoder(nn.Module):
    """Ours under the interface of the host's."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`(context [1, 9, 96], pooled [1, 864])`"""
        rows = [[token[0] for token in row] for row in tokens["embedded"]]
        encoded = self.text(torch.tensor(rows, device=next(self.parameters()).device))
        out = comfy.model_management.intermediate_device()
        return encoded["context"].to(out), encoded["pooled"].to(out)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """There are no layers to choose from."""

    def reset_clip_options(self) -> None:
        """See above."""


class VAE:
    """Ours under the interface of the host's: latents `[B, 8, h, w]`, images `[B, 4h, 4w, 3]` in 0..1."""

    def __init__(self, model: EmbeddedModel) -> None:
        self.model = model

    def decode(self, samples: Tensor, vae_options: Any = None) -> Tensor:
        pixels = self.model.decode(samples.to(self.model.device))
        return pixels.to(comfy.model_management.intermediate_device()).float() / 255

    def encode(self, pixels: Tensor) -> Tensor:
        size = tuple(pixels.shape[-3:-1])
        if size != (SIZE, SIZE):
            raise ValueError(
                f"pixels: the image has {size[1]}x{size[0]} pixels, the embedded model's have {SIZE}x{SIZE}; "
                "put Upscale Image with these sizes before"
            )
        images = (pixels[..., :3].to(self.model.device) * 255).round().clamp(0, 255).to(torch.uint8)
        assert self.model.vae is not None
        return self.model.vae.encode(images).to(comfy.model_management.intermediate_device())

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        return self.decode(samples)

    def encode_tiled(self, pixels: Tensor, **_: Any) -> Tensor:
        return self.encode(pixels)

    def spacial_compression_decode(self) -> int:
        return LatentFormat.spacial_downscale_ratio

    spacial_compression_encode = spacial_compression_decode

    def temporal_compression_decode(self) -> None:
        return None


@cache
def parts() -> tuple[Any, Any, VAE]:
    """(MODEL, CLIP, VAE), once for all. FileNotFoundError names a weights file that is missing."""
    with torch.inference_mode(False):  # parameters that can be trained
        ours = EmbeddedModel.load()
        ours.decode(torch.zeros(1, *LATENT))  # loads the autoencoder now rather than after the sampling
        config = Embedded({**ours.config.comfy(), "dtype": torch.float32})
        network = Network(config, comfy.model_base.ModelType.V_PREDICTION)
        network.diffusion_model.load_state_dict(ours.unet.state_dict())
        network.eval().requires_grad_(False)
    management = comfy.model_management
    patcher = comfy.model_patcher.ModelPatcher
    model = patcher(network, management.get_torch_device(), management.unet_offload_device())
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model, clip.tokenizer = TextEncoder(ours.text), Words()
    devices = management.text_encoder_device(), management.text_encoder_offload_device()
    clip.patcher = patcher(clip.cond_stage_model, *devices)
    clip.patcher.is_clip = True
    clip.layer_idx, clip.use_clip_schedule, clip.apply_hooks_to_conds = None, False, None
    clip.tokenizer_options = {}
    return model, clip, VAE(ours)


class TCDEmbeddedModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_EmbeddedModel",
            display_name="TCD Embedded Model",
            category="TCD/loaders",
            description="A small text-to-image model that comes with this pack: 16x16 pixel-art portraits, "
            "in under a second on a CPU, to try TCD with. Prompts are words between commas; the words are "
            f"{known_words()}",
            search_aliases=["tcd", "demo", "example", "tiny model", "avatar", "pixel art", "no download"],
            inputs=[
                io.Combo.Input(
                    "lora",
                    options=list(LORAS),
                    default="tcd",
                    tooltip="tcd: distilled by Trajectory Consistency Distillation, for 1 to 20 steps at "
                    "cfg 1. lcm: by Latent Consistency, gamma 1. none: the teacher, for 20 steps at cfg 3.",
                ),
                io.Int.Input("batch_size", default=4, min=1, max=4096, tooltip="Pictures of the LATENT."),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(
                    display_name="CLIP", tooltip="For CLIP Text Encode; knows its own words only."
                ),
                io.Vae.Output(display_name="VAE"),
                io.Latent.Output(display_name="LATENT", tooltip="Empty, of the only size it was trained on."),
            ],
        )

    @classmethod
    def execute(cls, lora: str, batch_size: int) -> io.NodeOutput:
        model, clip, vae = parts()
        model, file = model.clone(), LORAS[lora]
        if file is not None:
            model, _, _ = apply(model, None, read(str(WEIGHTS / file)), 1.0)
        device = comfy.model_management.intermediate_device()
        latent = {"samples": torch.zeros(batch_size, *LATENT, device=device)}
        return io.NodeOutput(model, clip.clone(), vae, latent)


NODES: list[type[io.ComfyNode]] = [TCDEmbeddedModel]
