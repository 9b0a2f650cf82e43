"""What a run shows of itself: a bar with loss, speed and time left, a JSONL log, pictures, and the figure it
is judged by.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from ..samplers import Order, Predict, plan, sample
from .backbone import Backbone, Cond, repeat, size
from .checkpoint import scratch_for, write_text, writing
from .objective import TimeGrid, solver_step, teacher_predictor

STUDENT_STEPS = (1, 2, 4, 8)


class Progress:
    """One line, rewritten in place: `[=====>    ] 120/400  loss 0.0123  85 samples/s  1:23 left`. Silent
    without a terminal's width.
    """

    def __init__(self, total: int, start: int, stream: TextIO | None = None, label: str = "distil") -> None:
        self.total, self.first, self.label = total, start, label
        self.stream = stream if stream is not None else sys.stderr
        self.began = time.monotonic()
        self.shown = 0.0

    def rate(self, step: int) -> float:
        """Steps a second since this process started."""
        return (step - self.first) / max(1e-9, time.monotonic() - self.began)

    def show(self, step: int, loss: float, samples_per_step: int) -> None:
        now = time.monotonic()
        live = self.stream.isatty()
        if step < self.total and now - self.shown < (0.2 if live else 10.0):
            return
        self.shown = now
        rate = self.rate(step)
        left = (self.total - step) / rate if rate else 0.0
        width = 24
        filled = width * step // self.total
        bar = "=" * filled + ">" * (filled < width) + " " * (width - filled - 1)
        line = (
            f"{self.label} [{bar}] {step}/{self.total}  loss {loss:.5f}  {rate * samples_per_step:.0f} "
            "samples/s  "
            f"{int(left) // 60}:{int(left) % 60:02d} left"
        )
        self.stream.write(("\r" + line + "\x1b[K") if live else line + "\n")
        if live and step == self.total:
            self.stream.write("\n")
        self.stream.flush()


class Log:
    """Records as JSON lines. After a resume, records past the checkpoint are dropped: they will be made
    again.
    """

    def __init__(self, path: Path, start: int, keep: bool = True) -> None:
        self.path = path
        kept = [line for line in read_log(path) if line["step"] <= start]
        self.last: dict[str, Any] = kept[-1] if kept else {}
        if keep:
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def amend(self, **more: Any) -> None:
        """Add to the last record of the run that is resumed."""
        self.last |= more
        kept = [*read_log(self.path)[:-1], self.last]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **record: Any) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a run; a last line that was cut is left out."""
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    for line in path.read_text("utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class Validation:
    """The same prompts and noise all along: the student at 1, 2, 4, 8 steps (gamma 0) beside the teacher's
    whole trajectory.

    The figure is the root mean square distance to the teacher's end point, averaged over those step counts.
    """

    def __init__(
        self, backbone: Backbone, prompts: Cond, uncond: Cond, grid: TimeGrid, w: float, noise: Tensor
    ) -> None:
        self.backbone, self.prompts, self.uncond, self.grid = backbone, prompts, uncond, grid
        self.w = torch.full((size(prompts),), w, dtype=torch.float64)
        self.noise = noise
        self.reference: Tensor | None = None

    def teacher(self) -> Tensor:
        """Where the guided teacher's DDIM over the whole grid ends. Computed once, with the adapters off."""
        if self.reference is None:
            guided = teacher_predictor(
                self.backbone, self.prompts, repeat(self.uncond, size(self.prompts)), self.w
            )
            x = self.noise
            for n in range(self.grid.n, 0, -1):
                now, down = self.grid.at(torch.tensor(n)), self.grid.at(torch.tensor(n - 1))
                x = solver_step(guided, x, now, down, "ddim", self.grid.schedule)
            self.reference = x
        return self.reference

    def student(self, predict: Predict, order: Order = 1) -> dict[int, Tensor]:
        """Latents by step count, on evenly spaced times of the training grid."""
        schedule = self.grid.schedule
        plans = {k: plan(schedule, self._times(k), 0.0) for k in STUDENT_STEPS if k <= self.grid.n}
        return {k: sample(predict, self.noise, p, no_noise, schedule, order) for k, p in plans.items()}

    def figure(self, students: dict[int, Tensor]) -> dict[str, float]:
        """Distance to the teacher by step count, and their mean as `validation`."""
        reference = self.teacher()
        by_steps = {
            f"distance_{k}": (x - reference).square().mean().sqrt().item() for k, x in students.items()
        }
        return {**by_steps, "validation": sum(by_steps.values()) / len(by_steps)}

    def picture(self, students: dict[int, Tensor], rows: int = 8) -> Tensor:
        """uint8 `[H, W, 3]`: a prompt a row; columns 1, 2, 4, 8 steps, then the teacher."""
        columns = [self.backbone.decode(x[:rows]) for x in (*students.values(), self.teacher())]
        return torch.cat([torch.cat(list(column), dim=0) for column in columns], dim=1)

    def _times(self, steps: int) -> list[float]:
        picked = [self.grid.n - i * self.grid.n // steps for i in range(steps)]
        return [float(self.grid.points.t[n]) for n in picked]


def no_noise() -> Tensor:
    """The noise source of a deterministic run."""
    raise AssertionError("gamma = 0 draws no noise")


def write_png(path: Path, picture: Tensor, scale: int = 1) -> None:
    """Save uint8 `[H, W, 3]`; needs Pillow, which the `demo` extra and every ComfyUI bring."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError('pictures need Pillow: pip install "trajectory-consistency[demo]"') from error
    image = Image.fromarray(picture.cpu().numpy())
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    with writing(path), scratch_for(path) as scratch:
        image.save(scratch, "png")
