"""What the figures of a reproduction say of the paper's claims, as Markdown: every verdict is computed, none
is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .page import FLOORS, NAMES

Row = Mapping[str, Any]


class Figure(NamedTuple):
    """A Frechet distance: mean over training seeds, the widest of their 95% intervals, and each seed's."""

    mean: float
    low: float
    high: float
    seeds: Mapping[int, tuple[float, float]]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Figure:
        """ValueError without rows: a claim about nothing."""
        rows = list(rows)
        if not rows:
            raise ValueError("no figures: run this part of the reproduction first")
        seeds = {i: tuple(r["frechet_ci"]) for i, r in enumerate(rows)}
        lows, highs = zip(*seeds.values(), strict=True)
        return cls(sum(r["frechet"] for r in rows) / len(rows), min(lows), max(highs), seeds)

    def below(self, other: Figure) -> bool:
        """At every training seed, beyond its intervals. The teacher, which has no seeds, counts for all."""
        count = max(len(self.seeds), len(other.seeds))
        mine, theirs = ([f.seeds[i if len(f.seeds) > 1 else 0] for i in range(count)] for f in (self, other))
        return all(a[1] < b[0] for a, b in zip(mine, theirs, strict=True))

    def __str__(self) -> str:
        return f"{self.mean:.0f} ({self.low:.0f} to {self.high:.0f})"


class Verdict(NamedTuple):
    """A claim, whether it holds, and the figures behind it."""

    claim: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        return f"* **{'Holds' if self.holds else 'Does not hold'}**: {self.claim}. {self.figures}"


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [r for r in rows if all(r.get(k) == v for k, v in wanted.items())]


def claims(rows: Sequence[Row], close: Sequence[Row] = ()) -> list[Verdict]:
    """Claims 1 to 3, of Table 1's rows: TCD and LCM at every seed, the teacher's solvers once.

    TCD and LCM are compared by the rows of `close` at the step counts that it has: those of more samples.
    """

    def at(method: str, steps: int) -> Figure:
        return Figure.of(pick(rows, method=method, steps=steps))

    def beats(one: str, other: str, steps: Sequence[int]) -> tuple[bool, str]:
        pairs = [(k, at(one, k), at(other, k)) for k in steps]
        figures = "; ".join(f"{a} against {b} at {k}" for k, a, b in pairs)
        return all(a.below(b) for _, a, b in pairs), figures + "."

    def nearer(tcd: str, steps: Sequence[int]) -> tuple[bool, str]:
        """TCD against LCM."""
        settled = {r["steps"] for r in close}
        apart, figures = beats(tcd, "lcm", [k for k in steps if k not in settled])
        for k in sorted(settled):
            mine, theirs = (Figure.of(pick(close, method=m, steps=k)) for m in (tcd, "lcm"))
            count = pick(close, steps=k)[0]["samples"]
            apart &= mine.below(theirs)
            figures = f"{mine} against {theirs} at {k} ({count} samples); " + figures
        return apart, figures

    few, some, many = 4, 8, 20
    lcm = at("lcm", some), at("lcm", many)
    said = [Verdict("LCM gets worse from 8 to 20 steps", lcm[0].below(lcm[1]), f"{lcm[0]}, then {lcm[1]}.")]
    for tcd in (m for m in ("tcd", "tcd_tuned") if pick(rows, method=m)):
        name = {"tcd": "TCD", "tcd_tuned": "TCD with its gamma chosen on other prompts"}[tcd]
        later = sorted({r["steps"] for r in pick(rows, method=tcd)} - {1})
        ends, eight, converged = (at(tcd, few), at(tcd, many)), at(tcd, some), at("ddim", many)
        said += [
            Verdict(f"{name} is below LCM from 2 steps up, beyond the intervals", *nearer(tcd, later)),
            Verdict(
                f"{name} at 20 steps is not worse than at 4",
                not ends[0].below(ends[1]),
                f"{ends[0]}, then {ends[1]}.",
            ),
            Verdict(f"{name} at 4 steps beats DDIM at 4", *beats(tcd, "ddim", [few])),
            Verdict(f"{name} at 4 steps beats DPM-Solver++(2S) at 4", *beats(tcd, "dpmpp_2s", [few])),
            Verdict(
                f"{name} at 8 steps is at least as good as DDIM at 20 with the same guidance",
                not converged.below(eight),
                f"{eight} against {converged}.",
            ),
        ]
    return said


