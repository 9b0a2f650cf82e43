"""Which base model a LoRA is for: by the names and shapes of its layers, and by what its file says of itself.

UNets of Stable Diffusion follow from a few numbers (`unet_layers`). For the other models, base_models.json
holds the layers of each, by both of their names: `tests/comfyui/make_base_models.py` writes it from ComfyUI's
and diffusers' own classes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .lora_keys import table
from .unet_layers import ARCHITECTURES, SDXL, SSD1B, Architecture

if TYPE_CHECKING:
    from .lora_layer import Layer

MANY = 4
"""More candidates than this say nothing: the answer is "unknown"."""
ENOUGH = 0.8
"""Share of a file's layers that a model must have; only its trainer may know the rest."""

_PREFIX = re.compile(
    r"^(?:base_model\.model\.)?(?:lora_(?:prior_)?unet_+|lycoris_|lora_transformer_|model\.diffusion_model\.|"
    r"diffusion_model\.|transformer\.|unet\.|(?:pipe\.)?dit\.)?(?:base_model\.model\.)?"
)
_NUMBER = re.compile(r"(?:(?<=_)|(?<=_block)|^)\d+(?=_)")
_COARSE = re.compile(r"^(?:down_blocks\.2|input_blocks\.[78])\..*transformer_blocks\.(\d+)\.")
_MOTION = re.compile(r"motion_modules|temporal_transformer")


class Kind(NamedTuple):
    """The layers of one base model."""

    family: str
    layers: Mapping[str, tuple[int, frozenset[tuple[int, int]]]]
    """By `pattern`: how many blocks have such a layer, and the shapes of its weights as matrices."""


# What file metadata calls a model, in lower case with single hyphens, and its family or one kind of it. From
# the specification of modelspec.architecture, and what kohya's sd-scripts and musubi-tuner, ai-toolkit,
# diffusers and ComfyUI (the class in tcd.teacher) write. The first row that fits counts.
_SAID = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^sdxl-?refiner", "SDXL refiner"),
        (r"^(stable-diffusion-xl|sdxl|stablediffusionxl)", "SDXL"),
        (r"^ssd-?1b", "SSD-1B"),
        (r"^(stable-diffusion-v?1|sd-?v?-?1)", "SD 1.5"),
        (r"^(stable-diffusion-v?2|sd-?v?-?2)", "SD 2.x"),
        (r"^(stable-diffusion-3-5-large|sd-?3-5-large)", "SD3.5 large"),
        (r"^(stable-diffusion-3-5-medium|sd-?3-5-medium)", "SD3.5 medium"),
        (r"^(stable-diffusion-?3|sd-?3)", "SD3"),
        (r"^flux-?2-?klein-?(base-?)?4b", "Flux.2 Klein 4B"),
        (r"^flux-?2-?klein-?(base-?)?9b", "Flux.2 Klein 9B"),
        (r"^flux-?2-?dev", "Flux.2 dev"),
        (r"^flux-?2", "Flux.2"),
        (r"^flux-?3", ""),
        (r"^flux", "Flux"),
        (r"^(chroma-?radiance)", "Chroma Radiance"),
        (r"^chroma", "Chroma"),
        (r"^qwen-?image", "Qwen-Image"),
        (r"^z-?image", "Z-Image"),
        (r"^lumina", "Lumina2"),
        (r"^hunyuan-?image", "HunyuanImage 2.1"),
        (r"^hunyuan-?video-?(1-5|15)", "HunyuanVideo 1.5"),
        (r"^(hunyuan-?video|framepack)", "HunyuanVideo"),
        (r"^(hunyuan-?dit|hydit)", "HunyuanDiT"),
        (r"^wan", "Wan"),
        (r"^(ltx-?2|ltxav|ltx-?video-?2)", "LTX-2"),
        (r"^ltx", "LTX-Video"),
        (r"^hidream-?o1", "HiDream-O1"),
        (r"^hidream", "HiDream"),
        (r"^anima(?!te)", "Anima"),
        (r"^cosmos.*predict-?2", "Cosmos Predict2"),
        (r"^krea-?2", "Krea 2"),
        (r"^kandinsky-?5", "Kandinsky 5"),
        (r"^pixart", "PixArt"),
        (r"^aura-?flow", "AuraFlow"),
        (r"^omnigen-?2", "Omnigen2"),
        (r"^long-?cat-?image", "LongCat-Image"),
        (r"^ovis", "Ovis-Image"),
        (r"^ernie-?image", "Ernie-Image"),
        (r"^boogu", "Boogu-Image"),
        (r"^ideogram-?4", "Ideogram 4"),
        (r"^joy-?image", "JoyImage"),
        (r"^mage-?flow", "Mage-Flow"),
        (r"^lens", "Lens"),
        (r"^stable-?cascade", "Stable Cascade"),
        (r"^(genmo)?-?mochi", "Mochi"),
        (r"^cogvideo", "CogVideoX"),
    )
)
_SAYS = ("tcd.teacher", "modelspec.architecture", "ss_base_model_version")


def said(metadata: Mapping[str, str]) -> str:
    """The base model that the metadata names, as a family or a kind of `base_models`; "" if none is known."""
    return next((name for key in _SAYS if (name := named(metadata.get(key, "")))), "")


def named(text: str) -> str:
    """The base model that others call `text`, as ComfyUI's class "WAN21_T2V" is "Wan"; "" if unknown."""
    text = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return next((name for pattern, name in _SAID if pattern.search(text)), "")


def family(name: str) -> str:
    """The family of a kind, as "Wan" of "Wan 2.2 5B"; a family's own name, and any other, is itself."""
    name = name.removeprefix("a variant of ")
    if name in (SSD1B.name, "SDXL refiner"):
        return SDXL.name
    kind = base_models().get(name)
    return kind.family if kind else name


