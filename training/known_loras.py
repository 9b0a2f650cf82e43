"""Published few-step LoRAs and how their authors sample them. A recommendation, never applied by itself.

`cfg` as ComfyUI counts: the cards' `guidance_scale=0`, which switches guidance off in diffusers, is 1. Most
of these files share the name pytorch_lora_weights.safetensors, so the folder's name counts as well as the
file's, and the layers must fit the model that the row is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .formats import LoraFile
from .lora_bases import family


class Advice(NamedTuple):
    """How to sample with a LoRA, and who says so.

    `gamma` 1 adds fresh noise to x0 before each next step, as LCM and DMD2 do; 0 is Euler's or DDIM's step.
    The times that it was trained at, where they are known, are `timesteps` of 0 to 999 for models with a
    discrete schedule, or `sigmas` of 1 to 0 for flow models, with `shift` (if one was used) in them already.
    The end, 0, is not among them.
    """

    title: str
    steps: int
    cfg: float
    gamma: float
    note: str
    source: str
    strength: float = 1.0
    timesteps: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    shift: float | None = None

    def __str__(self) -> str:
        strength = "" if self.strength == 1 else f"strength {self.strength:g}, "
        times = ", ".join(f"{t:.4g}" for t in self.timesteps or self.sigmas)
        at = f"; trained at {'timesteps' if self.timesteps else 'sigmas'} {times}" if times else ""
        shift = "" if self.shift is None else f"; shift {self.shift:g}"
        return (
            f"{strength}{self.steps} steps, cfg {self.cfg:g}, gamma {self.gamma:g} ({self.note}{at}{shift})"
        )


class Known(NamedTuple):
    """A row of the table."""

    words: str  # a pattern for folder and file name, in lower case with hyphens; a group `n` holds the steps
    bases: tuple[str, ...]
    advice: Advice
    trailing: bool = False  # trained at the steps that "trailing" spacing gives, with the advice's shift

    def settings(self, steps: int) -> Advice:
        """The advice for a number of steps, with its times."""
        tip = self.advice._replace(steps=steps)
        if not self.trailing:
            return tip if steps == self.advice.steps else tip._replace(timesteps=(), sigmas=())
        return tip._replace(**trailing(steps, tip.shift))


def trailing(steps: int, shift: float | None) -> dict[str, Any]:
    """Space times as diffusers' trailing does: {"timesteps": ...}, or {"sigmas": ...} of a flow shift."""
    if shift is None:
        return {"timesteps": tuple(round(1000 - 1000 * i / steps) - 1 for i in range(steps))}
    even = [1 - i / steps for i in range(steps)]
    return {"sigmas": tuple(shift * x / (1 + (shift - 1) * x) for x in even)}


