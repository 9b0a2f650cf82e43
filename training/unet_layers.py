"""The layers of the UNets of Stable Diffusion by their two names: those of the original code (`ldm`, which
ComfyUI kept) and diffusers'. Both follow from a few numbers of the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

RESNETS = 2  # per level going down; one more going up


class Names(NamedTuple):
    """A layer with weights that a LoRA can adapt."""

    ldm: str
    diffusers: str
    shape: tuple[int, ...]  # of the weight: [out, in], [out, in, height, width], or [channels] of a norm


@dataclass(frozen=True)
class Architecture:
    """What decides a UNet's layers. Depths are numbers of transformer blocks; 0 for none."""

    name: str
    mult: tuple[int, ...]  # channels of each level, in units of `width`
    down: tuple[int, ...]  # depth of each resnet going down, from the finest level to the coarsest
    middle: int | None  # None: a single resnet
    up: tuple[int, ...]  # depth of each resnet going up, from the coarsest level to the finest
    context: int  # width of the text encoding
    linear: bool  # whether proj_in and proj_out are linear
    vector: int = 0  # width of the pooled embedding (SDXL)
    width: int = 320
    channels: int = 4


SD15 = Architecture("SD 1.5", (1, 2, 4, 4), (1,) * 6 + (0,) * 2, 1, (0,) * 3 + (1,) * 9, 768, linear=False)
SD2 = replace(SD15, name="SD 2.x", context=1024, linear=True)
SDXL = Architecture(
    "SDXL", (1, 2, 4), (0, 0, 2, 2, 10, 10), 10, (10, 10, 10, 2, 2, 2, 0, 0, 0), 2048, True, vector=2816
)
SSD1B = Architecture(
    "SSD-1B", (1, 2, 4), (0, 0, 2, 2, 4, 4), None, (4, 4, 10, 2, 1, 1, 0, 0, 0), 2048, True, vector=2816
)
REFINER = Architecture(
    "SDXL refiner",
    (1, 2, 4, 4),
    (0, 0, 4, 4, 4, 4, 0, 0),
    4,
    (0,) * 3 + (4,) * 6 + (0,) * 3,
    1280,
    True,
    vector=2560,
    width=384,
)
ARCHITECTURES = (SD15, SD2, SDXL, SSD1B, REFINER)


@cache
def layers(unet: Architecture) -> tuple[Names, ...]:
    """List every layer with a matrix or convolution, from the input to the output."""
    return tuple(row for row in all_layers(unet) if len(row.shape) > 1)


@cache
def all_layers(unet: Architecture) -> tuple[Names, ...]:
    """List every layer with weights, norms too, from the input to the output."""
    time = 4 * unet.width
    found = [
        Names("time_embed.0", "time_embedding.linear_1", (time, unet.width)),
        Names("time_embed.2", "time_embedding.linear_2", (time, time)),
        Names("input_blocks.0.0", "conv_in", (unet.width, unet.channels, 3, 3)),
    ]
    if unet.vector:
        found += [
            Names("label_emb.0.0", "add_embedding.linear_1", (time, unet.vector)),
            Names("label_emb.0.2", "add_embedding.linear_2", (time, time)),
        ]
    levels = len(unet.mult)
    channels, skips, n = unet.width, [unet.width], 1
    depths = iter(unet.down)
    for level, mult in enumerate(unet.mult):
        here = f"down_blocks.{level}"
        for i in range(RESNETS):
            found += _resnet(f"input_blocks.{n}.0", f"{here}.resnets.{i}", channels, unet.width * mult, time)
            channels = unet.width * mult
            found += _transformer(
                f"input_blocks.{n}.1", f"{here}.attentions.{i}", channels, next(depths), unet
            )
            skips.append(channels)
            n += 1
        if level < levels - 1:
            found.append(
                Names(f"input_blocks.{n}.0.op", f"{here}.downsamplers.0.conv", (channels, channels, 3, 3))
            )
            skips.append(channels)
            n += 1

    found += _resnet("middle_block.0", "mid_block.resnets.0", channels, channels, time)
    if unet.middle is not None:
        found += _transformer("middle_block.1", "mid_block.attentions.0", channels, unet.middle, unet)
        found += _resnet("middle_block.2", "mid_block.resnets.1", channels, channels, time)

    depths, n = iter(unet.up), 0
    for up, mult in enumerate(reversed(unet.mult)):
        here = f"up_blocks.{up}"
        for i in range(RESNETS + 1):
            found += _resnet(
                f"output_blocks.{n}.0",
                f"{here}.resnets.{i}",
                channels + skips.pop(),
                unet.width * mult,
                time,
            )
            channels, depth = unet.width * mult, next(depths)
            found += _transformer(f"output_blocks.{n}.1", f"{here}.attentions.{i}", channels, depth, unet)
            if i == RESNETS and up < levels - 1:
                last = f"output_blocks.{n}.{2 if depth else 1}.conv"
                found.append(Names(last, f"{here}.upsamplers.0.conv", (channels, channels, 3, 3)))
            n += 1
    found.append(Names("out.0", "conv_norm_out", (channels,)))
    found.append(Names("out.2", "conv_out", (unet.channels, channels, 3, 3)))
    return tuple(found)


