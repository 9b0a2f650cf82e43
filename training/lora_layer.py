"""One layer's adapter in a LoRA file: its tensors by role, and what can be told from their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

PLAIN = {"down", "up", "alpha"}
# The factors of LoRA, LoHa and LoKr whose first side is the rank.
_RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")


@dataclass(frozen=True)
class Layer:
    """One layer's adapter."""

    part: str  # unet; te1, te2, te3: text encoders by number; te: one that has a name
    name: str  # canonical if `known`, else as the file has it
    known: bool
    style: str  # key of FORMATS
    raw: str  # the layer's key in the file, without the suffixes
    tensors: Mapping[str, Tensor]  # by role: down, up, alpha, or what else the file has; shapes as LyCORIS'
    alpha: float | None  # None: the file has none, so the scale is 1
    keys: tuple[str, ...] = ()  # of its tensors in the file
    scaled: bool = False  # whether the file, or the settings beside it, say the scale

    @property
    def plain(self) -> bool:
        """Tell whether it is an ordinary LoRA: two factors and a scale."""
        return "down" in self.tensors and set(self.tensors) <= PLAIN

    @property
    def rank(self) -> int | None:
        return rank_of(self.tensors)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None or not self.rank else self.alpha / self.rank

    @property
    def scale_known(self) -> bool:
        """Tell whether the file or its settings say the scale, or there is none in such an adapter."""
        factors = any(role == "up" or role.startswith(("hada", "lokr")) for role in self.tensors)
        return self.scaled or not factors

    @property
    def shape(self) -> tuple[int, int] | None:
        """Rows and columns of the weight it is for, as a matrix; None where only the host can tell."""
        return None if "reshape_weight" in self.tensors else shape_of(self.tensors)

    def delta(self) -> Tensor:
        """What a plain layer adds to the weight at strength 1, as a matrix in float32."""
        up, down = self.tensors["up"].float().flatten(1), self.tensors["down"].float().flatten(1)
        return self.scale * (up @ down)


def by_output(dora_scale: Tensor) -> bool:
    """Tell whether DoRA's magnitudes are of output channels, `[out, 1, ...]`; of inputs: `[1, in, ...]`."""
    return dora_scale.shape[0] == dora_scale.numel() > 1


def shape_of(parts: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Rows and columns of what LoRA, LoHa, LoKr or a full difference adds; convolutions are flattened."""
    if "up" in parts:
        columns = parts["down"][0].numel() * (parts["mid"][0, 0].numel() if "mid" in parts else 1)
        return parts["up"].shape[0], columns
    if "hada_w1_b" in parts and "hada_w1_a" in parts:
        return _product(parts["hada_w1_a"], parts["hada_w1_b"], parts.get("hada_t1"))
    if any(role.startswith("lokr") for role in parts):
        sides: list[tuple[int, int]] = []
        for i, core in ((1, None), (2, parts.get("lokr_t2"))):
            whole, a, b = (parts.get(f"lokr_w{i}{x}") for x in ("", "_a", "_b"))
            if whole is not None:
                sides.append((whole.shape[0], whole[0].numel()))
            elif a is not None and b is not None:
                sides.append(_product(a, b, core))
        return (math.prod(s[0] for s in sides), math.prod(s[1] for s in sides)) if len(sides) == 2 else None
    full = parts.get("diff")
    return None if full is None or full.ndim < 2 else (full.shape[0], full[0].numel())


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, int]:
    """Shape of `a @ b`; with Tucker's `core` [rank, rank, ...], of `core` between [rank, out], [rank, in]."""
    if core is None:
        return a.shape[0], b.shape[1]
    return a.shape[1], b.shape[1] * core[0, 0].numel()


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """Find the rank of LoRA, LoHa or LoKr; None of two full factors and of other adapters."""
    return next((parts[role].shape[0] for role in _RANKED if role in parts), None)


def whole_kronecker(parts: Mapping[str, Tensor], scale: float | None) -> dict[str, Tensor]:
    """Bring a LoKr's tensors into the form in which kohya's keys, LyCORIS and ComfyUI mean the same.

    scale: of the change, where the maker says it. Two full factors: peft scales them, the others do not, so
    the scale goes into the first. Tucker's form (`lokr_t2`) becomes one full factor: ComfyUI stops at it.
    Kernels of one or three dimensions are flattened: ComfyUI multiplies those of two only.
    """
    parts = dict(parts)
    if "lokr_t2" in parts:
        core, out, inner = (parts.pop(role) for role in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        whole = torch.einsum("ij...,ip,jr->pr...", *(t.float() for t in (core, out, inner)))
        parts["lokr_w2"] = whole.contiguous()
    if "lokr_w2" in parts and parts["lokr_w2"].ndim not in (2, 4):
        parts["lokr_w2"] = parts["lokr_w2"].flatten(1)
    if "lokr_w1" in parts and "lokr_w2" in parts and scale not in (None, 1.0):
        parts["lokr_w1"] = parts["lokr_w1"].float() * scale
    return parts