_SD_SDXL = ("SD 1.5", "SDXL")
_SPEED = "this number of steps"
_LIKE_LCM = "gamma 1 samples as LCM does"
_EULER = "gamma 0 is Euler"
_HYPER = "model card of ByteDance/Hyper-SD"
_PCM = "official demo of PCM (wangfuyun/PCM_Weights): TCDScheduler, eta 0"
_LIGHTX = "blueprints of ComfyUI; step list 1000, 750, 500, 250 of ModelTC/LightX2V at shift 5"
_N = r"\b(?P<n>\d+)-?steps?"
KNOWN: tuple[Known, ...] = (
    Known(
        r"\bhyper-?sd.*\b(?P<n>1)-?steps?\b",
        _SD_SDXL,
        Advice(
            "Hyper-SD, unified", 1, 1, 1.0, "1 to 8 steps; with several, lower gamma for more detail", _HYPER
        ),
    ),
    Known(
        rf"\bhyper-?sd3.*{_N}",
        ("SD3",),
        Advice("Hyper-SD3", 8, 5, 0.0, "this number of steps; cfg 3, 5 or 7", _HYPER, strength=0.125),
    ),
    Known(
        rf"\bhyper-?sd.*{_N}-cfg\b",
        _SD_SDXL,
        Advice("Hyper-SD, cfg preserved", 8, 5, 0.0, "this number of steps; cfg 5 to 8", _HYPER),
        trailing=True,
    ),
    Known(
        rf"\bhyper-?flux.*{_N}\b",
        ("Flux",),
        Advice("Hyper-SD", 8, 1, 0.0, "this number of steps; Flux guidance 3.5", _HYPER, strength=0.125),
    ),
    Known(
        rf"\bhyper-?sd.*{_N}\b",
        _SD_SDXL,
        Advice("Hyper-SD", 4, 1, 0.0, "this number of steps, by DDIM on the card", _HYPER),
        trailing=True,
    ),
    Known(
        r"\bpcm-.*smallcfg-(?P<n>\d+)-?step",
        _SD_SDXL,
        Advice("PCM, small cfg", 4, 1, 0.0, _SPEED, _PCM),
    ),
    Known(
        r"\bpcm-.*normalcfg-(?P<n>\d+)-?step",
        _SD_SDXL,
        Advice("PCM, normal cfg", 4, 7.5, 0.0, _SPEED, _PCM),
    ),
    Known(
        r"\bpcm-.*lcmlike",
        _SD_SDXL,
        Advice("PCM, like LCM", 4, 1, 1.0, _LIKE_LCM, _PCM.split(":")[0]),
    ),
    Known(
        r"\bdmd2\b",
        ("SDXL",),
        Advice("DMD2", 4, 1, 1.0, _LIKE_LCM, "README of tianweiy/DMD2"),
        trailing=True,
    ),
    Known(
        rf"\blightning\b.*{_N}",
        ("SDXL",),
        Advice(
            "SDXL-Lightning",
            4,
            1,
            0.0,
            "this number of steps; gamma 0 is Euler",
            "model card of ByteDance/SDXL-Lightning",
        ),
        trailing=True,
    ),
    Known(
        rf"\blightning\b.*{_N}",
        ("Qwen-Image",),
        Advice(
            "Qwen-Image-Lightning",
            4,
            1,
            0.0,
            "this number of steps; gamma 0 is Euler",
            "model card of lightx2v/Qwen-Image-Lightning, shift 3; ComfyUI's blueprints take 3.1",
            shift=3.0,
        ),
        trailing=True,
    ),
    Known(
        r"\blightx2v\b|\blightning\b",
        ("Wan",),
        Advice("Wan lightx2v", 4, 1, 0.0, _EULER, _LIGHTX, shift=5.0),
        trailing=True,
    ),
    Known(
        r"\bflash-?sd(xl|3|15)?\b",
        ("SD 1.5", "SDXL", "SD3"),
        Advice("Flash Diffusion", 4, 1, 1.0, _LIKE_LCM, "README of gojasper/flash-diffusion"),
    ),
    Known(
        r"\btdd\b",
        ("SDXL",),
        Advice("TDD", 4, 1.7, 0.2, "4 to 8 steps", "README of RedAIGC/Target-Driven-Distillation"),
    ),
    Known(
        r"\btdd\b",
        ("Flux",),
        Advice(
            "TDD",
            8,
            1,
            0.0,
            "4 to 8 steps; Flux guidance 2",
            "README of RedAIGC/Target-Driven-Distillation",
        ),
    ),
    Known(
        r"\bturbo\b",
        ("SDXL", "SD 2.x"),
        Advice(
            "SD Turbo, SDXL Turbo",
            4,
            1,
            1.0,
            "1 to 4 steps; trained for 512 pixels",
            "model cards of stabilityai/sdxl-turbo and sd-turbo",
        ),
        trailing=True,
    ),
    Known(
        r"\bturbo\b",
        ("Flux",),
        Advice(
            "FLUX.1-Turbo-Alpha",
            8,
            1,
            0.0,
            "this number of steps; Flux guidance 3.5",
            "model card of alimama-creative/FLUX.1-Turbo-Alpha",
        ),
    ),
    Known(
        r"\bturbo\b",
        ("Flux.2",),
        Advice(
            "FLUX.2 Turbo",
            8,
            1,
            0.0,
            "this number of steps; Flux guidance 2.5",
            "model card of fal/FLUX.2-dev-Turbo",
            sigmas=(1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031),
        ),
    ),
    Known(
        rf"\bdistill?\b.*{_N}",
        ("Z-Image",),
        Advice(
            "Z-Image-Fun distill",
            8,
            1,
            0.0,
            "this number of steps; gamma 0 is Euler",
            "model card of alibaba-pai/Z-Image-Fun-Lora-Distill",
            strength=0.8,
        ),
    ),
    Known(
        r"\bturbo\b",
        ("Anima",),
        Advice(
            "Anima Turbo",
            8,
            1,
            0.0,
            "4 to 10 steps; its users take er_sde or Euler a",
            "discussions 150 and 210 of circlestone-labs/Anima",
        ),
    ),
    Known(
        r"\bdistilled\b",
        ("LTX-2",),
        Advice(
            "LTX-2 distilled",
            8,
            1,
            0.0,
            _EULER,
            "blueprints of ComfyUI; diffusers' DISTILLED_SIGMA_VALUES",
            sigmas=(1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875),
        ),
    ),
    Known(
        r"\btcd\b",
        ("SD 1.5", "SD 2.x", "SDXL"),
        Advice(
            "TCD",
            4,
            1,
            0.3,
            "any number of steps; raise gamma with it",
            "model cards of h1t/TCD-SDXL-LoRA, TCD-SD15-LoRA and TCD-SD21-base-LoRA",
        ),
    ),
    Known(
        r"\blcm\b",
        ("SD 1.5", "SDXL", "SSD-1B"),
        Advice(
            "LCM",
            4,
            1,
            1.0,
            "2 to 8 steps; cfg up to 2; gamma 1 samples as LCM does",
            "model cards of latent-consistency/lcm-lora-sdxl, -sdv1-5 and -ssd-1b",
        ),
    ),
)


