"""One self-contained HTML page of a run: pictures, charts, table. Readable on a phone, light and dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .pictures import line_chart

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e24;--paper:#fff;--rule:#d8dbe2;--soft:#6e7480}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaf0;--paper:#16181d;--rule:#3a3f4a;--soft:#9aa1ae}}
body{margin:0 auto;max-width:62rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.15rem;margin-top:2rem}
img{width:100%;min-width:44rem;height:auto;
image-rendering:pixelated;border:1px solid var(--rule);border-radius:6px}
svg{width:100%;height:auto;font:12px system-ui,sans-serif}svg text{fill:currentColor}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th:first-child,td:first-child{text-align:left}p.note{color:var(--soft)}
"""

FLOORS = ("real", "autoencoder")  # what no method can beat
NAMES = {
    "tcd": "TCD (shipped LoRA)",
    "tcd_tuned": "TCD, gamma chosen on other prompts",
    "tcd_live": "TCD (just distilled)",
    "lcm": "LCM (shipped LoRA)",
    "ddim": "teacher, DDIM",
    "dpmpp_2s": "teacher, DPM-Solver++(2S)",
    "autoencoder": "floor: real pictures, autoencoded",
    "real": "real pictures",
}


def write_page(
    path: Path,
    title: str,
    intro: str,
    results: Mapping[str, Any],
    pictures: Sequence[tuple[str, Path]],
    loss: Sequence[tuple[float, float]],
) -> None:
    """`results` as in results.json; `pictures` as (caption, PNG); `loss` as (step, loss) of the live run."""
    rows: Sequence[Mapping[str, Any]] = results["rows"]
    gammas = {
        m: [r for r in rows if r["method"] == m and r.get("gamma") in (None, results["settings"]["gamma"])]
        for m in NAMES
    }
    curves = {
        NAMES[m]: [(r["steps"], r["frechet"]) for r in rs]
        for m, rs in gammas.items()
        if m not in FLOORS and rs
    }
    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>"]
    for caption, picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f'<h2>{html.escape(caption)}</h2><div class="wide"><img alt="{html.escape(caption)}" '
            f'src="data:image/png;base64,{data}"></div>'
        )
    parts.append(
        "<h2>Distance to real pictures, by steps</h2>"
        + line_chart(curves, x="steps", y="Frechet distance (lower is better)", log_x=True, log_y=True)
    )
    if loss:
        parts.append(
            "<h2>Loss of the distillation</h2>" + line_chart({"loss": loss}, x="step", y="loss", log_y=True)
        )
    parts.append("<h2>Figures</h2>" + _table(rows))
    settings = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>"
        for k, v in results["settings"].items()
    )
    parts.append(f'<h2>Settings</h2><div class="wide"><table>{settings}</table></div>')
    viewport = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f'<meta charset="utf-8">{viewport}<title>{html.escape(title)}</title>'
    path.write_text(
        f"<!doctype html><html "
        f'lang="en"><head>{head}<style>{STYLE}</style></head><body>{"".join(parts)}</body></html>',
        "utf-8",
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = (
        "method",
        "steps",
        "gamma",
        "Frechet distance",
        "95%",
        "complexity",
        "prompt words right",
        "samples",
    )
    head = "".join(f"<th>{n}</th>" for n in names)
    lines: list[str] = []
    for row in rows:
        low, high = row["frechet_ci"]
        gamma = "" if row.get("gamma") is None else f"{row['gamma']:g}"
        cells = (
            NAMES.get(row["method"], row["method"]),
            row.get("steps", ""),
            gamma,
            f"{row['frechet']:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{row['complexity']:.1f}%",
            f"{100 * row['prompt_accuracy']:.1f}%",
            row["samples"],
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in cells) + "</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
