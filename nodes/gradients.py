"""Gradients of the host's operators that come without one."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def differentiable_rope() -> None:
    """Newer hosts turn positions by an operator without a gradient: it is the turn back, given here once."""
    operators = getattr(torch.ops, "comfy_kitchen", None)
    if not hasattr(operators, "apply_rope"):
        return

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[-1])

    def back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (turns,) = ctx.saved_tensors
        return (*(turn(g, turns.transpose(-1, -2)) for g in grads), None)

    def turn(x: Tensor, turns: Tensor) -> Tensor:
        pairs = x.to(turns.dtype).unflatten(-1, (-1, 1, 2))
        return (turns * pairs).sum(-1).flatten(-2).to(x.dtype)

    for name in ("apply_rope", "apply_rope1"):
        if hasattr(operators, name):
            with suppress(RuntimeError):  # the host has one by now
                torch.library.register_autograd(f"comfy_kitchen::{name}", back, setup_context=keep)