def by_steps(rows: Sequence[Row], measure: str | None = None) -> str:
    """Table 1: methods by steps; Frechet distances with intervals, or the mean of another measure."""
    steps = sorted({r["steps"] for r in rows if r["method"] not in FLOORS})
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m not in FLOORS]

    def cell(method: str, count: int) -> str:
        some = pick(rows, method=method, steps=count)
        return str(Figure.of(some)) if measure is None else f"{_mean(some, measure):.3g}"

    lines = [[_name(m), *(cell(m, k) for k in steps)] for m in methods]
    return _markdown(["steps", *map(str, steps)], lines)


def by_gamma(rows: Sequence[Row], measure: str = "frechet", digits: int = 0) -> str:
    """Figure 6: a measure by gamma (columns) and steps (rows), mean over seeds; the best distance is bold."""
    gammas = sorted({r["gamma"] for r in rows})
    lines: list[list[str]] = []
    for count in sorted({r["steps"] for r in rows}):
        means = [_mean(pick(rows, steps=count, gamma=g), measure) for g in gammas]
        best = min(means) if measure == "frechet" else None
        cells = [f"{m:.{digits}f}" for m in means]
        lines.append(
            [str(count), *(f"**{c}**" if m == best else c for m, c in zip(means, cells, strict=True))]
        )
    return _markdown(["steps \\ gamma", *(f"{g:g}" for g in gammas)], lines)


def best_gammas(rows: Sequence[Row]) -> str:
    """For each kind of student and step count: the best gamma of each seed, what it gains over 0, and what 1
    costs.
    """
    lines: list[list[str]] = []
    for method in dict.fromkeys(r["method"] for r in rows):
        for count in sorted({r["steps"] for r in pick(rows, method=method)}):
            runs: list[dict[float, float]] = []
            for seed in sorted({r.get("seed", 0) for r in rows}):
                some = [r for r in pick(rows, method=method, steps=count) if r.get("seed", 0) == seed]
                if some:
                    runs.append({r["gamma"]: r["frechet"] for r in some})
            least = [min(run, key=lambda g: run[g]) for run in runs]
            gains = [run[0.0] - run[g] for run, g in zip(runs, least, strict=True)]
            costs = [run[1.0] - run[g] for run, g in zip(runs, least, strict=True)]
            best = ", ".join(f"{g:g}" for g in least)
            lines.append(
                [method, str(count), best, f"{sum(gains) / len(gains):.0f}", f"{sum(costs) / len(costs):.0f}"]
            )
    return _markdown(["student", "steps", "best gamma (each seed)", "gain over 0", "cost of 1"], lines)


def forms(rows: Sequence[Row]) -> str:
    """Table 2: the three forms of the student at 4 steps."""
    names = {"tcd": "TCF(1)", "tcf2": "TCF(2), two evaluations a step", "tcfs": "TCF(S+)"}
    lines = [
        [names[m], str(Figure.of(some)), f"{100 * _mean(some, 'prompt_accuracy'):.1f}%"]
        for m in names
        if (some := pick(rows, method=m))
    ]
    return _markdown(["student", "Frechet distance", "prompt accuracy"], lines)


def rates(rows: Sequence[Row]) -> str:
    """TCF(2) by learning rate, beside TCF(1)."""
    names = {"tcd": "TCF(1)", "tcf2": "TCF(2)"}
    lines = [
        [
            names[r["method"]],
            f"{r['rate']:g}" if r["rate"] else "not trained",
            f"{r['frechet']:.0f}",
            f"{r['frechet_to_teacher']:.0f}",
            f"{100 * r['prompt_accuracy']:.1f}%",
        ]
        for r in rows
    ]
    head = ["student", "learning rate", "to the data", "to the guided teacher's pictures", "prompt accuracy"]
    return _markdown(head, lines)


