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
    """How to sample with a LoRA, and who says so."""

    title: str
    steps: int
    cfg: float
    gamma: float
    note: str
    source: str
    strength: float = 1.0

    def __str__(self) -> str:
        strength = "" if self.strength == 1 else f"strength {self.strength:g}, "
        return f"{strength}{self.steps} steps, cfg {self.cfg:g}, gamma {self.gamma:g} ({self.note})"


class Known(NamedTuple):
    """A row of the table."""

    words: str  # a pattern for folder and file name, in lower case with hyphens; a group `n` holds the steps
    bases: tuple[str, ...]
    advice: Advice


_SD_SDXL = ("SD 1.5", "SDXL")
_HYPER = "model card of ByteDance/Hyper-SD"
_PCM = "official demo of PCM (wangfuyun/PCM_Weights): TCDScheduler, eta 0"
KNOWN: tuple[Known, ...] = (
    Known(
        r"hyper-.*\b(?P<n>1)-?steps?\b",
        _SD_SDXL,
        Advice(
            "Hyper-SD, unified", 1, 1, 1.0, "1 to 8 steps; with several, lower gamma for more detail", _HYPER
        ),
    ),
    Known(
        r"hyper-.*\b(?P<n>\d+)-?steps-cfg\b",
        _SD_SDXL,
        Advice("Hyper-SD, cfg preserved", 8, 5, 0.0, "this number of steps; cfg 5 to 8", _HYPER),
    ),
    Known(
        r"hyper-flux.*\b(?P<n>\d+)-?steps\b",
        ("Flux",),
        Advice("Hyper-SD", 8, 1, 0.0, "this number of steps; Flux guidance 3.5", _HYPER, strength=0.125),
    ),
    Known(
        r"hyper-.*\b(?P<n>\d+)-?steps\b",
        _SD_SDXL,
        Advice("Hyper-SD", 4, 1, 0.0, "this number of steps, by DDIM on the card", _HYPER),
    ),
    Known(
        r"\bpcm-.*smallcfg-(?P<n>\d+)-?step",
        _SD_SDXL,
        Advice("PCM, small cfg", 4, 1, 0.0, "this number of steps", _PCM),
    ),
    Known(
        r"\bpcm-.*normalcfg-(?P<n>\d+)-?step",
        _SD_SDXL,
        Advice("PCM, normal cfg", 4, 7.5, 0.0, "this number of steps", _PCM),
    ),
    Known(
        r"\bpcm-.*lcmlike",
        _SD_SDXL,
        Advice("PCM, like LCM", 4, 1, 1.0, "gamma 1 samples as LCM does", _PCM.split(":")[0]),
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
    """What the file's own metadata, or else the table, recommends."""
    if "tcd.student" in file.metadata:
        return _own(file.metadata)
    name = re.sub(r"[^a-z0-9]+", "-", f"{file.path.parent.name}/{file.path.name}".lower())
    for row in KNOWN:
        found = re.search(row.words, name)
        if found and set(row.bases) & {x for name in file.bases for x in (name, family(name))}:
            steps = found.groupdict().get("n")
            return row.advice._replace(steps=int(steps)) if steps else row.advice
    return None


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
