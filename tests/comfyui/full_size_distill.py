"""Runs in ComfyUI's interpreter: TCD_Distill on a whole SD 1.5, or on SDXL's UNet, with random weights.

    python full_size_distill.py COMFYUI PACK --base-directory HOME

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import full_size_inside
import torch
from torch import Tensor


@cache
def loaded(architecture: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE (of the tiny kind), by the host's loader of checkpoints. SDXL without its text
    encoders and a VAE, weights kept in bfloat16 and computed with in float32.
    """
    import comfy.sd
    import distill_standins
    import workflow_standins as standins
    from lora_inside import UNETS

    if architecture == "SDXL":
        return full_size_inside.model(architecture), None, None
    config = {**standins.UNET, **UNETS["SD 1.5"]}
    weights = standins.filled(standins.joined("SD15", config, distill_standins.vae(4)))
    return comfy.sd.load_state_dict_guess_config(weights)[:3]


def sizes(architecture: str) -> list[int]:
    """Parameters of the UNet and of the text encoder."""
    model, clip, _ = loaded(architecture)
    parts = [model.model.diffusion_model, *([clip.cond_stage_model] if clip else [])]
    return [sum(p.numel() for p in part.parameters()) for part in parts]


def encoded(architecture: str, text: str) -> Any:
    """CONDITIONING of a text; without an encoder random numbers stand in, others for the empty text."""
    import nodes

    if (clip := loaded(architecture)[1]) is not None:
        return nodes.CLIPTextEncode().encode(clip, text)[0]
    ((words, more),) = full_size_inside.conditioning(architecture)
    sign = 1 if text else -1
    return [[sign * words, {"pooled_output": sign * more["pooled_output"]}]]


class Peak:
    """Memory that is taken beyond what is held, in bytes; 0 where the system does not say."""

    def __init__(self) -> None:
        self.known = sys.platform == "linux"
        if self.known:
            ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what is taken
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        self.held = self._status("VmRSS")

    def taken(self) -> int:
        return self._status("VmHWM") - self.held

    def _status(self, name: str) -> int:
        if not self.known:
            return 0
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0]) * 1024


def sampled(architecture: str, model: Any) -> Tensor:
    """A latent by four steps of the pack's sampler."""
    from distill_inside import run

    latent = torch.zeros(1, 4, 8, 8)
    positive, negative = (encoded(architecture, text) for text in ("a cat", ""))
    return run(
        "TCD_KSampler", model=model, seed=5, steps=4, cfg=1.0, gamma=0.3, positive=positive,
        negative=negative, latent_image={"samples": latent}, denoise=1.0,
    )[0]["samples"]  # fmt: skip


@contextmanager
def planned() -> Generator[list[tuple[str, Peak]]]:
    """The plans that a run tells, with the memory since then."""
    from distill_inside import pack

    monitor, told = pack("progress").Monitor, list[tuple[str, Peak]]()
    real = monitor.planned

    def note(self: Any, plan: str) -> None:
        told.append((plan, Peak()))
        real(self, plan)

    monitor.planned = note
    try:
        yield told
    finally:
        monitor.planned = real


def distilled(architecture: str, **given: Any) -> dict[str, Any]:
    """A run through the node, and what core's LoraLoader makes of its file."""
    import folder_paths
    import nodes
    from distill_inside import run, state

    teacher, clip, vae = loaded(architecture)
    plain, before = sampled(architecture, teacher), state(teacher)
    given |= {"model": teacher, "clip": clip, "vae": vae}
    if clip is None:
        given |= {"conditioning": encoded(architecture, "a cat"), "negative": encoded(architecture, "")}
    with planned() as told:
        student, lora, path, image, losses = run("TCD_Distill", **given)
    ((plan, memory),) = told
    taken, after = memory.taken(), state(teacher)
    folder_paths.add_model_folder_path("loras", str(Path(path).parent))
    by_core, _ = nodes.LoraLoader().load_lora(teacher, clip, Path(path).name, 1.0, 1.0)
    return {
        "plan": plan,
        "taken": taken,
        "changed": [k for k in before if before[k] != after[k]],
        "layers": sum(k.endswith("lora_up.weight") for k in lora),
        "patched by core": len(by_core.patches),
        "plain": plain,
        "student": sampled(architecture, student),
        "core": sampled(architecture, by_core),
        "again": sampled(architecture, teacher),
        "image": image,
        "losses": [float(x) for x in losses["loss"]],
    }


if __name__ == "__main__":
    from comfyui_worker import main

    main(globals())
