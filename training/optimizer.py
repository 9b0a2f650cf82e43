"""The optimizer of a run: its learning rates, and torch's fused AdamW or bitsandbytes' with moments of 8
bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import DistillConfig

NEEDS_BITSANDBYTES = (
    "optimizer = adamw8bit needs bitsandbytes, which cannot be imported: "
    'python -m pip install "bitsandbytes>=0.45", with the Python that runs this; or set optimizer = adamw'
)


def learning_rate(config: DistillConfig, step: int) -> float:
    """Compute the rate of a step: linear warm-up, then constant or a cosine to 0 at the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.learning_rate
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def optimizer_of(config: DistillConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """By `config.optimizer`. ValueError names what to install where it is missing."""
    given: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(list(parameters), fused=True, **given)
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore  (an extra)
    except Exception as error:  # it also fails with RuntimeError or OSError where its library does not load
        raise ValueError(NEEDS_BITSANDBYTES) from error
    # Moments of small tensors stay in 32 bits, as blocks of 256 with one scale would be too coarse for them.
    optimizer: torch.optim.Optimizer = AdamW8bit(list(parameters), **given)
    return optimizer


def lift(elements: int) -> float:
    """What to multiply a loss by that is a mean over `elements`: a power of two that leaves each output's
    gradient below about 1. float16, in which ComfyUI runs SDXL on many cards, would round most of a mean's
    to 0; in wider types nothing changes, bit for bit.
    """
    return 2.0 ** max(0, elements.bit_length() - 5)


def lower(parameters: Iterable[nn.Parameter], up: float) -> None:
    """Gradients of a loss that was multiplied by `up`, as they are without."""
    grads = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(grads, 1 / up)  # pyright: ignore[reportPrivateUsage]


def take_step(optimizer: torch.optim.Optimizer, diverged: Tensor) -> None:
    """A step that changes nothing where `diverged` is 1: on the device where torch's own can, else asked."""
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.found_inf = diverged  # pyright: ignore
        optimizer.step()
    elif not bool(diverged):
        optimizer.step()
