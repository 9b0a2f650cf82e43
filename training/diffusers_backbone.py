"""A folder of diffusers' layout, Stable Diffusion 1.5, 2.x or SDXL, for `tcd train --diffusers FOLDER`.

diffusers and transformers are imported only where they are needed. Weights are safetensors, never pickles.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..samplers import DiscreteSchedule, Point, Predict, Schedule, placed, to_x0_eps
from .backbone import Cond, concat, fingerprint
from .text import read_text

PIPELINES = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}
"""Kinds of folder, each with its row of settings."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squaredcos"}
AT_ONCE = 16
"""Prompts that the text encoders take."""
NOT_TEXT = ("unet", "vae", "safety_checker", "feature_extractor", "image_encoder")
TEXT = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
"""Text encoders of such a folder, each with its class in transformers."""


class DiffusersBackbone:
    """See `backbone.Backbone`. `vae` is where its folder is: it is loaded when a picture is wanted."""

    def __init__(
        self, network: Any, schedule: Schedule, prediction: str, latent_shape: Sequence[int], vae: Path
    ) -> None:
        self.network: nn.Module = network
        self.schedule = schedule
        self.prediction = prediction
        self.latent_shape = tuple(latent_shape)
        self._vae_folder = vae

    def predictor(self, cond: Cond) -> Predict:
        network: Any = self.network
        context = cond["context"].to(network.dtype)
        added = {"text_embeds": cond["pooled"], "time_ids": cond["sizes"]} if "pooled" in cond else {}
        added = {name: value.to(network.dtype) for name, value in added.items()}

        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            t = placed(now.t.float(), x.device).expand(len(x))
            out = network(x.to(network.dtype), t, context, added_cond_kwargs=added, return_dict=False)[0]
            return to_x0_eps(self.prediction, out.float(), x, now.level)

        return predict

    @cached_property
    def _vae(self) -> Any:
        from diffusers import AutoencoderKL

        vae: Any = AutoencoderKL.from_pretrained(self._vae_folder, **loading(self._vae_folder))
        return vae.to(next(self.network.parameters()).device).requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        rows = (latents.float() / self._vae.config.scaling_factor).split(1)
        pictures = torch.cat([self._vae.decode(row, return_dict=False)[0] for row in rows])
        return ((pictures.movedim(1, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


class Opened:
    """See `cli.Opened`. The prompts are encoded before the UNet is loaded, and the encoders let go."""

    def __init__(self, folder: Path, width: int | None, height: int | None, negative: str) -> None:
        self.folder, self.negative = folder, negative
        self.kind = str(_json(folder, "model_index.json").get("_class_name"))
        if self.kind not in PIPELINES:
            raise ValueError(
                f"--diffusers {folder}: holds a {self.kind}; Stable Diffusion 1.5, 2.x and SDXL can be "
                f"trained from a folder ({', '.join(PIPELINES)}), others through --comfyui"
            )
        self.preset = PIPELINES[self.kind]
        for part in ("unet", "vae", *(name for name in TEXT if (folder / name).is_dir())):
            variant_of(folder / part)
        unet = _json(folder, "unet/config.json")
        if unet.get("in_channels") != unet.get("out_channels") or unet.get("time_cond_proj_dim"):
            raise ValueError(
                f"--diffusers {folder}: its UNet paints over pictures or is told the guidance, so it is no "
                "plain text-to-image teacher; give the ordinary model"
            )
        ratio = 2 ** (len(_json(folder, "vae/config.json")["block_out_channels"]) - 1)
        size = int(unet["sample_size"]) * ratio
        self.width, self.height = width or size, height or size
        if self.width % ratio or self.height % ratio:
            raise ValueError(
                f"--width {self.width}, --height {self.height}: multiples of {ratio} are needed here"
            )
        self.latent_shape = (unet["in_channels"], self.height // ratio, self.width // ratio)
        scheduler = _json(folder, "scheduler/scheduler_config.json")
        self.schedule, self.prediction = schedule_of(scheduler), prediction_of(scheduler)
        self._uncond: dict[str, Tensor] | None = None

    @cached_property
    def backbone(self) -> DiffusersBackbone:
        from diffusers import UNet2DConditionModel

        unet = self.folder / "unet"
        network: Any = UNet2DConditionModel.from_pretrained(unet, **loading(unet))
        network = _placed(network).eval().requires_grad_(False)
        return DiffusersBackbone(
            network, self.schedule, self.prediction, self.latent_shape, self.folder / "vae"
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        return {"tcd.teacher": self.kind, "tcd.teacher_hash": fingerprint(self.backbone.network)}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """The training prompts first; the negative one is encoded with them."""
        if self._uncond is not None and prompts == [self.negative]:
            return self._uncond
        encoder = self._encoders()
        parts = [prompts[i : i + AT_ONCE] for i in range(0, len(prompts), AT_ONCE)]
        cond = concat([self._encoded(encoder, part) for part in parts])
        self._uncond = self._encoded(encoder, None)
        return cond

    def _encoders(self) -> Any:
        """diffusers' own pipeline of this folder with nothing but its text encoders."""
        try:
            import diffusers
            import transformers
        except ImportError as error:
            raise ValueError(
                f"--diffusers needs {error.name}: python -m pip install diffusers transformers"
            ) from error
        listed = _json(self.folder, "model_index.json")
        absent: dict[str, Any] = {name: None for name in NOT_TEXT if name in listed}
        if "safety_checker" in listed:
            absent["requires_safety_checker"] = False  # or its absence is warned of
        given = {
            name: getattr(transformers, kind).from_pretrained(part, **loading(part))
            for name, kind in TEXT.items()
            if (part := self.folder / name).is_dir()
        }
        pipeline: Any = getattr(diffusers, self.kind).from_pretrained(
            self.folder, local_files_only=True, **absent, **given
        )
        return _placed(pipeline)

    @torch.no_grad()
    def _encoded(self, encoder: Any, prompts: list[str] | None) -> dict[str, Tensor]:
        """The prompts, or for None the negative one: where it is empty, what the model takes for that."""
        guided = prompts is None
        found = encoder.encode_prompt(
            prompts or [""],
            device=device(),
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=[self.negative] if guided and self.negative else None,
        )
        context = found[int(guided)]
        if len(found) == 2:
            return {"context": context}
        size = [self.height, self.width, 0, 0, self.height, self.width]
        sizes = torch.tensor([size], device=context.device).expand(len(context), -1).clone()
        return {"context": context, "pooled": found[2 + int(guided)], "sizes": sizes}


def open_model(args: argparse.Namespace) -> Opened:
    """Open the folder's settings, and no weights yet. ValueError where it holds no pipeline, or none that
    can be a teacher.
    """
    if args.diffusers.is_file():
        raise ValueError(
            f"--diffusers {args.diffusers}: is a file; give the folder of a pipeline, or a checkpoint of one "
            "file through --comfyui"
        )
    if not args.diffusers.is_dir():
        raise ValueError(
            f"--diffusers {args.diffusers}: no such folder; a model of the hub has to be downloaded first, "
            f"with all its folders: hf download {args.diffusers.as_posix()} --local-dir FOLDER"
        )
    return Opened(Path(args.diffusers).resolve(), args.width, args.height, args.negative)


def loading(part: Path) -> dict[str, Any]:
    """Choose how diffusers and transformers load a part of a pipeline: its own files, and no pickles."""
    return {
        "use_safetensors": True,
        "local_files_only": True,
        "torch_dtype": torch.float32,
        "variant": variant_of(part),
    }


def variant_of(part: Path) -> str | None:
    """Find which of its sets of weights a part of a pipeline is loaded from: None for the plain ones, else a
    variant such as `fp16`, of files such as `model.fp16.safetensors`. ValueError where there are none.
    """
    names = [path.name.split(".") for path in part.glob("*.safetensors")]
    # Of a model in several files, the number is before the variant or after it.
    variants = sorted({"" if len(name) == 2 else name[1].partition("-")[0] for name in names})
    if not variants:
        raise ValueError(
            f"--diffusers: {part} holds no .safetensors file; other weights, such as .bin, are pickles and "
            "are not read: save the pipeline again with safe_serialization = True"
        )
    return None if "" in variants else "fp16" if "fp16" in variants else variants[0]


def schedule_of(config: Mapping[str, Any]) -> DiscreteSchedule:
    """The noise levels of a scheduler's configuration. ValueError for one that has no list of betas."""
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        return DiscreteSchedule.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0))
    kind = str(config.get("beta_schedule"))
    if kind not in BETAS:
        raise ValueError(
            f"scheduler/scheduler_config.json: beta_schedule is {kind!r}; one of {', '.join(BETAS)} is needed"
        )
    return DiscreteSchedule.from_betas(
        BETAS[kind],
        config["beta_start"],
        config["beta_end"],
        config["num_train_timesteps"],
        bool(config.get("rescale_betas_zero_snr")),
    )


def prediction_of(config: Mapping[str, Any]) -> str:
    """What the network says, in the words of `samplers.PREDICTIONS`."""
    named = config.get("prediction_type", "epsilon")
    if named not in PREDICTIONS:
        raise ValueError(
            f"scheduler/scheduler_config.json: prediction_type is {named!r}; one of {', '.join(PREDICTIONS)} "
            "is needed"
        )
    return PREDICTIONS[named]


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    for name, found in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if found.is_available():
            return torch.device(name, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.mps.is_available() else "cpu")


def _placed(part: Any) -> Any:
    """On the device, in half the memory where that computes in it; the LoRA is in float32 everywhere."""
    part = part.to(device())
    return part if device().type == "cpu" else part.to(torch.bfloat16)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(read_text(folder / name)))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--diffusers {folder}: {name} is missing or broken; give the folder that save_pretrained of a "
            "pipeline made, with its model_index.json"
        ) from error
