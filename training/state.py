"""The checkpoint of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import load_tensors, save_tensors, sweep
from .config import DistillConfig
from .optimizer import learning_rate
from .processes import ALONE, Crew, Stored

SAME = ("checkpointing", "compile")
"""Settings that change how a result is computed, and not the result."""
RATES = ("steps", "warmup", "decay")
"""Settings that decide nothing but the learning rates: a run may go on with others where those of the steps
that are done stay the same."""
BEFORE = {"consecutive": 1}
"""What checkpoints did that do not name a setting, where its default is another."""
INT = ":int"
"""After the name of an optimizer's whole number, which a file holds as a tensor."""


@torch.no_grad()
def approach(average: Mapping[str, Tensor], ahead: Mapping[str, Tensor], decay: float) -> None:
    """`average <- decay average + (1 - decay) ahead`, in place, name by name."""
    for name, value in average.items():
        value.lerp_(ahead[name], 1 - decay)


def check_rates(folder: Path, begun: DistillConfig, config: DistillConfig, done: int) -> None:
    """Check that a run that was `begun` with other `steps`, `warmup` or `decay` may go on from `done` steps:
    only if an unbroken run with these would have made the same steps. ValueError says how to train on.
    """
    if config.steps < done:
        raise ValueError(
            f"{folder}: holds a run of {done} steps, more than steps = {config.steps}; ask for {done} or "
            "more, or choose another folder"
        )
    if _same_rates(begun, config, done):
        return
    changed = [name for name in RATES if getattr(begun, name) != getattr(config, name)]
    kept, given = (", ".join(f"{name} = {getattr(of, name)}" for name in changed) for of in (begun, config))
    refused = f"{folder}: holds {done} steps of a run with {kept}; {given} would have given them other rates"
    if config.steps > begun.warmup and _same_rates(begun, replace(begun, steps=config.steps), done):
        wanted = ", ".join(f"{name} = {getattr(begun, name)}" for name in changed if name != "steps")
        raise ValueError(f"{refused}. Set {wanted} to train on to steps = {config.steps}")
    resume = "train" if done == begun.steps else f"set {kept} to go on with it, or train"
    raise ValueError(
        f"{refused}: decay = {begun.decay} lowers the learning rate to 0 over all steps. What you can do: "
        f"{resume} {config.steps} steps in another folder. A run with decay = constant may be trained on"
    )


def _same_rates(one: DistillConfig, other: DistillConfig, steps: int) -> bool:
    return all(learning_rate(one, step) == learning_rate(other, step) for step in range(steps))


class State:
    """All that a resume needs: weights in named `groups` (of the student, its average, what an objective
    keeps), optimizer, step, settings. Written whole or not at all.
    """

    def __init__(
        self,
        path: Path,
        config: DistillConfig,
        groups: Mapping[str, Mapping[str, Tensor]],
        optimizer: torch.optim.Optimizer,
        crew: Crew = ALONE,
    ) -> None:
        self.path, self.config, self.groups = path, config, groups
        self.optimizer, self.crew = optimizer, crew

    def save(self, step: int, best: float | None, best_step: int | None) -> None:
        tensors = {f"{group}/{k}": v for group, named in self.groups.items() for k, v in named.items()}
        # torch's own: bitsandbytes' hides some of its tensors a level deeper
        for i, slots in torch.optim.Optimizer.state_dict(self.optimizer)["state"].items():
            for k, v in slots.items():
                whole = isinstance(v, int)  # bitsandbytes counts steps so
                tensors[f"optimizer/{i}/{k}{INT * whole}"] = torch.tensor(v) if whole else v
        progress = {"step": step, "best": best, "best_step": best_step, "config": self.config.as_dict()}
        save_tensors(self.path, tensors, {"progress": json.dumps(progress)})

    def kept(self) -> str:
        """Where the last good weights are, for messages."""
        if not self.path.is_file():
            return "Nothing had been saved yet"
        return f"The last good checkpoint is whole: {self.path}"

    def _read(self) -> Stored:
        sweep(self.path.parent)
        return load_tensors(self.path) if self.path.is_file() else ({}, {})

    def load(self) -> tuple[int, float | None, int | None]:
        """Put everything back; `(steps done, best figure, its step)`, or zeros for a fresh folder."""
        tensors, metadata = self.crew.told(self._read)
        if not tensors:
            return 0, None, None
        if "progress" not in metadata:
            raise ValueError(f"{self.path}: not a checkpoint of a run; move it away or choose another folder")
        progress = json.loads(metadata["progress"])
        # What the checkpoint does not name is newer than it.
        usual: dict[str, Any] = {f.name: f.default for f in fields(self.config)} | BEFORE
        before: dict[str, Any] = {**usual, **progress["config"]}
        now = self.config.as_dict()
        changed = [k for k, v in now.items() if before[k] != v and k not in SAME]
        if before["batch"] * before["accumulation"] == now["batch"] * now["accumulation"]:
            # The same samples, cut otherwise: a run may go on in smaller parts on a smaller card.
            changed = [k for k in changed if k not in ("batch", "accumulation")]
        if not set(changed) <= set(RATES):
            raise ValueError(
                f"{self.path.parent}: holds a run with other settings ({', '.join(changed)}); use the "
                "same settings to resume, "
                "or another folder"
            )
        begun = DistillConfig.from_mapping({name: before[name] for name in now})
        check_rates(self.path.parent, begun, self.config, progress["step"])
        wanted = {f"{group}/{k}": v for group, named in self.groups.items() for k, v in named.items()}
        shapes = {k: v.shape for k, v in tensors.items() if not k.startswith("optimizer/")}
        if shapes != {k: v.shape for k, v in wanted.items()}:
            raise ValueError(f"{self.path.parent}: holds a run on another network; choose another folder")
        with torch.no_grad():
            for k, v in wanted.items():
                v.copy_(tensors[k])
        slots: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                slots.setdefault(int(index), {})[name.removesuffix(INT)] = (
                    int(value) if name.endswith(INT) else value
                )
        whole = self.optimizer.state_dict()
        whole["state"] = slots
        self.optimizer.load_state_dict(whole)
        return progress["step"], progress["best"], progress["best_step"]
