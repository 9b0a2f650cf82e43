"""Verdicts follow the figures."""

from typing import Any

import pytest

from comfyui_tcd.embedded.claims import (
    Figure,
    best_gammas,
    by_gamma,
    by_steps,
    claims,
    forms,
    guidance,
    report,
)

PAPER = {  # a world in which every claim holds
    "ddim": {2: 500, 4: 300, 8: 200, 20: 150},
    "dpmpp_2s": {2: 400, 4: 250, 8: 180, 20: 150},
    "lcm": {2: 250, 4: 230, 8: 240, 20: 300},
    "tcd": {2: 200, 4: 170, 8: 150, 20: 140},
}
SETTINGS: dict[str, Any] = {
    "samples": 2000, "iterations": 800, "cfg": 3.0, "gamma": 0.3, "best_rates": {"tcd": 5e-4},
    "rates": [5e-4], "command": "make reproduce",
}  # fmt: skip


def row(method: str, steps: int, distance: float, **more: Any) -> dict[str, Any]:
    return {
        "method": method, "steps": steps, "frechet": float(distance),
        "frechet_ci": [distance - 5.0, distance + 5.0], "prompt_accuracy": 0.9, "complexity": 40.0, **more,
    }  # fmt: skip


def world(**changed: dict[int, int]) -> list[dict[str, Any]]:
    figures = {m: {**v, **changed.get(m, {})} for m, v in PAPER.items()}
    seeds = {"tcd": (0, 1, 2), "lcm": (0, 1, 2), "ddim": (0,), "dpmpp_2s": (0,)}
    rows = [
        row(m, k, d + seed, seed=seed, gamma=None)
        for m, v in figures.items()
        for k, d in v.items()
        for seed in seeds[m]
    ]
    return [*rows, row("autoencoder", 0, 80, seed=0)]


def holds(**changed: dict[int, int]) -> list[bool]:
    return [verdict.holds for verdict in claims(world(**changed))]


def test_every_claim_holds_in_the_papers_world():
    assert holds() == [True] * 6


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({"lcm": {4: 172}}, {1}),  # inside the intervals at one step count
        ({"lcm": {8: 310}}, {0}),
        ({"tcd": {20: 190}}, {2}),
        ({"ddim": {4: 150}}, {3}),
        ({"dpmpp_2s": {4: 175}}, {4}),
        ({"ddim": {20: 120}}, {5}),
    ],
)
def test_each_claim_falls_with_its_figure(changed: dict[str, dict[int, int]], fails: set[int]):
    assert {i for i, true in enumerate(holds(**changed)) if not true} == fails


def test_a_tuned_gamma_is_judged_beside_the_usual_one():
    tuned = [row("tcd_tuned", k, d - 20, seed=0, gamma=0.0) for k, d in PAPER["tcd"].items()]
    verdicts = claims([*world(dpmpp_2s={4: 165}), *tuned])
    assert len(verdicts) == 11
    assert [v.claim for v in verdicts if not v.holds] == ["TCD at 4 steps beats DPM-Solver++(2S) at 4"]


def test_more_samples_settle_what_is_close():
    touching = world(lcm={2: 205})
    apart = [row(m, 2, d, samples=10_000) for m, d in (("tcd", 190), ("lcm", 204)) for _ in range(3)]
    assert not claims(touching)[1].holds
    settled = claims(touching, apart)[1]
    assert (
        settled.holds and "190 (185 to 195) against 204 (199 to 209) at 2 (10000 samples)" in settled.figures
    )
    assert not claims(world(lcm={4: 172}), apart)[1].holds  # the others are still judged
    assert not claims(touching, [{**r, "frechet_ci": [150.0, 250.0]} for r in apart])[1].holds


def test_a_figure_is_the_mean_with_the_widest_interval():
    figure = Figure.of([row("tcd", 4, 100), row("tcd", 4, 110)])
    assert figure[:3] == (105.0, 95.0, 115.0) and str(figure) == "105 (95 to 115)"


def test_figures_are_compared_seed_by_seed():
    def figure(*distances: float) -> Figure:
        return Figure.of([row("tcd", 4, d) for d in distances])

    assert figure(100, 200).below(figure(120, 220))  # though 200 is above 120
    assert not figure(100, 200).below(figure(120, 205))
    assert figure(100, 110).below(figure(130)) and not figure(100, 125).below(figure(130))
    with pytest.raises(ValueError, match="run this part"):
        Figure.of([])


def test_tables_hold_every_cell():
    lines = by_steps(world()).splitlines()
    assert lines[0] == "| steps | 2 | 4 | 8 | 20 |" and len(lines) == 6
    assert "| TCD | 201 (195 to 207) |" in lines[5]
    rows = [row("tcd", 4, 100 + 50 * g, gamma=g, seed=s) for g in (0.0, 0.5, 1.0) for s in (0, 1)]
    assert by_gamma(rows).splitlines()[2] == "| 4 | **100** | 125 | 150 |"
    rows[0]["frechet"] = 180.0  # seed 0 is now best at 0.5
    assert best_gammas(rows).splitlines()[2] == "| tcd | 4 | 0.5, 0 | 28 | 38 |"
    assert "TCF(2)" in forms([row("tcf2", 4, 90)]) and "TCF(S+)" not in forms([row("tcf2", 4, 90)])
    teacher = [row("ddim", k, 90 + k, cfg=c) for c in (1.0, 3.0) for k in (4, 20)]
    assert guidance(teacher).splitlines()[2] == "| 1 | 94 (89 to 99) | 110 (105 to 115) | 90.0% |"


def test_a_report_of_a_part_says_nothing_of_the_rest():
    text = report({"table1": world()}, SETTINGS)
    assert text.count("**Holds**") == 6 and "Figure 6" not in text and "80 (75 to 85)" in text
    assert "Table 2" in report({"table2": [row("tcd", 4, 90)]}, SETTINGS)
    more = {"samples": 1000, "frechet_to_teacher": 156.3}
    by_rate = [{**row("tcf2", 4, 60), "rate": rate, **more} for rate in (0.0, 1e-4)]
    text = report({"rates": by_rate}, SETTINGS)
    assert "| TCF(2) | not trained | 60 | 156 |" in text and "| TCF(2) | 0.0001 | 60 | 156 |" in text
    near = [row("near", 4, 90, gamma=g, spread=0.876 + g / 10) for g in (0.0, 1.0)]
    text = report({"figure6": [row("tcd", 4, 80, gamma=g) for g in (0.0, 1.0)], "variants": near}, SETTINGS)
    assert "### near" in text and "| 4 | 0.88 | 0.98 |" in text
    again = [row("tcd", 4, 60 + n + seed, reuse=n, seed=seed) for n in (2, 4) for seed in (0, 1)]
    assert "| 4 times | 64 (59 to 70) |" in report({"reuse": again}, SETTINGS)
    rows = [row("tcd", 4, 60 + n, consecutive=n, seed=0) for n in (1, 2)]
    assert "| 2 in a row | 62 (57 to 67) |" in report({"consecutive": rows}, SETTINGS)
    text = report({"flow": [row("euler", 4, 150, gamma=None), row("tcd", 4, 60, gamma=0.3)]}, SETTINGS)
    assert "| teacher, Euler | 150 (145 to 155) |" in text and "| TCD, gamma 0.3 | 60 (55 to 65) |" in text
