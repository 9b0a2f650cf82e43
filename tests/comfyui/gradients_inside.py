"""Runs in ComfyUI's interpreter: the gradients that the pack gives the host's fused operators.

    python gradients_inside.py COMFYUI PACK HOME

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import distill_inside
import torch
from distill_inside import pack, refused
from torch import Tensor

X, ROWS = (2, 3, 4, 6), (2, 4, 3, 6)
"""Tensors `[B, heads, tokens, D]` and `[B, tokens, heads, D]`."""
ONE, EACH, TURNED_ROWS = (1, 1, 4, 3, 2, 2), (2, 1, 4, 3, 2, 2), (1, 4, 1, 3, 2, 2)
LONGER = (1, 1, 7, 3, 2, 2)
"""Rotations for more tokens than there are, which only the operators of neighbours take."""
W = (6,)
HALF: dict[str, list[tuple[Any, ...]]] = {
    "apply_rope": [(X, X, ONE), (ROWS, ROWS, TURNED_ROWS)],
    "apply_rope1": [(X, EACH), (ROWS, TURNED_ROWS)],
    "rms_rope": [(X, X, EACH, W, W, 1e-6), (X, X, ONE, W, None, 0.1), (ROWS, ROWS, TURNED_ROWS, W)],
    "rms_rope1": [(X, ONE, W, 1e-5), (X, EACH, W)],
}
SHAPES: dict[str, list[tuple[Any, ...]]] = {
    "apply_rope": [*HALF["apply_rope"], (X, X, LONGER)],
    "apply_rope1": [*HALF["apply_rope1"], (X, LONGER)],
    "rms_rope": [*HALF["rms_rope"], (X, X, LONGER, W, W)],
    "rms_rope1": [*HALF["rms_rope1"], (X, LONGER, W)],
    "apply_rope_split_half": HALF["apply_rope"],
    "apply_rope_split_half1": HALF["apply_rope1"],
    "rms_rope_split_half": [*HALF["rms_rope"], (X, X, (1, 1, 4, 2, 2, 2), W, W, 1e-6, 4)],
    "rms_rope_split_half1": HALF["rms_rope1"],
    "adaln": [((2, 3, 6), (2, 1, 6), (2, 1, 6), 1e-6), ((2, 3, 6), W, (2, 3, 6), 0.1)],
    "rms_adaln": [((2, 3, 6), (2, 1, 6), (2, 1, 6), 1e-6), ((2, 3, 6), W, (2, 3, 6), 0.1)],
}
"""Arguments of an operator: shapes of tensors, and plain numbers."""


def operators() -> dict[str, Any]:
    """Names that the pack knows, those it gave a gradient, now and asked again, and those of the package."""
    gradients = pack("gradients")
    first = gradients.register_gradients()
    gradients.register_gradients.cache_clear()
    known = [n for n in gradients.RULES if hasattr(torch.ops.comfy_kitchen, n)]
    return {
        "known": list(gradients.RULES),
        "here": known,
        "given": first,
        "again": gradients.register_gradients(),
    }


def arguments(shapes: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    generator = torch.Generator().manual_seed(3)

    def made(shape: Any) -> Any:
        if not isinstance(shape, tuple):
            return shape
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return value.to(dtype).requires_grad_()

    return [made(shape) for shape in shapes]


def eager(name: str) -> Callable[..., Any]:
    """The package's formula of plain PyTorch."""
    from comfy_kitchen.backends import eager as module

    return getattr(module, name)


def finite_differences(name: str) -> list[bool]:
    """Whether the pack's formula is the slope of the package's, in float64, which its kernels do not take.

    The formula is tried around the plain PyTorch of the package, the same two functions that are registered.
    """
    rule = pack("gradients").RULES[name]

    class Tried(torch.autograd.Function):
        forward = staticmethod(eager(name))
        setup_context = staticmethod(rule.keep)
        backward = staticmethod(rule.backward)

    with torch.inference_mode(False), torch.enable_grad():
        return [
            torch.autograd.gradcheck(Tried.apply, arguments(shapes, torch.float64)) for shapes in SHAPES[name]
        ]


def grads(function: Callable[..., Any], given: list[Any]) -> list[Tensor]:
    """Gradients of all tensors, of a sum with unlike weights."""
    out = function(*given)
    out = (out,) if isinstance(out, Tensor) else out
    generator = torch.Generator().manual_seed(4)
    loss = torch.stack([(o.float() * torch.randn(o.shape, generator=generator)).sum() for o in out]).sum()
    tensors = [g for g in given if isinstance(g, Tensor)]
    return [g.float() for g in torch.autograd.grad(loss, tensors)]


def registered(name: str, dtype: str) -> dict[str, Any]:
    """Gradients and values of the real operator in a kernel's dtype, and PyTorch's of the plain formula."""
    pack("gradients").register_gradients()
    operator, found = getattr(torch.ops.comfy_kitchen, name), {"ours": [], "eager": [], "forward": []}
    with torch.inference_mode(False), torch.enable_grad():
        for shapes in SHAPES[name]:
            given = arguments(shapes, getattr(torch, dtype))
            found["ours"] += grads(operator, given)
            found["eager"] += grads(eager(name), given)
            with torch.no_grad():
                one, other = operator(*given), eager(name)(*given)
            one, other = ((o,) if isinstance(o, Tensor) else o for o in (one, other))
            same = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
            found["forward"] += same
    return found


def told(kind: str, name: str, **given: Any) -> list[Any]:
    """`in_training` before a run, at each evaluation of it, and after it."""
    import comfy.model_management as management

    backbone = pack("backbone").HostBackbone
    real, seen = backbone._apply, [getattr(management, "in_training", None)]

    def watched(self: Any, *args: Any) -> Tensor:
        seen.append(getattr(management, "in_training", None))
        return real(self, *args)

    backbone._apply = watched
    try:
        refused(kind, name, **given)
    finally:
        backbone._apply = real
    return [*seen, getattr(management, "in_training", None)]


if __name__ == "__main__":
    distill_inside.main(globals())
