"""What TCD Compare has found so far, without ComfyUI: as a picture, as CSV and in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .cells import Figures, Plan, Setting, caption, grey_levels, measure, recommend, record, table
from .sheet import Entry, batch_picture, draw

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Comparison:
    """Cells of a plan as they are finished; the reference, if there is one, comes before all of them."""

    plan: Plan
    common: dict[str, Any]  # columns of the CSV that all cells share
    reference: dict[str, Any] | None = None  # those of the reference
    size: int = 384  # of a picture on the sheet, at most
    pictures: dict[Setting | None, Tensor] = field(default_factory=dict)  # IMAGEs; None: the reference
    figures: dict[Setting | None, Figures] = field(default_factory=dict)
    small: dict[Setting | None, Image.Image] = field(default_factory=dict)

    def add(self, cell: Setting | None, images: Tensor, seconds: float) -> None:
        """`images [B, H, W, C]` in 0..1; cell None: the reference."""
        self.pictures[cell] = images
        self.small[cell] = batch_picture(grey_levels(images), self.size)
        known = None if cell is None else self.pictures.get(None)
        self.figures[cell] = measure(images, seconds, known)

    @property
    def finished(self) -> list[Setting]:
        return [cell for cell in self.plan.cells if cell in self.pictures]

    @property
    def recommended(self) -> Setting | None:
        return recommend({cell: self.figures[cell] for cell in self.finished}, self.figures.get(None))

    def sheet(self) -> Image.Image:
        columns = [f"{k} step{'s' * (k > 1)}" for k in self.plan.steps]
        rows: list[list[Entry]] = [[self._entry(cell) for cell in row] for row in self.plan.rows]
        if self.reference is not None:
            about = self.reference
            columns.insert(
                0, f"reference\n{about['sampler']}, {about['scheduler']}, {about['steps']} steps, "
                f"cfg {about['cfg']:g}"
            )  # fmt: skip
            rows = [[self._entry(None), *row] for row in rows]
        return draw(rows, self.plan.row_names(), columns, self._title(), self.size)

    def _title(self) -> str:
        parts = [f"TCD by steps and gamma: seed {self.common['seed']}, cfg {self.common['cfg']:g}"]
        if len(self.plan.strengths) == 1 and self.common.get("lora"):
            parts.append(f"{self.common['lora']} at {self.plan.strengths[0]:g}")
        elif self.common.get("lora"):
            parts.append(self.common["lora"])
        return ", ".join(parts)

    def _entry(self, cell: Setting | None) -> Entry:
        if cell not in self.pictures:
            return Entry(None)
        marked = cell is not None and cell == self.recommended
        text = caption(self.figures[cell]) + "  recommended" * marked
        return Entry(self.small[cell], text, marked)

    def csv(self) -> str:
        """Of the reference, then of the finished cells."""
        rows: list[dict[str, Any]] = []
        if self.reference is not None and None in self.figures:
            rows.append(record(self.figures[None], **{**self.common, **self.reference}))
        best = self.recommended
        for cell in self.finished:
            rows.append(record(self.figures[cell], cell, cell == best, **self.common))
        return table(rows)

    def words(self) -> list[str]:
        """What to say of it on the node."""
        count, best = len(self.plan.cells), self.recommended
        lines = [f"{len(self.finished)} of {count} cells"]
        if best is not None:
            found = self.figures[best]
            lines.append(
                f"recommended: {best.steps} steps, gamma {best.gamma:g}"
                + (f", order {best.order}" if self.plan.orders != ["1"] else "")
                + (f", LoRA strength {best.strength:g}" if len(self.plan.strengths) > 1 else "")
                + f" (distance {found.distance:.1f}, {found.seconds:.2f} s)"
            )
        elif self.reference is None:
            lines.append("no recommendation: reference_sampler is none, so there is nothing to be near to")
        return lines
