"""Gradients of the host's fused operators that come without one.

Newer hosts compute the norms and rotary positions of a transformer by the operators of `comfy_kitchen`, which
are written for sampling. Core's trainer avoids them (`comfy.model_management.in_training`), but not every
model asks for that. So both: the host is told that it trains, and what is called nevertheless has a gradient.
The formulas are those of the package's plain PyTorch, differentiated; tests/comfyui/test_gradients.py holds
them against finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import comfy.model_management
import torch
from torch import Tensor

NAMESPACE = "comfy_kitchen"
NO_GRADIENT = "no autograd formula was registered"
"""What torch says in the backward pass of a custom operator without a gradient."""


@contextmanager
def training_operators() -> Generator[None, None, None]:
    """Make the host's operators differentiable while a training runs.

    Tells the host that it trains, where it can be told, and at the end what it was told before, also after an
    error or a cancel. Sampling is not changed.
    """
    register_gradients()
    management = comfy.model_management
    was = getattr(management, "in_training", None)
    if was is None:
        yield
        return
    management.in_training = True
    try:
        yield
    finally:
        management.in_training = was


@cache
def register_gradients() -> tuple[str, ...]:
    """Give each known operator of the host its gradient, once; return the names of those that had none."""
    given: list[str] = []
    for name, rule in RULES.items():
        operator = getattr(getattr(torch.ops, NAMESPACE), name, None)
        if operator is None or has_gradient(operator.default):
            continue
        torch.library.register_autograd(f"{NAMESPACE}::{name}", rule.backward, setup_context=rule.keep)
        given.append(name)
    return tuple(given)


def has_gradient(operator: Any) -> bool:
    """Whether a backward pass through a custom operator finds a formula, tried on tensors without memory."""
    needed = [a for a in operator._schema.arguments if not a.has_default_value()]
    with torch.inference_mode(False), torch.enable_grad():
        like = torch.empty(1, 1, 1, 2, device="meta", requires_grad=True)
        try:
            out = operator(*(like if "Tensor" in str(a.type) else 1e-6 for a in needed))
            (out if isinstance(out, Tensor) else out[0]).sum().backward()
        except RuntimeError as error:
            return NO_GRADIENT not in str(error)
    return True


class Rule(NamedTuple):
    """A gradient as `torch.library.register_autograd` takes it: what is kept, and the backward pass."""

    keep: Callable[[Any, tuple[Any, ...], Any], None]
    backward: Callable[..., Any]


def apply_rope(count: int, half: bool) -> Rule:
    """Gradient of `apply_rope` for `count` tensors `[..., D]` and the rotations `[..., D / 2, 2, 2]`."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, rotations = inputs
        # Positions are learned by no model that is known, so the large tensors are rarely needed again.
        kept = tensors if ctx.needs_input_grad[count] else ()
        ctx.save_for_backward(rotations, *kept)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rotations, *tensors = ctx.saved_tensors
        back = [rotate_back(g, rotations, half) for g in grads]
        turned = [rotation_grad(g, x, rotations, half) for g, x in zip(grads, tensors, strict=False)]
        return (*back, total(turned))

    return Rule(keep, backward)


def rms_rope(count: int, half: bool) -> Rule:
    """Gradient of `rms_rope`: RMS norms of `count` tensors `[..., D]` with weights `[D]`, then the rotations.

    The operator for two tensors takes an optional weight for the second (default: the first's), and the
    split-half one a number of leading dimensions that are rotated (default: all).
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        tensors, (rotations, *rest) = inputs[:count], inputs[count:]
        weights, (eps, *dims) = rest[:count], rest[count:]
        ctx.save_for_backward(*tensors, rotations, *weights)
        ctx.eps, ctx.dims, ctx.given = eps, (dims[0] if dims else 0), len(inputs)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, rotations, weights = saved[:count], saved[count], saved[count + 1 :]
        found = [
            rms_rope_grad(ctx, g, x, rotations, weights[0] if w is None else w, half)
            for g, x, w in zip(grads, tensors, weights, strict=True)
        ]
        inward, turned, scaled = (list(each) for each in zip(*found, strict=True))
        if weights[-1] is None:  # one weight served both
            scaled = [total(scaled), None]
        given = (*inward, total(turned), *scaled)
        return (*given, *[None] * (ctx.given - len(given)))

    def rms_rope_grad(
        ctx: Any, grad: Tensor, x: Tensor, rotations: Tensor, weight: Tensor, half: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        wide, inverse = normal(x, ctx.eps, centre=False)
        dims = ctx.dims or x.shape[-1]
        front, rest = grad.to(wide.dtype).split([dims, x.shape[-1] - dims], -1)
        into = torch.cat([rotate_back(front, rotations, half), rest], -1)
        turned = None
        if ctx.needs_input_grad[count]:
            turned = rotation_grad(front, (wide * weight)[..., :dims], rotations, half)
        inward = normal_grad(into * weight, wide, inverse, centre=False)
        scaled = (into * wide).sum_to_size(weight.shape)
        return inward.to(x.dtype), turned, scaled.to(weight.dtype)

    return Rule(keep, backward)


def adaln(centre: bool) -> Rule:
    """Gradient of `adaln` (with `centre`: a layer norm, else an RMS norm, without weights), then
    `* (1 + scale) + shift`, where both may have fewer rows than x `[..., D]`.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, scale, shift, ctx.eps = inputs
        ctx.save_for_backward(x, scale)
        ctx.shift_shape, ctx.shift_dtype = shift.shape, shift.dtype

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        wide, inverse = normal(x, ctx.eps, centre)
        grad = grad.to(wide.dtype)
        inward = normal_grad(grad * (1 + scale.to(wide.dtype)), wide, inverse, centre)
        scaled = (grad * wide).sum_to_size(scale.shape)
        shifted = grad.sum_to_size(ctx.shift_shape)
        return inward.to(x.dtype), scaled.to(scale.dtype), shifted.to(ctx.shift_dtype), None

    return Rule(keep, backward)


