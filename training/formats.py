"""LoRA files of every common key format: what they hold, and the same LoRA in another format.

Only safetensors are read: a pickle runs code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
from .lora_layer import PLAIN, Layer, by_output, rank_of, whole_kronecker
from .lora_settings import Settings, read_settings
from .splus import PREFIX as TARGET_EMBEDDING
from .unet_layers import ARCHITECTURES, SD2, Architecture

__all__ = ["FORMATS", "Layer", "LoraFile", "convert", "open_lora"]

# Metadata about bytes that a conversion changes, and about the alpha that it puts elsewhere.
_STALE = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file, read and understood."""

    path: Path
    metadata: Mapping[str, str]
    layers: tuple[Layer, ...]
    extra: Mapping[str, Tensor]  # tensors that belong to no layer
    tensors: Mapping[str, Tensor]  # all, under the file's own keys

    @property
    def unet(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == "unet"]

    @property
    def text_encoders(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.part != "unet"]

    @property
    def keys(self) -> int:
        """Number of tensors in the file."""
        return len(self.tensors)

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
    found: dict[tuple[str, str], dict[str, str]] = {}  # the key of each role
    extra: dict[str, Tensor] = {}
    for text, tensor in tensors.items():
        parsed = split(text)
        if parsed is None:
            extra[text] = tensor
            continue
        raw, role = parsed
        place = resolve(raw)[:2]
        keys = found.setdefault(place, {})
        if role in keys:
            raise ValueError(
                f"{path}: layer {place[1]} is in it twice, as {keys[role]!r} and {text!r}; drop one"
            )
        keys[role] = text
    if not any(WEIGHTS.search(role) for keys in found.values() for role in keys):
        raise ValueError(f"{path}: no LoRA keys in it; {what_tensors(tensors)}")
    settings = read_settings(path, metadata)
    layers = tuple(_layer(path, place, keys, tensors, settings) for place, keys in found.items())
    return LoraFile(path, metadata, layers, extra, tensors)


def _layer(
    path: Path,
    place: tuple[str, str],
    keys: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    settings: Settings,
) -> Layer:
    """Make a layer of the file's `keys`, by role: what peft alone writes becomes what LyCORIS would write."""
    part, name = place
    parts = {role: tensors[text] for role, text in keys.items()}
    for role in _TURNED.keys() & parts.keys():
        parts[_TURNED[role]] = parts.pop(role).T
    if "singular" in parts and "down" in parts:  # AdaLoRA: B (A * E)
        parts["down"] = parts["down"] * parts.pop("singular")
    _check_layer(path, name, parts)
    text = keys[min(keys, key=lambda role: (role == "alpha", role not in ("down", "up")))]
    raw = (split(text) or (text, ""))[0]
    _, _, known, prefix = resolve(raw)
    rank = rank_of(parts)
    alpha = float(parts["alpha"]) if "alpha" in parts else None
    scale = None if alpha is None or not rank else alpha / rank
    if alpha is None and (scale := settings.scale(raw, rank)) is not None and rank:
        alpha = scale * rank
    if any(role.startswith("lokr") for role in parts):
        parts = whole_kronecker(parts, scale)
    if "magnitude" in parts:
        ndim = parts["down"].ndim if "down" in parts else 2
        parts["dora_scale"] = parts.pop("magnitude").reshape(-1, *[1] * (ndim - 1))
    if "up_bias" in parts:
        parts["diff_b"] = _folded(parts.pop("up_bias"), scale or 1.0)
    said = scale is not None or alpha is not None
    return Layer(part, name, known, style(prefix, text, name), raw, parts, alpha, tuple(keys.values()), said)


# peft's factors of an embedding are those of its transposed weight.
_TURNED = {"embedding_A": "up", "embedding_B": "down"}


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
        if odd := _without_keys(layer, to):
            odd = ", ".join(sorted(odd))
            raise ValueError(f"{file.path}: {to} has no keys for {odd} (layer {layer.name}); choose kohya")
        base = _base(file, layer, fmt, unet)
        for role, tensor in layer.tensors.items():
            if role == "up" and not fmt.alpha:
                tensor = _folded(tensor, layer.scale)
            if role == "dora_scale" and not fmt.alpha:
                tensor = _magnitude(tensor)
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


def _without_keys(layer: Layer, to: str) -> set[str]:
    """Name the roles of `layer` that the format `to` has no keys for; peft's DoRA is by output channels."""
    if FORMATS[to].alpha:
        return set()
    dora = layer.tensors.get("dora_scale")
    named = dora is not None and by_output(dora) and to != "diffusers-old"
    return set(layer.tensors) - PLAIN - ({"dora_scale"} if named else set())


def _magnitude(dora_scale: Tensor) -> Tensor:
    """Turn LyCORIS' `[out, 1, ...]` into peft's `[out]`, for a convolution `[1, out, 1, 1]`."""
    return dora_scale.flatten() if dora_scale.ndim < 3 else dora_scale.transpose(0, 1)


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