def guidance(rows: Sequence[Row]) -> str:
    """The teacher's solvers over guidance."""
    columns = list(dict.fromkeys((r["method"], r["steps"]) for r in rows))
    most = max(k for _, k in columns)
    lines: list[list[str]] = []
    for cfg in dict.fromkeys(r["cfg"] for r in rows):
        cells = [str(Figure.of(pick(rows, cfg=cfg, method=m, steps=k))) for m, k in columns]
        obeyed = _mean(pick(rows, cfg=cfg, method="ddim", steps=most), "prompt_accuracy")
        lines.append([f"{cfg:g}", *cells, f"{100 * obeyed:.1f}%"])
    return _markdown(["cfg", *(f"{_name(m)}, {k}" for m, k in columns), "prompt accuracy"], lines)


def report(sections: Mapping[str, Sequence[Row]], settings: Mapping[str, Any]) -> str:
    """Everything that is measured so far."""
    parts = [
        "# Figures of the reproduction",
        "",
        f"Made by `{settings['command']}`; all rows in `results.json`.",
    ]
    if table := sections.get("table1"):
        close = [r for r in sections.get("close", []) if r["method"] not in FLOORS]
        floor = Figure.of(pick(table, method="autoencoder"))
        seeds = len({r.get("seed", 0) for r in table})
        parts += [
            "",
            f"Frechet distance, mean over {seeds} training seeds (widest 95% interval of them; claims are "
            f"judged seed by seed), "
            f"{settings['samples']} samples; {settings['iterations']} iterations for each student, cfg "
            f"{settings['cfg']:g}, gamma {settings['gamma']:g}, learning rates {settings['best_rates']} of "
            f"{settings['rates']}. The floor, other real pictures: {floor}.",
            "", "## Table 1: methods by steps", "", by_steps(table), "", *map(str, claims(table, close)),
            "", "Share of the prompts' words that the classifier finds:", "",
            by_steps(table, "prompt_accuracy"), "", "Edges, percent:", "", by_steps(table, "complexity"),
        ]  # fmt: skip
    if rows := sections.get("teacher"):
        parts += ["", "## The teacher by guidance", "", guidance(rows)]
    if rows := sections.get("figure6"):
        parts += [
            "", "## Figure 6: gamma by steps", "", "Frechet distance:", "", by_gamma(rows),
            "", "Prompt accuracy:", "", by_gamma(rows, "prompt_accuracy", 3), "", "Edges, percent:", "",
            by_gamma(rows, "complexity", 1),
        ]  # fmt: skip
        others = sections.get("variants", [])
        parts += ["", best_gammas([*rows, *others])]
        for name in dict.fromkeys(r["method"] for r in others):
            some = pick(others, method=name)
            parts += ["", f"### {name}", "", by_gamma(some)]
            if all("spread" in r for r in some):
                said = "Spread of the samples, in units of that of what they are compared with:"
                parts += ["", said, "", by_gamma(some, "spread", 2)]
    if rows := sections.get("table2"):
        parts += ["", "## Table 2: forms of the student, 4 steps", "", forms(rows)]
    if rows := sections.get("rates"):
        about = f"Frechet distances by learning rate, seed 0, {rows[0]['samples']} other samples:"
        parts += ["", about, "", rates(rows)]
    for setting, head, by, unit in (
        ("reuse", "Pairs used again", "how often each pair of it is used", "times"),
        ("consecutive", "Pairs in a row", "how many in a row are used together", "in a row"),
    ):
        if rows := sections.get(setting):
            said = f"Frechet distance to the guided teacher's pictures, by {by}:"
            named = [{**r, "method": f"{r[setting]} {unit}"} for r in rows]
            parts += ["", f"## {head}", "", said, "", by_steps(named)]
    if rows := sections.get("flow"):
        said = (
            "The same network by velocities, distilled and sampled as a flow model; Frechet distance to what "
            "it draws guided, by Euler's method, in 20 steps:"
        )
        gammas = {r["gamma"] for r in rows} - {None}
        names = {None: "teacher, Euler"} | {g: f"TCD, gamma {g:g}" for g in gammas}
        named = [{**r, "method": names[r["gamma"]]} for r in rows]
        parts += ["", "## As a flow model", "", said, "", by_steps(named)]
        parts += ["", "Prompt accuracy:", "", by_steps(named, "prompt_accuracy")]
    return "\n".join(parts) + "\n"


def _name(method: str) -> str:
    return NAMES.get(method, method).removesuffix(" (shipped LoRA)")


def _mean(rows: Sequence[Row], measure: str) -> float:
    return sum(r[measure] for r in rows) / len(rows)


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])