def normal(x: Tensor, eps: float, centre: bool) -> tuple[Tensor, Tensor]:
    """Return x with a root mean square of 1 over the last dimension, at least in float32, and the factor
    `[..., 1]` that made it so. `centre` subtracts the mean first.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if centre:
        wide = wide - wide.mean(-1, keepdim=True)
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return wide * inverse, inverse


def normal_grad(grad: Tensor, wide: Tensor, inverse: Tensor, centre: bool) -> Tensor:
    """Return the gradient of x from that of `normal`'s first result: what would change x's scale (and its
    mean) is taken out.
    """
    inward = grad - wide * (grad * wide).mean(-1, keepdim=True)
    if centre:
        inward = inward - grad.mean(-1, keepdim=True)
    return inward * inverse


def pairs(x: Tensor, half: bool) -> Tensor:
    """Return `[..., D]` as the pairs that are rotated, `[..., D / 2, 2]`: neighbours, or the two halves."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2) if half else x.unflatten(-1, (-1, 2))


def rotate_back(grad: Tensor, rotations: Tensor, half: bool) -> Tensor:
    """Return the gradient of what was rotated: the transposed 2 x 2 matrices, applied to the pairs."""
    given = pairs(grad.to(rotations.dtype), half)
    turned = (trimmed(rotations, grad) * given.unsqueeze(-1)).sum(-2)
    return (turned.transpose(-1, -2) if half else turned).flatten(-2).to(grad.dtype)


def rotation_grad(grad: Tensor, x: Tensor, rotations: Tensor, half: bool) -> Tensor:
    """Return the gradient of the matrices, 0 for the positions that were not used."""
    rows, columns = (pairs(t.to(rotations.dtype), half) for t in (grad, x))
    used = trimmed(rotations, x)
    outer = (rows.unsqueeze(-1) * columns.unsqueeze(-2)).sum_to_size(used.shape)
    if used.shape == rotations.shape:
        return outer
    left = torch.zeros_like(rotations)
    left[:, :, : outer.shape[2]] = outer
    return left


def trimmed(rotations: Tensor, x: Tensor) -> Tensor:
    """Return the rotations of the first positions of dimension 2 where there are more than x has.

    This is the package's rule: it takes tables that were made for the longest sequence.
    """
    if x.ndim > 2 and rotations.ndim > 2 and 1 < x.shape[2] < rotations.shape[2]:
        return rotations[:, :, : x.shape[2]]
    return rotations


def total(grads: list[Any]) -> Tensor | None:
    """Return the sum, None where there is nothing to add."""
    found = [g for g in grads if g is not None]
    return torch.stack(found).sum(0) if found else None


RULES: dict[str, Rule] = {
    "apply_rope": apply_rope(2, half=False),
    "apply_rope1": apply_rope(1, half=False),
    "apply_rope_split_half": apply_rope(2, half=True),
    "apply_rope_split_half1": apply_rope(1, half=True),
    "rms_rope": rms_rope(2, half=False),
    "rms_rope1": rms_rope(1, half=False),
    "rms_rope_split_half": rms_rope(2, half=True),
    "rms_rope_split_half1": rms_rope(1, half=True),
    "adaln": adaln(centre=True),
    "rms_adaln": adaln(centre=False),
}
"""Every operator of the package that a denoiser of ComfyUI 0.33 calls while it trains, and its siblings."""
