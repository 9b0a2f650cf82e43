"""The settings of an adapter where diffusers and peft keep them: beside its weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .lora_keys import WRAPPER
from .text import read_text

_CONFIG = "adapter_config.json"


class Settings(NamedTuple):
    """What `lora_adapter_metadata` or `adapter_config.json` says; empty where there is neither."""

    values: Mapping[str, Any]

    def scale(self, raw: str, rank: int | None) -> float | None:
        """Say what the change of layer `raw` is multiplied by, as peft does; None where nothing is said.

        rank: of its factors; None where it has none, as a LoKr of two full ones.
        """
        model, _, name = raw.partition(".")
        prefix = f"{model}."  # diffusers: settings of each model in one table
        mine = {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}
        name = (name if mine else raw).removeprefix(WRAPPER)
        mine = mine or self.values
        alpha = _of(mine, "alpha_pattern", name, mine.get("lora_alpha", mine.get("alpha")))
        rank = rank or _of(mine, "rank_pattern", name, mine.get("r"))
        if alpha is None or not rank:
            return None
        return float(alpha) / (math.sqrt(rank) if mine.get("use_rslora") else rank)


def _of(settings: Mapping[str, Any], patterns: str, name: str, otherwise: Any) -> Any:
    """Find a layer's own value, by a pattern that peft would match, or the one of all layers."""
    for pattern, value in (settings.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return otherwise


def read_settings(path: Path, metadata: Mapping[str, str]) -> Settings:
    """Read the settings of the LoRA file `path` from its metadata, or else from the file beside it that peft
    writes. ValueError names the file if they are no JSON object.
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None and has_settings(path):
        text = read_text(path.with_name(_CONFIG))
    try:
        values: Any = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(
            f"{path}: the adapter's settings, which hold alpha, are no JSON ({error})"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: the adapter's settings, which hold alpha, are no JSON object")
    return Settings(values)


def has_settings(path: Path) -> bool:
    """Tell whether an `adapter_config.json` in the folder is that of the LoRA file `path`, which need not be
    there yet: it is if the file has peft's own name, or is the only one there.
    """
    others = [other for other in path.parent.glob("*.safetensors") if other.name != path.name]
    return path.with_name(_CONFIG).is_file() and (path.name == "adapter_model.safetensors" or not others)
