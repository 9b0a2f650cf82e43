"""Pixel-art avatars with word prompts: the data set behind the embedded model.

A picture is nine *slots* that a prompt can name (mood, skin, hair length, ...) and everything else, which
stays free: which of 21 long hair cuts, which eyes, which shade of brown. `p(image | prompt)` is therefore a
true distribution,
and not a look-up.
The drawings are DiceBear's "Pixel Art" (CC0 1.0), kept in `data/components.json` as bitmaps; the words, their
probabilities and the backgrounds are ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SIZE = 16  # pixels a side
COMPONENTS = Path(__file__).parent / "data" / "components.json"

Labels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]

UNSPECIFIED = 0  # value of a slot that the prompt does not mention


@dataclass(frozen=True)
class Slot:
    """One thing that a prompt can say. `phrases[i]` is the wording of value `i + 1`; value 0 is
    "unspecified".

    `shades` are the colours a value stands for (one of them is drawn); `odds` are the values' probabilities
    in the data.
    """

    name: str
    phrases: tuple[str, ...]
    odds: tuple[float, ...]
    shades: tuple[tuple[str, ...], ...] = ()


def _even(n: int) -> tuple[float, ...]:
    return (1.0 / n,) * n


_HAIR = {
    "blond": ("cab188", "a78961"),
    "brown": ("603a14", "83623b", "603015"),
    "auburn": ("611c17", "612616"),
    "black": ("28150a",),
    "blue": ("009bbd",),
    "red": ("bd1700",),
    "green": ("91cb15",),
}
_TOP = {
    "blue": ("5bc0de", "428bca", "03396c"),
    "green": ("88d8b0", "44c585", "00b159"),
    "red": ("ff6f69", "d11141", "ae0001"),
    "yellow": ("ffeead", "ffd969", "ffc425"),
}
_SKIN = {
    "pale": ("ffdbac", "f5cfa0"),
    "fair": ("eac393", "e0b687"),
    "tan": ("cb9e6e", "b68655"),
    "dark": ("a26d3d", "8d5524"),
}
_HAT = {
    "brown": ("2e1e05",),
    "blue": ("2663a3",),
    "grey": ("989789",),
    "green": ("3d8a6b",),
    "pink": ("cc6192",),
    "purple": ("614f8a",),
    "red": ("a62116",),
}
_BACKGROUND = {
    "white": ("f4f4f0",),
    "sky": ("b9e3f9",),
    "night": ("1f2547",),
    "rose": ("f6c6d0",),
    "mint": ("c6ecd6",),
    "sand": ("f0dfb6",),
    "lilac": ("d9cdf2",),
    "grey": ("b5b8bd",),
}

SLOTS: tuple[Slot, ...] = (
    Slot("mood", ("happy person", "sad person"), (0.5, 0.5)),
    Slot("skin", tuple(f"{k} skin" for k in _SKIN), _even(4), tuple(_SKIN.values())),
    Slot("length", ("short hair", "long hair"), (0.5, 0.5)),
    Slot("hair", tuple(f"{k} hair" for k in _HAIR), _even(7), tuple(_HAIR.values())),
    Slot("top", tuple(f"{k} top" for k in _TOP), _even(4), tuple(_TOP.values())),
    Slot("glasses", ("no glasses", "glasses", "sunglasses"), (0.7, 0.15, 0.15)),
    Slot("beard", ("no beard", "beard"), (0.85, 0.15)),
    # "hat" alone means a hat of any colour; the data names the colour, and training renames some of them to
    # "hat".
    Slot(
        "hat",
        ("no hat", *(f"{k} hat" for k in _HAT), "hat"),
        (0.85, *((0.15 / 7,) * 7), 0.0),
        ((), *_HAT.values()),
    ),
    Slot("background", tuple(f"{k} background" for k in _BACKGROUND), _even(8), tuple(_BACKGROUND.values())),
)
SLOT = {slot.name: i for i, slot in enumerate(SLOTS)}
ANY_HAT = len(SLOTS[SLOT["hat"]].phrases)

# colours that no prompt names
_FREE = {
    "eyes": ("76778b", "697b94", "647b90", "5b7c8b", "588387", "876658"),
    "glasses": ("4b4b4b", "323232", "191919", "43677d", "5f705c", "a04b5d"),
    "mouth": ("d29985", "c98276", "e35d6a", "de0f0d"),
    "accessories": ("daa520", "ffd700", "fafad2", "d3d3d3", "a9a9a9"),
}
_EARRING_ODDS = 0.1


def draw_labels(count: int, rng: np.random.Generator) -> Labels:
    """Draw full prompts: `[count, 9]` slot values, none unspecified, in the proportions of the data."""
    columns = [1 + rng.choice(len(slot.odds), size=count, p=slot.odds) for slot in SLOTS]
    return np.stack(columns, axis=1).astype(np.int64)


def forget(labels: Labels, rng: np.random.Generator, *, none: float = 0.12, some: float = 0.25) -> Labels:
    """Leave slots unspecified, as short prompts do: all of them (share `none`, for guidance), or each with
    odds 1/2 (share `some`).
    """
    labels = labels.copy()
    hats = labels[:, SLOT["hat"]]
    hats[(hats > 1) & (rng.random(len(labels)) < 0.2)] = ANY_HAT
    fate = rng.random(len(labels))
    labels[fate < none] = UNSPECIFIED
    partial = (fate >= none) & (fate < none + some)
    labels[partial[:, None] & (rng.random(labels.shape) < 0.5)] = UNSPECIFIED
    return labels


def draw_images(labels: Labels, rng: np.random.Generator) -> Images:
    """Draw one picture for each full prompt. `labels [B, 9]`, all specified; returns uint8 `[B, 16, 16, 3]`
    RGB.
    """
    return draw_details(labels, rng)[0]


def draw_details(labels: Labels, rng: np.random.Generator) -> tuple[Images, dict[str, npt.NDArray[np.int64]]]:
    """As `draw_images`, and which drawing of each kind was used: what no prompt says. -1 is none."""
    labels = np.asarray(labels)
    if (labels == UNSPECIFIED).any() or (labels[:, SLOT["hat"]] == ANY_HAT).any():
        raise ValueError("draw_images needs full prompts; fill unspecified slots with `complete` first")
    colours = {name: _pick_colours(rng, [shades] * len(labels)) for name, shades in _FREE.items()}
    for group in ("skin", "hair", "top", "hat", "background"):
        slot = SLOTS[SLOT[group]]
        colours[group] = _pick_colours(
            rng, [slot.shades[v - 1] or ("000000",) for v in labels[:, SLOT[group]]]
        )
    colours["clothing"] = colours.pop("top")

    canvas = np.repeat(colours["background"][:, None, None, :], SIZE, 1).repeat(SIZE, 2)
    variants = _variants(labels, rng)
    for group, pick in variants.items():
        table = _group(group)
        for layer in range(table.masks.shape[1]):
            own = table.own_colour[pick, layer][:, None]
            fill = np.where(own, colours[table.colour], table.fixed[pick, layer])
            cover = (table.masks[pick, layer] * table.opacity[pick, layer, None, None])[..., None]
            canvas = canvas * (1 - cover) + fill[:, None, None, :] * cover
    return np.rint(canvas).astype(np.uint8), variants


def drawings(group: str) -> int:
    """How many drawings there are of a kind."""
    return len(_group(group).names)


def complete(labels: Labels, rng: np.random.Generator) -> Labels:
    """Fill the unspecified slots (and the colour of "hat") from the data's proportions."""
    full = draw_labels(len(labels), rng)
    known = labels != UNSPECIFIED
    hat = SLOT["hat"]
    coloured = rng.integers(2, ANY_HAT, size=len(labels))
    filled = np.where(known, labels, full)
    filled[:, hat] = np.where(labels[:, hat] == ANY_HAT, coloured, filled[:, hat])
    return filled