def base_names(unet: Sequence[Layer], metadata: Mapping[str, str]) -> list[str]:
    """The models that a LoRA may be for, given its layers outside of text encoders; [] if unknown.

    The metadata chooses between models that the layers cannot tell apart, and never against the layers: a
    file that was merged or renamed keeps the metadata of another.
    """
    names, told = _by_layers(unet), said(metadata)
    if told and names:
        chosen = [n for n in names if n == told] or [n for n in names if family(n) == family(told)]
        return chosen or names
    return [told] if told and not names and not unet else names


def whole_model(shapes: Mapping[str, Sequence[int]]) -> str:
    """The base model whose own weights these are, by their keys and shapes; "" if none of `base_models`."""
    weights = {key.removesuffix(".weight"): s for key, s in shapes.items() if key.endswith(".weight")}
    return " or ".join(_named([(key, (s[0], math.prod(s[1:]))) for key, s in weights.items() if len(s) > 1]))


def contradiction(names: Sequence[str], metadata: Mapping[str, str]) -> str:
    """The model that the metadata names although the layers are of others, `names`; else ""."""
    told = said(metadata)
    return told if told and names and family(told) not in {family(n) for n in names} else ""


def _by_layers(unet: Sequence[Layer]) -> list[str]:
    known = [layer for layer in unet if layer.known]
    if 2 * len(known) >= len(unet):
        return _unets(known)
    if any(_MOTION.search(layer.raw) for layer in unet):
        return ["AnimateDiff motion module"]
    return _others(unet)


def _unets(known: Sequence[Layer]) -> list[str]:
    """The UNets of Stable Diffusion that have all these layers, or one that resembles them."""
    fitting = [a.name for a in ARCHITECTURES if known and all(_in_unet(layer, a) for layer in known)]
    if SDXL.name in fitting and SSD1B.name in fitting:
        # SSD-1B is a part of SDXL, and few LoRAs of SDXL go just as deep.
        depths = {int(m[1]) for x in known if (m := _COARSE.search(x.name))}
        fitting.remove(SDXL.name if max(depths, default=0) == 3 else SSD1B.name)
    if fitting:
        return fitting
    widths = {x.shape[1] for x in known if x.shape and re.search(r"attn2\.to_[kv]$", x.name)}
    return next(([f"a variant of {a.name}"] for a in ARCHITECTURES if widths == {a.context}), [])


def _in_unet(layer: Layer, unet: Architecture) -> bool:
    row = table(unet).get(layer.name)
    if row is None:
        return False
    return layer.shape is None or layer.shape == (row.shape[0], math.prod(row.shape[1:]))


def _others(unet: Sequence[Layer]) -> list[str]:
    """The models of base_models.json that have these layers.

    Layers whose shape is unknown, such as differences of norms, count only where there are no others.
    """
    found = [(layer.raw, layer.shape) for layer in unet if layer.shape]
    return _named(found or [(layer.raw, None) for layer in unet])


def _named(layers: Sequence[tuple[str, tuple[int, int] | None]]) -> list[str]:
    """The models that have the most of these layers, as (key, shape), and nearly all of them.

    Between models that have the same layers but for the number of their blocks, those count whose last block
    is among them: few LoRAs leave the last blocks out.
    """
    found = [(*pattern(key), shape) for key, shape in layers]
    deepest: dict[str, int] = {}
    for name, at, _ in found:
        deepest[name] = max(at, deepest.get(name, 0))
    counts = {name: _count(kind, found) for name, kind in base_models().items()}
    most = max(counts.values())
    if not found or most < ENOUGH * len(found):
        return []
    best = [name for name, n in counts.items() if n == most]
    names = _together([n for n in best if _whole(base_models()[n], deepest)] or best)
    return names if len(names) <= MANY else []


def _count(kind: Kind, found: Sequence[tuple[str, int, tuple[int, int] | None]]) -> int:
    """How many layers, as (`pattern`, number of the block, shape), the model has."""
    rows = [(kind.layers.get(name), at, shape) for name, at, shape in found]
    return sum(row is not None and at < row[0] and (not shape or shape in row[1]) for row, at, shape in rows)


def _whole(kind: Kind, deepest: Mapping[str, int]) -> bool:
    """Whether the file's layers go down to the last block, each kind of layer of its own blocks."""
    return all(kind.layers[name][0] == at + 1 for name, at in deepest.items() if name in kind.layers)


def _together(names: Sequence[str]) -> list[str]:
    """Kinds by their names, or by their family where several of it are left."""
    families = [family(n) for n in names]
    return list(
        dict.fromkeys(n if families.count(f) == 1 else f for n, f in zip(names, families, strict=True))
    )


def pattern(key: str) -> tuple[str, int]:
    """(name with underscores for dots and # for numbers of blocks, first of these numbers) of a layer's key.

    The key is without the suffixes of its tensors; the number is 0 where the layer is in no numbered block.
    """
    name = _PREFIX.sub("", key, count=1).replace(".", "_")
    number = _NUMBER.search(name)
    return _NUMBER.sub("#", name), int(number[0]) if number else 0


@cache
def base_models() -> dict[str, Kind]:
    """By name; without the UNets of `unet_layers`."""
    rows = json.loads(Path(__file__).with_name("base_models.json").read_text("utf-8"))
    return {
        name: Kind(
            row["family"],
            {
                key: (blocks, frozenset((o, i) for o, i in shapes))
                for key, (blocks, *shapes) in row["layers"].items()
            },
        )
        for name, row in rows.items()
    }
