"""`tcd train --comfyui PATH --checkpoint FILE`: a checkpoint by ComfyUI's own loader, without a server.

`training.host_path` has put ComfyUI on the path before this package is imported.
"""

from __future__ import annotations

import argparse
import atexit
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..training.backbone import fingerprint
from .backbone import HostBackbone
from .distill import KINDS, decoder, encode, latent_shape
from .prompts import alike
from .ready import ready

SIDE = 1024
"""Of the pictures in pixels, where none is given."""


WEIGHTS = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
"""As ComfyUI's Load Diffusion Model names them."""


class Opened:
    """See `training.cli.Opened`. The model stays ready for training until the process ends."""

    def __init__(self, model: Any, clip: Any, vae: Any, size: tuple[int, int], negative: str) -> None:
        self.clip, self.negative = clip, negative
        self._uncond: dict[str, Tensor] | None = None
        shape = latent_shape(model, *size, None, None)
        stack = ExitStack()
        atexit.register(stack.close)
        model, self._aside, _ = stack.enter_context(ready(model))
        decode = decoder(model.get_model_object("latent_format"), vae)
        self.backbone = HostBackbone(model, shape, decode, self._aside)
        kind = type(model.model.model_config).__name__
        self.preset = KINDS.get(kind, "sd15")
        self.metadata = {"tcd.teacher": kind, "tcd.teacher_hash": fingerprint(self.backbone.network)}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the training prompts first; then the negative one, which was encoded with them."""
        if self._uncond is not None and prompts == [self.negative]:
            return self._uncond
        cond = self.backbone.encode([self._text(prompt) for prompt in prompts])
        uncond = self.backbone.encode([self._text(self.negative)], uncond=True)
        cond, self._uncond = alike(cond, uncond)
        return cond

    def _text(self, prompt: str) -> Any:
        with self._aside(), torch.inference_mode():
            return encode(self.clip, prompt)[0]


def open_model(args: argparse.Namespace) -> Opened:
    """ValueError where the file holds no model, no text encoder, or none that ComfyUI knows."""
    path = Path(args.checkpoint).resolve()
    if not path.is_file():
        raise ValueError(f"--checkpoint {args.checkpoint}: no such file")
    embeddings = folder_paths.get_folder_paths("embeddings")
    options = {} if args.weight_dtype is None else {"dtype": WEIGHTS[args.weight_dtype]}
    with torch.inference_mode():
        try:
            model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(
                str(path), embedding_directory=embeddings, model_options=options
            )
        except (RuntimeError, ValueError, SafetensorError) as error:
            cause = str(error).splitlines()[0]
            raise ValueError(f"--checkpoint {path}: ComfyUI cannot load it: {cause}") from error
    if model is None or clip is None:
        raise ValueError(
            f"--checkpoint {path}: holds {'no text encoder' if model is not None else 'no diffusion model'}; "
            "a whole checkpoint is needed, as Load Checkpoint takes it"
        )
    return Opened(model, clip, vae, (args.width or SIDE, args.height or SIDE), args.negative)
