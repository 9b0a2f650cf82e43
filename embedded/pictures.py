"""Contact sheets of pixel avatars, and line charts as SVG text."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INK, PAPER, MUTED = (28, 30, 36), (255, 255, 255), (110, 116, 128)


def tile(images: Tensor, columns: int, scale: int) -> Tensor:
    """`[B, H, W, 3]` in rows of `columns`, each pixel `scale` wide, one pixel of paper between."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = torch.full(
        (rows * (height * scale + 2), columns * (width * scale + 2), 3), 255, dtype=torch.uint8
    )
    big = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for i, image in enumerate(big):
        top, left = (i // columns) * (height * scale + 2), (i % columns) * (width * scale + 2)
        sheet[top : top + height * scale, left : left + width * scale] = image
    return sheet


def table_picture(
    cells: Sequence[Sequence[Tensor | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """A labelled table of pictures as PNG. `cells[r][c]` uint8 `[H, W, 3]`, all of one size, or None for an
    empty cell.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(c.shape[:2] for row in cells for c in row if c is not None)
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    left = 24 + max(int(font.getlength(line)) for r in rows for line in r.split("\n"))
    top, gap = 84, 12
    sheet = Image.new(
        "RGB", (left + len(columns) * (width + gap) + gap, top + len(rows) * (height + gap) + gap), PAPER
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((12, 12), title, INK, font)
    for c, name in enumerate(columns):
        draw.text((left + gap + c * (width + gap) + width // 2, top - 14), name, MUTED, small, anchor="mm")
    for r, name in enumerate(rows):
        y = top + r * (height + gap)
        for i, line in enumerate(name.split("\n")):
            draw.text((12, y + 8 + 24 * i), line, INK if i == 0 else MUTED, font if i == 0 else small)
        for c, cell in enumerate(cells[r]):
            if cell is not None:
                sheet.paste(Image.fromarray(cell.numpy()), (left + gap + c * (width + gap), y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    log_y: bool = False,
    log_x: bool = False,
) -> str:
    """An SVG chart of `name -> [(x, y), ...]`; colours follow the text colour and a fixed row of hues."""
    import math

    hues = ("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5", "#0b7285", "#868e96", "#c2255c")
    points = [p for line in series.values() for p in line]
    if not points:
        raise ValueError("nothing to draw: no series has a point")
    fx = math.log if log_x else float
    fy = math.log if log_y else float
    xs, ys = [fx(p[0]) for p in points], [fy(p[1]) for p in points]
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    width, height, pad = 640, 320, 60

    def place(p: tuple[float, float]) -> tuple[float, float]:
        across = (fx(p[0]) - x0) / (x1 - x0 or 1)
        up = (fy(p[1]) - y0) / (y1 - y0 or 1)
        return round(pad + across * (width - 2 * pad), 1), round(height - pad - up * (height - 2 * pad), 1)

    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y)} by {html.escape(x)}">'
    ]
    out.append(
        f'<path d="M{pad} {pad / 2}V{height - pad}H{width - pad / 2}" fill="none" stroke="currentColor" '
        'opacity=".4"/>'
    )
    across = sorted({p[0] for p in points})
    for value in across if len(across) <= 9 else (across[0], across[-1]):
        px, _ = place((value, points[0][1]))
        out.append(f'<text x="{px}" y="{height - pad + 18}" text-anchor="middle">{value:g}</text>')
    for value in (min(p[1] for p in points), max(p[1] for p in points)):
        _, py = place((points[0][0], value))
        out.append(f'<text x="{pad - 6}" y="{py + 4}" text-anchor="end">{_short(value)}</text>')
    out.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x)}</text>')
    out.append(f'<text x="{pad}" y="14">{html.escape(y)}</text>')
    for i, (name, line) in enumerate(series.items()):
        hue = hues[i % len(hues)]
        path = " ".join(f"{'M' if j == 0 else 'L'}{px} {py}" for j, (px, py) in enumerate(map(place, line)))
        out.append(f'<path d="{path}" fill="none" stroke="{hue}" stroke-width="2"/>')
        if len(line) <= 12:
            out += [f'<circle cx="{px}" cy="{py}" r="3" fill="{hue}"/>' for px, py in map(place, line)]
        out.append(
            f'<text x="{width - pad}" y="{18 + 16 * i}" text-anchor="end" '
            f'style="fill:{hue}">{html.escape(name)}</text>'
        )
    return "".join(out) + "</svg>"


def _short(value: float) -> str:
    """Three digits, without an exponent where that is short."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Records as a plain table, right-aligned."""
    body = [[_cell(row.get(c)) for c in columns] for row in rows]
    widths = [max([len(c), *(len(line[i]) for line in body)]) for i, c in enumerate(columns)]
    lines = [
        "  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in [list(columns), *body]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return "-".join(f"{v:.1f}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