@dataclass(frozen=True)
class _Group:
    """Layers of one kind of drawing, padded: `masks [V, L, 16, 16]`, `opacity [V, L]`, `fixed [V, L, 3]`,
    `own_colour [V, L]`.
    """

    names: tuple[str, ...]
    colour: str
    masks: npt.NDArray[np.float32]
    opacity: npt.NDArray[np.float32]
    fixed: npt.NDArray[np.float32]
    own_colour: npt.NDArray[np.bool_]


@cache
def _components() -> dict[str, dict[str, list[tuple[str, float, str]]]]:
    groups: dict[str, dict[str, list[tuple[str, float, str]]]] = json.loads(COMPONENTS.read_text("utf-8"))[
        "groups"
    ]
    return groups


@cache
def _group(name: str) -> _Group:
    variants = _components()[name]
    depth = max(len(layers) for layers in variants.values())
    rows = len(variants) + 1  # the last row stays empty: "absent"
    masks = np.zeros((rows, depth, SIZE, SIZE), np.float32)
    opacity = np.zeros((rows, depth), np.float32)
    fixed = np.zeros((rows, depth, 3), np.float32)
    own = np.zeros((rows, depth), np.bool_)
    colour = name
    for v, layers in enumerate(variants.values()):
        for i, (fill, alpha, coverage) in enumerate(layers):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(coverage), np.uint8))
            masks[v, i] = bits.reshape(SIZE, SIZE)
            opacity[v, i] = alpha
            if fill.startswith("@"):
                own[v, i], colour = True, fill[1:]
            else:
                fixed[v, i] = _rgb(fill[1:])
    return _Group(tuple(variants), colour, masks, opacity, fixed, own)


def _variants(labels: Labels, rng: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    """Which drawing of each kind, bottom layer first; -1 is the empty row of `_group`: there is none."""
    count = len(labels)

    def among(group: str, prefixes: list[str]) -> npt.NDArray[np.int64]:
        names = _group(group).names
        pools = {p: [i for i, n in enumerate(names) if n.startswith(p)] for p in set(prefixes)}
        u = rng.random(len(prefixes))
        return np.array(
            [pools[p][int(x * len(pools[p]))] for p, x in zip(prefixes, u, strict=True)], np.int64
        )

    def said(slot: str, *prefixes: str) -> list[str]:
        return [prefixes[v - 1] for v in labels[:, SLOT[slot]]]

    kinds = {
        "body": among("body", [""] * count),
        "accessories": among("accessories", [""] * count),
        "clothing": among("clothing", [""] * count),
        "eyes": among("eyes", [""] * count),
        "glasses": among("glasses", said("glasses", "light", "light", "dark")),
        "beard": among("beard", [""] * count),
        "mouth": among("mouth", said("mood", "happy", "sad")),
        "hair": among("hair", said("length", "short", "long")),
        "hat": among("hat", [""] * count),
    }
    absent = {
        "accessories": rng.random(count) >= _EARRING_ODDS,
        "glasses": labels[:, SLOT["glasses"]] == 1,
        "beard": labels[:, SLOT["beard"]] == 1,
        "hat": labels[:, SLOT["hat"]] == 1,
    }
    for group, missing in absent.items():
        kinds[group] = np.where(missing, -1, kinds[group])
    return kinds


def _pick_colours(rng: np.random.Generator, shades: list[tuple[str, ...]]) -> npt.NDArray[np.float32]:
    u = rng.random(len(shades))
    return np.stack([_rgb(s[int(x * len(s))]) for s, x in zip(shades, u, strict=True)])


@cache
def _rgb(code: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32)
