"""Frozen weights of another dtype than what they are multiplied with (8 bits, or 16 where a host computes in
32): cast for each product, and again for its gradient, never kept wide.

A layer that casts its weight in the forward pass hands the wide copy to autograd, which keeps it until the
backward pass: all of them together are the memory that narrow weights were to save.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.grad import conv2d_input

from .memory import forwards

EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)
SIXTEEN = (torch.float16, torch.bfloat16)
CASTS = "comfy_cast_weights"
"""Of a host's layer that casts its weight to the dtype of what it is given."""
OWN = ("scale_weight", "weight_function", "bias_function")
"""Of a host's layer that does more to its weight than to cast it: such a layer is left as it is."""


def narrow_layers(network: nn.Module) -> list[nn.Module]:
    """The Linear and Conv2d layers with narrow weights, by class, so that a host's subclasses count."""
    return [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _plain(m)]


def _plain(layer: nn.Linear | nn.Conv2d) -> bool:
    weight = layer.weight
    if type(weight) is not nn.Parameter or weight.dtype not in EIGHT + SIXTEEN * getattr(layer, CASTS, False):
        return False
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return False
    return not any(getattr(layer, name, None) not in (None, []) for name in OWN)


@contextmanager
def widened_again(network: nn.Module) -> Generator[None, None, None]:
    """The narrow layers of `network` keep no wide weight for the backward pass. Results are unchanged.

    The layers run as they are without gradients, and where the weight has its input's dtype.
    """
    with forwards(narrow_layers(network), lambda layer: partial(_forward, layer, layer.forward)):
        yield


def _forward(layer: Any, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if layer.weight.dtype == x.dtype or not (torch.is_grad_enabled() and x.requires_grad):
        return plain(x)
    product = _Linear if isinstance(layer, nn.Linear) else _Conv2d
    return product.apply(x, layer)


def _bias(layer: Any, x: Tensor) -> Tensor | None:
    return None if layer.bias is None else layer.bias.to(x.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.weight.to(x.dtype), _bias(layer, x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.weight.to(grad.dtype), None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape
        return layer._conv_forward(x, layer.weight.to(x.dtype), _bias(layer, x))  # pyright: ignore[reportPrivateUsage]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), layer = grads, ctx.layer
        weight = layer.weight.to(grad.dtype)
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return conv2d_input(ctx.size, weight, grad, *how), None
