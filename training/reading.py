"""Figures of a step, read without holding up the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Reading:
    """Loss and gradient norm of one step, on their way to the CPU. Asking for them waits for that step only,
    not for what the device was given since.
    """

    def __init__(self, step: int, loss: Tensor, norm: Tensor, lr: float) -> None:
        self.step, self.lr = step, lr
        both = torch.stack([loss.detach().float(), norm.detach().float()])
        self._values = both.to("cpu", non_blocking=both.is_cuda)  # pinned where that matters
        self._event = torch.cuda.Event() if both.is_cuda else None
        if self._event is not None:
            self._event.record()

    @property
    def values(self) -> tuple[float, float]:
        if self._event is not None:
            self._event.synchronize()
        loss, norm = self._values.tolist()
        return loss, norm

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.values))

    def record(self) -> dict[str, float]:
        """A line of the log."""
        loss, norm = self.values
        return {"step": self.step, "loss": loss, "norm": norm, "lr": self.lr}


def late(tensor: Tensor) -> int:
    """How many steps the device may be ahead of what has been read: none where reading costs nothing."""
    return 0 if tensor.device.type == "cpu" else 1
