"""The labelled picture of TCD Compare, without ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..embedded.pictures import INK, MUTED, PAPER

if TYPE_CHECKING:
    from PIL import Image

BLANK, MARK = (236, 238, 242), (22, 130, 60)
GAP, CAPTION, MARGIN, HEADER = 12, 22, 16, 76
FRAME = 5


class Entry(NamedTuple):
    """One place of the sheet; picture None: it was not run."""

    picture: Image.Image | None
    caption: str = ""
    marked: bool = False


def batch_picture(images: Tensor, size: int) -> Image.Image:
    """A batch side by side, as square as can be, at most `size` wide and high; small ones grow by whole
    factors. `uint8 [B, H, W, 3]`.
    """
    from PIL import Image

    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    whole = Image.new("RGB", (columns * width, rows * height), BLANK)
    for i, image in enumerate(images):
        whole.paste(Image.fromarray(image.numpy()), (i % columns * width, i // columns * height))
    scale = size / max(whole.size)
    if scale >= 1:
        return whole.resize((whole.width * int(scale), whole.height * int(scale)), Image.Resampling.NEAREST)
    small = (max(1, round(whole.width * scale)), max(1, round(whole.height * scale)))
    return whole.resize(small, Image.Resampling.LANCZOS)


def draw(
    entries: Sequence[Sequence[Entry]], rows: Sequence[str], columns: Sequence[str], title: str, size: int
) -> Image.Image:
    """Rows of entries with their names; `size`: of a place if there is no picture yet.

    A name's first line is larger. Places that were not run are grey; the marked one has a frame.
    """
    from PIL import Image, ImageDraw, ImageFont

    large, font, small = (ImageFont.load_default(n) for n in (19, 16, 13))
    present = [e.picture for row in entries for e in row if e.picture is not None]
    height = max((p.height for p in present), default=size)
    widest = max((small.getlength(e.caption) for row in entries for e in row), default=0)
    names = [small.getlength(line) for name in columns for line in name.split("\n")[1:]]
    width = math.ceil(max([*(p.width for p in present), widest, *names, 60])) if present else size
    left = MARGIN + GAP + math.ceil(max(font.getlength(line) for r in rows for line in r.split("\n")))
    across, down = width + GAP, height + CAPTION + GAP
    room = MARGIN + math.ceil(large.getlength(title))
    sheet = Image.new(
        "RGB",
        (max(left + len(columns) * across, room) + MARGIN - GAP, HEADER + len(rows) * down + MARGIN),
        PAPER,
    )
    pen: Any = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 12), title, INK, large)
    for c, name in enumerate(columns):
        first, *more = name.split("\n")
        pen.text((left + c * across, 40), first, INK, font)
        pen.text((left + c * across, 59), " ".join(more), MUTED, small)
    for r, name in enumerate(rows):
        top = HEADER + 4 + r * down
        for i, line in enumerate(name.split("\n")):
            pen.text((MARGIN, top + 21 * i), line, INK if i == 0 else MUTED, font)
        for c, entry in enumerate(entries[r]):
            x, picture = left + c * across, entry.picture
            if picture is None:
                pen.rectangle((x, top, x + width - 1, top + height - 1), BLANK)
                pen.text((x + width / 2, top + height / 2), "not run", MUTED, small, anchor="mm")
                continue
            sheet.paste(picture, (x, top))
            pen.text((x, top + height + 4), entry.caption, MARK if entry.marked else MUTED, small)
            if entry.marked:
                corner = (x + picture.width + FRAME - 2, top + picture.height + FRAME - 2)
                pen.rectangle((x - FRAME + 1, top - FRAME + 1, *corner), outline=MARK, width=FRAME - 1)
    return sheet


def to_image(sheet: Image.Image) -> Tensor:
    """IMAGE `[1, H, W, 3]` in 0..1."""
    raw = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
    return raw.reshape(1, sheet.height, sheet.width, 3).float() / 255