def advice(file: LoraFile) -> Advice | None:
    """What the file's own metadata, or else the table by its name, recommends."""
    if "tcd.student" in file.metadata:
        return _own(file.metadata)
    bases = {x for name in file.bases for x in (name, family(name))}
    for name in _names(file):
        for row in KNOWN:
            found = re.search(row.words, name)
            if found and set(row.bases) & bases:
                return row.settings(int(found.groupdict().get("n") or row.advice.steps))
    return None


def _names(file: LoraFile) -> list[str]:
    """What the file is called, by folder and file, then by its metadata: a download is often renamed."""
    titles = (file.metadata.get(key, "") for key in ("modelspec.title", "ss_output_name"))
    names = [f"{file.path.parent.name}/{file.path.name}", *titles]
    return [re.sub(r"[^a-z0-9]+", "-", name.lower()) for name in names if name]


def _own(metadata: Mapping[str, str]) -> Advice:
    """For a LoRA of our trainer: where its s lay decides how it is sampled."""

    def value(name: str, default: Any) -> Any:
        try:
            return json.loads(metadata[f"tcd.{name}"])
        except (KeyError, ValueError):
            return default

    s_range, aimed = value("s_range", "uniform"), int(value("s_steps", 4))
    steps, gamma = {"zero": (4, 1.0), "phases": (aimed, 0.0), "near": (aimed, 0.3)}.get(s_range, (4, 0.3))
    low, high = value("w_min", None), value("w_max", None)
    inside = (
        f"; guidance cfg {1 + low:g} to {1 + high:g} is built in"
        if low is not None and high is not None
        else ""
    )
    steps = int(value("recommended_steps", steps))
    cfg, gamma = float(value("recommended_cfg", 1.0)), float(value("recommended_gamma", gamma))
    note = f"s was {s_range} in training{inside}"
    return Advice("TCD, by this pack", steps, cfg, gamma, note, "the file's metadata, the paper's defaults")
