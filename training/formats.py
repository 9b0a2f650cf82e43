"""LoRA files of every common key format: what they hold, and the same LoRA in another format.

Only safetensors are read: a pickle runs code.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import load_tensors
from .lora_bases import base_names
from .lora_content import check_content, what_tensors
from .lora_keys import (
    EMBEDDING,
    FORMATS,
    WEIGHTS,
    Format,
    key,
    naming,
    resolve,
    split,
    style,
    table,
    te_prefix,
)
from .splus import PREFIX as TARGET_EMBEDDING
from .text import read_text
from .unet_layers import ARCHITECTURES, SD2, Architecture

__all__ = ["FORMATS", "Layer", "LoraFile", "convert", "open_lora"]

# Metadata about bytes that a conversion changes, and about the alpha that it puts elsewhere.
_STALE = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_PLAIN = {"down", "up", "alpha"}
_MODELS = {"unet": "unet.", "te1": "text_encoder.", "te2": "text_encoder_2."}


@dataclass(frozen=True)
class Layer:
    """One layer's adapter."""

    part: str  # unet, te1, te2
    name: str  # canonical if `known`, else as the file has it
    known: bool
    style: str  # key of FORMATS
    raw: str  # the layer's key in the file, without the suffixes
    tensors: Mapping[str, Tensor]  # by role: down, up, alpha, or what else the file has
    alpha: float | None  # None: the file has none, so the scale is 1

    @property
    def plain(self) -> bool:
        """An ordinary LoRA: two factors and a scale."""
        return "down" in self.tensors and set(self.tensors) <= _PLAIN

    @property
    def rank(self) -> int | None:
        down = self.tensors.get("down")
        return None if down is None else down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and columns of the weight it is for, as a matrix; None where only the host can tell."""
        down, up, mid = (self.tensors.get(role) for role in ("down", "up", "mid"))
        if down is None or up is None or "reshape_weight" in self.tensors:
            return None
        return up.shape[0], down[0].numel() * (1 if mid is None else mid[0, 0].numel())

    def delta(self) -> Tensor:
        """What a plain layer adds to the weight at strength 1, as a matrix in float32."""
        up, down = self.tensors["up"].float().flatten(1), self.tensors["down"].float().flatten(1)
        return self.scale * (up @ down)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, read and understood."""

    path: Path
    metadata: Mapping[str, str]
    layers: tuple[Layer, ...]
    extra: Mapping[str, Tensor]  # tensors that belong to no layer

    @property
    def unet(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == "unet"]

    @property
    def text_encoders(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.part != "unet"]

    @property
    def keys(self) -> int:
        """Number of tensors in the file."""
        return sum(len(layer.tensors) for layer in self.layers) + len(self.extra)

    @property
    def needs_target(self) -> bool:
        """A TCF(S+) student: the network must also be told the time s."""
        return any(k.startswith(TARGET_EMBEDDING) for k in self.extra)

    @property
    def formats(self) -> list[str]:
        """Key formats in the file, the most frequent first; of the UNet, which alone has two namings."""
        return [name for name, _ in Counter(layer.style for layer in self.unet or self.layers).most_common()]

    @cached_property
    def bases(self) -> list[str]:
        """The models it may be for, by names and shapes and what the metadata says; [] if unknown."""
        return base_names(self.unet, self.metadata)

    @property
    def architecture(self) -> Architecture | None:
        """Of the UNet it fits; where it fits more than one, they share their names."""
        return next((a for a in ARCHITECTURES if a.name in self.bases), None)


def open_lora(path: Path) -> LoraFile:
    """Read a LoRA file. ValueError names the file, and says what it is if it is no whole LoRA."""
    path = Path(path)
    check_content(path)
    tensors, metadata = load_tensors(path)
    alphas = _alphas_beside(path, metadata)
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    seen: dict[tuple[str, str], dict[str, str]] = {}  # the key of each role
    extra: dict[str, Tensor] = {}
    for text, tensor in tensors.items():
        parsed = split(text)
        if parsed is None:
            extra[text] = tensor
            continue
        raw, role = parsed
        place = resolve(raw)[:2]
        parts, keys = found.setdefault(place, {}), seen.setdefault(place, {})
        if role in parts:
            raise ValueError(
                f"{path}: layer {place[1]} is in it twice, as {keys[role]!r} and {text!r}; drop one"
            )
        parts[role], keys[role] = tensor, text
    if not any(WEIGHTS.search(role) for parts in found.values() for role in parts):
        raise ValueError(f"{path}: no LoRA keys in it; {what_tensors(tensors)}")
    made: list[Layer] = []
    for (part, name), parts in found.items():
        _check_layer(path, name, parts)
        text = next(seen[part, name][role] for role in sorted(parts, key=lambda role: role == "alpha"))
        raw = (split(text) or (text, ""))[0]
        _, _, known, prefix = resolve(raw)
        alpha = float(parts["alpha"]) if "alpha" in parts else None
        if alpha is None and "down" in parts:
            alpha = alphas(part, name, parts["down"].shape[0])
        made.append(Layer(part, name, known, style(prefix, text, name), raw, parts, alpha))
    return LoraFile(path, metadata, tuple(made), extra)


