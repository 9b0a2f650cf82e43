"""The checkpoint of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import load_tensors, save_tensors
from .config import DistillConfig


class State:
    """All that a resume needs: adapters, averages, optimizer, step, settings. Written whole or not at all."""

    def __init__(
        self,
        path: Path,
        config: DistillConfig,
        trained: Mapping[str, nn.Parameter],
        average: dict[str, Tensor],
        target: dict[str, Tensor] | None,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self.path, self.config, self.optimizer = path, config, optimizer
        self.groups: dict[str, Mapping[str, Tensor]] = {"student": trained, "average": average}
        if target is not None:
            self.groups["target"] = target

    def save(self, step: int, best: float | None, best_step: int | None) -> None:
        tensors = {f"{group}/{k}": v for group, named in self.groups.items() for k, v in named.items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in slots.items()}
        progress = {"step": step, "best": best, "best_step": best_step, "config": self.config.as_dict()}
        save_tensors(self.path, tensors, {"progress": json.dumps(progress)})

    def load(self) -> tuple[int, float | None, int | None]:
        """Put everything back; `(steps done, best figure, its step)`, or zeros for a fresh folder."""
        if not self.path.is_file():
            return 0, None, None
        tensors, metadata = load_tensors(self.path)
        progress = json.loads(metadata["progress"])
        changed = [k for k, v in self.config.as_dict().items() if progress["config"].get(k) != v]
        if changed:
            raise ValueError(
                f"{self.path.parent}: holds a run with other settings ({', '.join(changed)}); use the same settings to resume, "
                "or another folder"
            )
        with torch.no_grad():
            for group, named in self.groups.items():
                for k, v in named.items():
                    v.copy_(tensors[f"{group}/{k}"])
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                slots.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        whole["state"] = slots
        self.optimizer.load_state_dict(whole)
        return progress["step"], progress["best"], progress["best_step"]
