"""What a run writes while it trains: the log, validations, checkpoints and LoRAs."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..samplers import Order
from .config import DistillConfig
from .reading import Reading
from .report import Log, Progress, Validation, write_png
from .state import State
from .student import Student, save, swapped

LORA = "lora.safetensors"
BEST = "best.safetensors"

OnStep = Callable[[int, float], None]
"""`on_step(step, loss)`: may raise to stop the run, which then keeps what it has."""


class Recorder:
    """Reports each step once the device has finished it, and keeps the run's files up to date.

    `completed` is the number of steps that the weights stand for, None while an optimizer step changes them.
    Only the main process (rank 0) writes, validates and calls `on_step`.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: Student,
        average: Mapping[str, Tensor],
        checkpoint: State,
        folder: Path,
        *,
        validation: Validation | None,
        metadata: Mapping[str, str] | None,
        on_step: OnStep | None,
        quiet: bool,
        main: bool,
    ) -> None:
        self.config, self.student, self.average = config, student, average
        self.checkpoint, self.folder, self.main = checkpoint, folder, main
        self.validation = validation if main else None
        self.on_step = on_step if main else None
        settings = {f"tcd.{name}": json.dumps(value) for name, value in config.as_dict().items()}
        self.metadata = {**(metadata or {}), **settings}
        self.start, self.best, self.best_step = checkpoint.load()
        self.completed: int | None = self.start
        self.log = Log(folder / "log.jsonl", self.start, keep=main)
        self.loss: float = self.log.last.get("loss", math.nan)
        self.figure: float | None = self.log.last.get("validation")
        self.bar = None if quiet or not main else Progress(config.steps, self.start)
        self.pending: deque[Reading] = deque()

    def validation_due(self, step: int) -> bool:
        every = step % self.config.validate_every == 0 or step == self.config.steps
        return self.validation is not None and every

    def save_due(self, step: int) -> bool:
        return step % self.config.save_every == 0 or step == self.config.steps

    def catch_up(self) -> None:
        """Make the validation of the step that a resumed run begins at, if it was cut off."""
        last = self.log.last
        if self.validation_due(self.start) and last.get("step") == self.start and "validation" not in last:
            self.log.amend(**self.validate(self.start))
            self.checkpoint.save(self.start, self.best, self.best_step)

    def add(self, metrics: Reading, max_lag: int) -> None:
        """Take the metrics of a step; report them at most `max_lag` steps late, so that no device waits.

        All of them are reported before anything is validated or saved.
        """
        self.completed = step = metrics.step
        self.pending.append(metrics)
        saves = self.save_due(step)
        while len(self.pending) > (0 if saves or self.validation_due(step) else max_lag):
            self.report(self.pending.popleft())
        if saves and self.main:
            self.checkpoint.save(step, self.best, self.best_step)

    def report(self, metrics: Reading) -> None:
        """Log a step, validate if it is time, call `on_step`. ValueError for a loss that is not finite."""
        self.loss, norm = metrics.values
        if not metrics.finite:
            self.completed = None
            raise ValueError(
                f"loss {self.loss}, gradient norm {norm} at step {metrics.step}: the run diverged. Lower "
                f"learning_rate (now {self.config.learning_rate}) or w_max and start in another folder. "
                f"{self.checkpoint.kept()}"
            )
        if not self.main:
            return
        record = metrics.record()
        try:
            record |= self.validate(metrics.step) if self.validation_due(metrics.step) else {}
        finally:
            self.log.write(**record)
        if self.bar is not None:
            self.bar.show(metrics.step, self.loss, self.config.batch * self.config.accumulation)
        if self.on_step is not None:
            self.on_step(metrics.step, self.loss)

    def validate(self, step: int) -> dict[str, float]:
        """Return the figures of the averaged student, and keep its LoRA if it is the best so far."""
        assert self.validation is not None
        image, order = self.folder / f"step-{step:06d}.png", 2 if self.config.student == "tcf2" else 1
        trained = self.student.parameters()
        figures = validate(self.student, self.validation, trained, self.average, image, order)
        self.figure = figures["validation"]
        if math.isfinite(self.figure) and (self.best is None or self.figure < self.best):
            about = {"tcd.step": str(step), "tcd.validation": f"{self.figure:.6f}"}
            save(self.folder / BEST, self.average, self.student.lora, {**self.metadata, **about})
            self.best, self.best_step = self.figure, step
        return figures

    def keep(self) -> None:
        """Save what is whole after an interrupt, a full disk or a diverged run."""
        done = self.completed
        if done is None or done <= self.start or not self.main or not all(m.finite for m in self.pending):
            return
        for metrics in self.pending:
            self.log.write(**metrics.record())
        self.checkpoint.save(done, self.best, self.best_step)
        save(self.folder / LORA, self.average, self.student.lora, {**self.metadata, "tcd.step": str(done)})

    def finish(self) -> None:
        """Write the LoRA of a run that has made all its steps."""
        if not self.main:
            return
        about = {"tcd.step": str(self.config.steps)}
        if self.figure is not None:
            about["tcd.validation"] = f"{self.figure:.6f}"
        save(self.folder / LORA, self.average, self.student.lora, {**self.metadata, **about})


@torch.no_grad()
def validate(
    student: Student,
    validation: Validation,
    trained: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    path: Path,
    order: Order = 1,
) -> dict[str, float]:
    """Sample the averaged student with the map it was trained for, beside the teacher; write the image to
    `path` and return the figures.
    """
    with student.lora.off():
        validation.teacher()
    with swapped(trained, average):
        students = validation.student(student.predictor(validation.prompts), order)
    write_png(path, validation.picture(students))
    return validation.figure(students)