def _check_layer(path: Path, name: str, parts: Mapping[str, Tensor]) -> None:
    down, up, alpha = parts.get("down"), parts.get("up"), parts.get("alpha")
    if (down is None) != (up is None):
        there, missing = ("up", "down") if down is None else ("down", "up")
        raise ValueError(
            f"{path}: layer {name} has a lora_{there} without its lora_{missing}; the file is damaged"
        )
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"{path}: layer {name} has an alpha of {alpha.numel()} numbers; the file is damaged")
    if down is None or up is None:
        return
    if min(down.ndim, up.ndim) < 2 or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise ValueError(
            f"{path}: layer {name} has factors that do not fit, {list(up.shape)} and {list(down.shape)}; "
            "the file is damaged"
        )


def _alphas_beside(path: Path, metadata: Mapping[str, str]) -> Callable[[str, str, int], float | None]:
    """Alpha of (part, name, rank) where diffusers and peft keep it: in the metadata, or in
    `adapter_config.json` beside peft's `adapter_model.safetensors`.
    """
    beside = path.with_name("adapter_config.json")
    text = metadata.get("lora_adapter_metadata")
    if text is None and path.name == "adapter_model.safetensors" and beside.is_file():
        text = read_text(beside)
    try:
        configs: Any = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(
            f"{path}: the adapter's settings, which hold alpha, are no JSON ({error})"
        ) from error
    if not isinstance(configs, dict):
        raise ValueError(f"{path}: the adapter's settings, which hold alpha, are no JSON object")

    def alpha(part: str, name: str, rank: int) -> float | None:
        model = _MODELS[part]
        mine = {k.removeprefix(model): v for k, v in configs.items() if k.startswith(model)} or configs
        value = mine.get("lora_alpha")
        for pattern, special in (mine.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):  # as peft matches
                value = special
                break
        if value is None:
            return None
        return float(value) * (math.sqrt(rank) if mine.get("use_rslora") else 1.0)

    return alpha


def convert(file: LoraFile, to: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of `file` in the format `to`, a key of FORMATS: the same change of the weights.

    Where the format has no keys for alpha, the scale goes into the up-factors; they become float32 if their
    own type cannot hold the product. ValueError where a layer has no name or no place in the format.
    """
    if to not in FORMATS:
        raise ValueError(f"format {to!r} is unknown; choose one of {', '.join(FORMATS)}")
    fmt, unet = FORMATS[to], file.architecture
    if to == "peft" and file.unet and file.text_encoders:
        raise ValueError(
            f"{file.path}: a peft file is for one model, and this LoRA is for the UNet and text encoders; "
            "choose diffusers"
        )
    lost = [text for text in file.extra if "lora" in text.lower() and not text.startswith(EMBEDDING)]
    if lost:
        raise ValueError(f"{file.path}: {lost[0]!r} has no known counterpart in {to}")
    out: dict[str, Tensor] = dict(file.extra)
    for layer in file.layers:
        if not layer.plain and not fmt.alpha:
            odd = ", ".join(sorted(set(layer.tensors) - _PLAIN))
            raise ValueError(f"{file.path}: {to} has no keys for {odd} (layer {layer.name}); choose kohya")
        base = _base(file, layer, fmt, unet)
        for role, tensor in layer.tensors.items():
            if role == "up" and not fmt.alpha:
                tensor = _folded(tensor, layer.scale)
            if role != "alpha":
                out[key(base, role, fmt)] = tensor.contiguous()
        alpha = layer.alpha if layer.alpha is not None else layer.rank
        if fmt.alpha and alpha is not None:
            out[f"{base}.alpha"] = layer.tensors.get("alpha", torch.tensor(float(alpha)))
    metadata = {name: value for name, value in file.metadata.items() if name not in _STALE}
    ranks = {layer.rank for layer in file.layers if layer.rank}
    if not fmt.alpha and "ss_network_alpha" in metadata and len(ranks) == 1:
        metadata["ss_network_alpha"] = str(float(ranks.pop()))
    return out, metadata


def _base(file: LoraFile, layer: Layer, fmt: Format, unet: Architecture | None) -> str:
    """The key of `layer` without a suffix."""
    if not layer.known:
        raise ValueError(
            f"{file.path}: {layer.name!r} is no layer of a UNet or text encoder that is known, so its name "
            "in other formats is unknown"
        )
    if layer.part == "unet":
        prefix, name = fmt.unet, layer.name
        if fmt.naming != naming(name):
            if unet is None:
                raise ValueError(
                    f"{file.path}: it fits no UNet that is known, so {fmt.naming} names cannot be given to "
                    f"layers such as {name}; choose a format with {naming(name)} names"
                )
            row = table(unet)[name]
            name = row.ldm if fmt.naming == "ldm" else row.diffusers
    else:
        second = any(x.part == "te2" for x in file.layers) or (unet is not None and unet.vector > 0)
        prefix = te_prefix(fmt, layer.part == "te2", not second, file.bases == [SD2.name])
        name = layer.name
    return prefix + (name.replace(".", "_") if fmt.flat else name)


def _folded(up: Tensor, scale: float) -> Tensor:
    """`scale * up` in the type of `up` if that is exact, else in float32."""
    if scale == 1.0:
        return up
    wide = up.float() * scale
    narrow = wide.to(up.dtype)
    return narrow if torch.equal(narrow.float(), wide) else wide
