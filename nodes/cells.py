"""The cells of TCD Compare, without ComfyUI: what they are, how they are measured, which is recommended."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..embedded.measures import complexity
from ..samplers.timesteps import check_gamma

NEAR = 1.1
"""A cell is near the reference up to this many times the least distance of all cells."""
SHARP = 2 / 3
"""A cell with less than this share of the reference's sharpness is blurred."""
GREY = (0.299, 0.587, 0.114)
MOST_CELLS = 400
COLUMNS: tuple[str, ...] = (
    "cell", "steps", "gamma", "order", "lora", "lora_strength", "cfg", "sampler", "scheduler", "denoise",
    "seed", "evaluations", "seconds", "sharpness", "complexity", "distance", "recommended",
)  # fmt: skip


class Setting(NamedTuple):
    """Of one cell."""

    steps: int
    gamma: float
    order: str
    strength: float

    @property
    def evaluations(self) -> int:
        """Of the model, those of guidance counted once."""
        return self.steps * (2 if self.order == "2" else 1)


class Figures(NamedTuple):
    """Of a cell's pictures; None: not measured, for there is no reference or it is no picture."""

    seconds: float
    sharpness: float | None
    complexity: float | None
    distance: float | None


class Plan(NamedTuple):
    """All cells: rows of strength, order and gamma, columns of steps."""

    steps: list[int]
    gammas: list[float]
    orders: list[str]
    strengths: list[float]

    @classmethod
    def read(cls, steps: str, gammas: str, orders: str, strengths: str) -> Plan:
        """From the texts of the node. ValueError names the input and what is wrong with it."""
        plan = cls(
            numbers("steps", steps, _steps),
            numbers("gammas", gammas, _gamma),
            numbers("orders", orders, _order),
            numbers("lora_strengths", strengths, partial(_number, example="0.8, 1")),
        )
        count = math.prod(len(x) for x in plan)
        if count > MOST_CELLS:
            raise ValueError(f"{count} cells are more than {MOST_CELLS}; shorten a list")
        return plan

    @property
    def rows(self) -> list[list[Setting]]:
        # The strength changes slowest: every change makes the host patch the weights again.
        kinds = product(self.strengths, self.orders, self.gammas)
        return [[Setting(k, gamma, order, strength) for k in self.steps] for strength, order, gamma in kinds]

    @property
    def cells(self) -> list[Setting]:
        return [cell for row in self.rows for cell in row]

    def row_names(self) -> list[str]:
        """A line for gamma, further ones for what differs between the rows."""
        names: list[str] = []
        for cell, *_ in self.rows:
            lines = [f"gamma {cell.gamma:g}"]
            lines += [f"order {cell.order}"] if self.orders != ["1"] else []
            lines += [f"LoRA {cell.strength:g}"] if len(self.strengths) > 1 else []
            names.append("\n".join(lines))
        return names


def numbers(name: str, text: str, read: Callable[[str], Any]) -> list[Any]:
    """The values of a list such as "2, 4, 8"; doubles count once. ValueError names the input."""
    words = text.replace(";", ",").replace("\n", ",").split(",")
    words = [word.strip() for word in words if word.strip()]
    if not words:
        raise ValueError(f"{name}: is empty; write values between commas")
    try:
        return list(dict.fromkeys(read(word) for word in words))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _steps(word: str) -> int:
    if not word.isascii() or not word.isdigit() or not 1 <= int(word) <= 1000:
        raise ValueError(f"{word!r} is not a whole number from 1 to 1000, such as in: 2, 4, 8")
    return int(word)


def _number(word: str, example: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise ValueError(f"{word!r} is not a number, such as in: {example}") from None
    if not math.isfinite(value):
        raise ValueError(f"{word!r} is not a finite number")
    return value


def _gamma(word: str) -> float:
    value = _number(word, "0, 0.3, 0.6")
    check_gamma(value)
    return value


def _order(word: str) -> str:
    if word not in ("1", "2", "multistep"):
        raise ValueError(f"{word!r} is not one of 1, 2, multistep")
    return word


def grey_levels(images: Tensor) -> Tensor:
    """IMAGE `[B, H, W, C]` in 0..1 as uint8 `[B, H, W, 3]`; alpha is left out, one channel becomes three."""
    rgb = images[..., :3].float().cpu()
    rgb = rgb if rgb.shape[-1] == 3 else rgb[..., :1].expand(*rgb.shape[:-1], 3)
    return (rgb.nan_to_num() * 255).round().clamp(0, 255).to(torch.uint8)


def sharpness(images: Tensor) -> float | None:
    """Variance of the Laplacian of the grey levels, the mean over the pictures. `uint8 [B, H, W, 3]`.

    The usual measure of focus. Noise raises it like detail does. None below 3x3 pixels.
    """
    x = (images.float() * torch.tensor(GREY)).sum(-1)
    if min(x.shape[1:]) < 3:
        return None
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float((around - 4 * x[:, 1:-1, 1:-1]).flatten(1).var(1, correction=0).mean())


def distance(images: Tensor, reference: Tensor) -> float:
    """Root mean square difference in grey levels, picture by picture of the same noise."""
    return float((images.float() - reference.float()).square().mean().sqrt())


def measure(images: Tensor, seconds: float, reference: Tensor | None) -> Figures:
    """Of IMAGEs `[B, H, W, C]`; nothing but the time where they hold NaN: a model that broke down."""
    if not bool(images.isfinite().all()):
        return Figures(seconds, None, None, None)
    levels = grey_levels(images)
    far = None if reference is None else distance(levels, grey_levels(reference))
    return Figures(seconds, sharpness(levels), complexity(levels), far)


def recommend(figures: dict[Setting, Figures], reference: Figures | None) -> Setting | None:
    """The cell with the fewest model evaluations of those that are near the reference; of equal ones the
    nearest.

    Near is up to `NEAR` times the least distance. Blurred cells are left out, unless all are: the distance
    rewards blur. The evaluations, not the seconds: those change from run to run. None without distances.
    """
    far = {cell: f.distance for cell, f in figures.items() if f.distance is not None}
    enough = SHARP * ((reference and reference.sharpness) or 0)
    sharp = {cell: d for cell, d in far.items() if (figures[cell].sharpness or 0) >= enough}
    far = sharp or far
    near = [cell for cell in far if far[cell] <= NEAR * min(far.values())]
    return min(near, key=lambda cell: (cell.evaluations, far[cell]), default=None)


def caption(figures: Figures) -> str:
    """The line under a picture."""
    if figures.sharpness is None and figures.complexity is None:
        return f"{figures.seconds:.2f} s  not a picture (NaN)"
    parts = [f"{figures.seconds:.2f} s"]
    parts += [] if figures.distance is None else [f"d {figures.distance:.1f}"]
    parts += [f"sharp {_short(figures.sharpness)}", f"edges {_short(figures.complexity)}%"]
    return "  ".join(parts)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """CSV; what a row lacks is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def record(
    figures: Figures | None, setting: Setting | None = None, recommended: bool = False, **more: Any
) -> dict[str, Any]:
    """A row of the CSV: of a cell, or of the reference, whose settings are `more`."""
    row: dict[str, Any] = {"cell": "reference" if setting is None else "tcd", **more}
    if setting is not None:
        row |= {"steps": setting.steps, "gamma": setting.gamma, "order": setting.order}
        row |= {"lora_strength": setting.strength, "evaluations": setting.evaluations}
    if figures is not None:
        row |= {name: round(x, 4) for name, x in figures._asdict().items() if x is not None}
    return {**row, "recommended": "yes" if recommended else ""}