def _resnet(ldm: str, diffusers: str, inner: int, outer: int, time: int) -> list[Names]:
    found = [
        Names(f"{ldm}.in_layers.0", f"{diffusers}.norm1", (inner,)),
        Names(f"{ldm}.in_layers.2", f"{diffusers}.conv1", (outer, inner, 3, 3)),
        Names(f"{ldm}.emb_layers.1", f"{diffusers}.time_emb_proj", (outer, time)),
        Names(f"{ldm}.out_layers.0", f"{diffusers}.norm2", (outer,)),
        Names(f"{ldm}.out_layers.3", f"{diffusers}.conv2", (outer, outer, 3, 3)),
    ]
    if inner != outer:
        found.append(Names(f"{ldm}.skip_connection", f"{diffusers}.conv_shortcut", (outer, inner, 1, 1)))
    return found


def _transformer(ldm: str, diffusers: str, channels: int, depth: int, unet: Architecture) -> list[Names]:
    if not depth:
        return []
    square = (channels, channels) if unet.linear else (channels, channels, 1, 1)
    inside: dict[str, tuple[int, ...]] = {"norm": (channels,), "proj_in": square}
    for block in (f"transformer_blocks.{i}" for i in range(depth)):
        for attention, context in (("attn1", channels), ("attn2", unet.context)):
            inside |= {
                f"{block}.{attention}.to_q": (channels, channels),
                f"{block}.{attention}.to_k": (channels, context),
                f"{block}.{attention}.to_v": (channels, context),
                f"{block}.{attention}.to_out.0": (channels, channels),
            }
        inside[f"{block}.ff.net.0.proj"] = (8 * channels, channels)
        inside[f"{block}.ff.net.2"] = (channels, 4 * channels)
        inside |= {f"{block}.norm{i}": (channels,) for i in (1, 2, 3)}
    inside["proj_out"] = square
    return [Names(f"{ldm}.{name}", f"{diffusers}.{name}", shape) for name, shape in inside.items()]


_PARTS = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "downsamplers.0.conv",
    "conv": "upsamplers.0.conv",
}
_ATTENTIONS = ("proj_in", "proj_out", "transformer_blocks.")
_PLACE = re.compile(r"^(?:(input_blocks|output_blocks)\.(\d+)\.\d+|(middle_block)\.(\d+))\.(.+)$")


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Diffusers' names for the layers inside the blocks of an ldm UNet of any depth and width; others, and
    those of any other network, stay as they are.

    `names` are all the layers of the network: where a level ends shows in its other layers.
    """
    known = list(names)
    at = {name: (m[1] or m[3], int(m[2] or m[4]), m[5]) for name in known if (m := _PLACE.match(name))}
    place: dict[tuple[str, int], tuple[int, int]] = {}  # of a numbered block: its level, its number in it
    for part, first, end in (("input_blocks", 1, "op"), ("output_blocks", 0, "conv")):
        inside = {n for where, n, _ in at.values() if where == part}
        closing = {n for where, n, inner in at.values() if where == part and inner == end}
        level = i = 0
        for n in range(first, max(inside, default=-1) + 1):
            place[part, n] = level, i
            level, i = (level + 1, 0) if n in closing else (level, i + 1)
    return {name: (name in at and _renamed(*at[name], place)) or name for name in known}


def _renamed(part: str, number: int, inner: str, place: dict[tuple[str, int], tuple[int, int]]) -> str:
    """One layer's name, or "" where diffusers has no place for it."""
    if part == "middle_block":
        here, i, attention = "mid_block", number // 2, 0
    elif (part, number) in place:
        level, i = place[part, number]
        here, attention = f"{'down' if part == 'input_blocks' else 'up'}_blocks.{level}", i
    else:
        return ""  # the first convolution, which has no level
    if inner in ("op", "conv"):
        return f"{here}.{_PARTS[inner]}"
    if inner in _PARTS:
        return f"{here}.resnets.{i}.{_PARTS[inner]}"
    return f"{here}.attentions.{attention}.{inner}" if inner.startswith(_ATTENTIONS) else ""
