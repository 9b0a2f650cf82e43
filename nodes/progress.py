"""What a run tells the page while it trains: the bar with a preview, a line on the node, the panel's data."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths

from ..training.config import DistillConfig
from ..training.report import read_log
from .api import prompt_server
from .lora import show

EVENT = "tcd.distill"
EVERY = 0.5
"""Seconds between two messages, at least."""
POINTS = 200
"""Of the loss curve that is sent."""
_latest: dict[str, dict[str, Any]] = {}


class Monitor:
    """Called after each step; raises the host's interrupt. As a context it says how the run ended."""

    def __init__(self, node: str | None, run: str, folder: Path, config: DistillConfig) -> None:
        self.node, self.run, self.folder, self.config = node, run, folder, config
        self.bar = comfy.utils.ProgressBar(config.steps)
        self.first: tuple[int, float] | None = None
        self.step, self.loss, self.sent = 0, math.nan, 0.0
        self.losses = [(r["step"], r["loss"]) for r in read_log(folder / "log.jsonl")]
        self.state, self.message = "starting", "encoding the prompts, the teacher's first trajectories"
        self.images: list[dict[str, Any]] = self._pictures()
        self.plan = ""

    def __enter__(self) -> Monitor:
        self.send(force=True)
        return self

    def __call__(self, step: int, loss: float) -> None:
        self.first = self.first or (step - 1, time.monotonic())
        self.state, self.step, self.loss, self.message = "training", step, loss, self.plan
        self.losses.append((step, loss))
        new = self._pictures() if step % self.config.validate_every == 0 else self.images
        preview = self._preview(new[-1]) if len(new) > len(self.images) else None
        self.images = new
        self.send()
        self.bar.update_absolute(step, self.config.steps, preview)
        comfy.model_management.throw_exception_if_processing_interrupted()

    def drawing(self, done: int, steps: int) -> None:
        """The teacher makes the pairs of the next steps."""
        self.message = f"the teacher draws what comes next: step {done} of {steps}"
        self.send()

    def planned(self, plan: str) -> None:
        """What the training needs and how it was made to fit: shown from now on."""
        self.plan = self.message = plan
        self.send(force=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self.state, self.step = "done", self.config.steps
        elif issubclass(kind, comfy.model_management.InterruptProcessingException):
            self.state, self.message = "stopped", "stopped; queue it again to go on"
        else:
            self.state, self.message = "failed", str(error)
        self.images = self._pictures()
        self.send(force=True)

    def summary(self) -> str:
        """One line for the node."""
        speed, left = self.speed()
        parts = [f"{self.state}: step {self.step} of {self.config.steps}"]
        if math.isfinite(self.loss):
            parts.append(f"loss {self.loss:.5f}")
        if speed is not None and self.state == "training":
            parts.append(f"{speed:.3g} samples/s")
        if left is not None and self.state == "training":
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        return ", ".join([*parts, self.message] if self.message else parts)

    def speed(self) -> tuple[float | None, float | None]:
        """Samples a second of this session, and seconds left; None before the second step."""
        if self.first is None or self.step <= self.first[0] + 1:
            return None, None
        rate = (self.step - self.first[0] - 1) / max(1e-9, time.monotonic() - self.first[1])
        return rate * self.config.batch * self.config.accumulation, (self.config.steps - self.step) / rate

    def data(self) -> dict[str, Any]:
        """What the panel shows."""
        speed, left = self.speed()
        thin = max(1, -(-len(self.losses) // POINTS))
        return {
            "node": self.node,
            "run": self.run,
            "state": self.state,
            "step": self.step,
            "steps": self.config.steps,
            "loss": self.loss if math.isfinite(self.loss) else None,
            "samples_per_second": speed,
            "seconds_left": left,
            "message": self.message,
            "images": self.images,
            "losses": [list(p) for p in self.losses[::thin]],
        }

    def send(self, force: bool = False) -> None:
        """To the page, not more often than it can be read; kept for a page that is loaded later."""
        now = time.monotonic()
        if self.node is None or (not force and now - self.sent < EVERY):
            return
        self.sent = now
        _latest[self.node] = data = self.data()
        server = prompt_server()
        if server is not None:
            server.send_sync(EVENT, data)
        show(self.summary(), self.node)

    def _pictures(self) -> list[dict[str, Any]]:
        output = Path(folder_paths.get_output_directory())
        return [
            {
                "step": int(path.stem.removeprefix("step-")),
                "filename": path.name,
                "subfolder": path.parent.relative_to(output).as_posix(),
                "type": "output",
            }
            for path in sorted(self.folder.glob("step-*.png"))
        ]

    def _preview(self, image: dict[str, Any]) -> tuple[str, Any, int] | None:
        from PIL import Image

        with Image.open(self.folder / image["filename"]) as opened:
            return "JPEG", opened.convert("RGB"), 512


def latest(node: str) -> dict[str, Any] | None:
    """The last message of a node in this server's life."""
    return _latest.get(node)


def runs() -> list[dict[str, Any]]:
    """The last message of each node in this server's life."""
    return list(_latest.values())
