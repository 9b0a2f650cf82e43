"""Writes tests/web/steps.json: what `samplers` plans, for the page's own port of it (web/steps.mjs).

Run: python tests/web/make_steps.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfyui_tcd.samplers import DiscreteSchedule, plan, timesteps
from comfyui_tcd.samplers.schedules import vp_level

FILE = Path(__file__).with_name("steps.json")
GAMMAS = ((0.0, -1.0), (0.3, -1.0), (0.71, 0.2), (1.0, -1.0), (0.2, 0.9), (0.01, -1.0))
SIZES = ((1, 1.0, 50), (2, 1.0, 50), (4, 1.0, 50), (7, 0.6, 50), (50, 1.0, 50), (60, 0.95, 0), (3, 0.5, 13))


def table() -> list[dict[str, Any]]:
    """Each case with its steps as [t, s, next, noise at t, at s, after the step, halfway]."""
    schedule = DiscreteSchedule.from_betas("scaled_linear", 0.00085, 0.012)
    cases: list[dict[str, Any]] = []
    for i, (steps, denoise, original) in enumerate(SIZES):
        times = timesteps(steps, denoise, original or None)
        for j, (gamma, gamma_end) in enumerate(GAMMAS):
            end = ("official", "clean")[(i + j) % 2]
            goal = gamma if gamma_end < 0 else gamma_end
            line = [gamma + (goal - gamma) * k / max(steps - 2, 1) for k in range(steps - 1)] + [0.0]
            rows: list[list[float | None]] = []
            for step in plan(schedule, times, line, end):
                reached = step.next or step.down
                middle = None
                if bool((step.down.level.sigma > 0) & (step.down.level.sigma < step.now.level.sigma)):
                    lam = (step.now.level.lam + step.down.level.lam) / 2
                    middle = round(float(vp_level(lam).sigma), 7)
                ts = [float(point.t) for point in (step.now, step.down, reached)]
                levels = [round(float(point.level.sigma), 7) for point in (step.now, step.down, reached)]
                rows.append([*ts, *levels, middle])
            cases.append(
                {
                    "steps": steps,
                    "denoise": denoise,
                    "originalSteps": original,
                    "gamma": gamma,
                    "gammaEnd": gamma_end,
                    "end": end,
                    "rows": rows,
                }
            )
    return cases


def text() -> str:
    return "[\n" + ",\n".join(json.dumps(case) for case in table()) + "\n]\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
