"""What the trainer needs to know of a network. ComfyUI's, diffusers' and the embedded model each come as one
of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor, nn

from ..samplers import Level, Point, Predict, Schedule, placed

Cond = Mapping[str, Tensor]
"""An encoded batch of prompts: tensors by name, batch first (tokens, pooled text, sizes, ...)."""

Prediction = tuple[Tensor, Tensor]
"""`(x0, eps)`, each `[B, ...]` like the state."""


class Backbone(Protocol):
    """One network, its schedule and its latents. The LoRA goes into `network`; teacher and student are the
    same object.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one sample, without the batch."""
        ...

    def predictor(self, cond: Cond) -> Predict:
        """One evaluation under `cond`: `(x [B, ...], now, target) -> (x0, eps)`."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 pictures `[B, H, W, 3]`, for previews."""
        ...


def take(cond: Cond, index: Tensor | slice) -> dict[str, Tensor]:
    """Some rows of a batch of prompts."""
    if isinstance(index, slice):
        return {name: value[index] for name, value in cond.items()}
    return {name: value[placed(index, value.device)] for name, value in cond.items()}


def repeat(cond: Cond, count: int) -> dict[str, Tensor]:
    """One prompt `[1, ...]` for a whole batch."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in cond.items()}


def concat(conds: Sequence[Cond]) -> dict[str, Tensor]:
    """Batches of prompts, one after the other; all need the same names and the same lengths of text."""
    first = conds[0]
    if any(set(c) != set(first) for c in conds):
        raise ValueError(
            f"conditionings differ in kind: {sorted({tuple(sorted(c)) for c in conds})}; encode all of "
            "them the same way"
        )
    return {name: torch.cat([c[name] for c in conds]) for name in first}


def size(cond: Cond) -> int:
    """Rows in a batch of prompts."""
    return len(next(iter(cond.values())))


def cond_and_uncond(
    backbone: Backbone, cond: Cond, uncond: Cond, x: Tensor, now: Point, target: Point
) -> tuple[Prediction, Prediction]:
    """Both predictions of the teacher in one forward of 2B rows."""
    predict = backbone.predictor(concat([cond, uncond]))
    x0, eps = predict(torch.cat([x, x]), twice(now), twice(target))
    (x0_c, x0_u), (eps_c, eps_u) = x0.chunk(2), eps.chunk(2)
    return (x0_c, eps_c), (x0_u, eps_u)


def in_parts(predictor: Callable[[Cond], Predict], cond: Cond, rows: int) -> Predict:
    """One evaluation of a batch, at most `rows` at a time where there is no backward pass after it."""

    def predict(x: Tensor, now: Point, target: Point) -> Prediction:
        if torch.is_grad_enabled() or len(x) <= rows:
            return predictor(cond)(x, now, target)
        parts: list[Prediction] = []
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            parts.append(predictor(take(cond, part))(x[part], some(now, part), some(target, part)))
        return torch.cat([x0 for x0, _ in parts]), torch.cat([eps for _, eps in parts])

    return predict


class InParts:
    """A backbone that evaluates at most `rows` at a time where there is no backward pass: what it needs does
    not grow with the number of trajectories or of validation prompts.
    """

    def __init__(self, whole: Backbone, rows: int) -> None:
        self.whole, self.rows = whole, rows
        self.network, self.schedule, self.latent_shape = whole.network, whole.schedule, whole.latent_shape

    def predictor(self, cond: Cond) -> Predict:
        return in_parts(self.whole.predictor, cond, self.rows)

    def decode(self, latents: Tensor) -> Tensor:
        return self.whole.decode(latents)


def some(point: Point, part: slice | Tensor) -> Point:
    """The times of some rows of a batch; a time of all is that of some."""
    t, alpha, sigma = (a if a.numel() == 1 else a[part] for a in (point.t, *point.level))
    return Point(t, Level(alpha, sigma))


def twice(point: Point) -> Point:
    """The times of a doubled batch."""
    t, alpha, sigma = (a if a.ndim == 0 else torch.cat([a, a]) for a in (point.t, *point.level))
    return Point(t, Level(alpha, sigma))


def digest(cond: Cond) -> str:
    """Name an encoded batch of prompts, or any tensors: equal for equal names and values."""
    mixed = sha256()
    for name in sorted(cond):
        mixed.update(f"{name} {cond[name].dtype} {tuple(cond[name].shape)}".encode())
        mixed.update(cond[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return mixed.hexdigest()


def fingerprint(network: nn.Module) -> str:
    """A name for the weights: of a part of each, so that it takes no time."""
    mixed = sha256()
    for name, p in network.named_parameters():
        part = p.detach().flatten()[:: max(1, p.numel() // 64)].float().cpu().contiguous()
        mixed.update(name.encode() + part.numpy().tobytes())
    return mixed.hexdigest()
