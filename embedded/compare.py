"""The comparison that the demo and the reproduction draw: every method at every step count, measured and
pictured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .avatars import Labels, draw_labels
from .measures import Judge
from .methods import Prompts, sample_student, sample_teacher
from .model import EmbeddedModel
from .page import NAMES
from .pictures import table_picture, tile

STEPS = (1, 2, 4, 8, 20)
GAMMA = 0.3
CFG = (
    3.0  # 1 + w in the middle of the preset `embedded`: where guidance decides the picture, as it does in use
)
SOLVERS = ("ddim", "dpmpp_2s")
GAMMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

Report = Callable[[str], None]


def evaluation_prompts(count: int, seed: int = 3) -> Prompts:
    """Prompts that no training has drawn (their own seed), with their noise."""
    labels: Labels = draw_labels(count, np.random.default_rng([seed, 10]))
    return Prompts.make(labels, seed)


def compare(
    teacher: EmbeddedModel,
    students: Mapping[str, EmbeddedModel],
    judge: Judge,
    prompts: Prompts,
    *,
    steps: Sequence[int] = STEPS,
    gamma: float = GAMMA,
    cfg: float = CFG,
    end: str = "official",
    solvers: Sequence[str] = SOLVERS,
    report: Report,
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], Tensor]]:
    """Rows of results.json and the pictures by (method, steps). LCM is sampled with gamma 1, its own."""
    rows: list[dict[str, Any]] = []
    pictures: dict[tuple[str, int], Tensor] = {}
    for method in (*solvers, *students):
        for count in steps:
            own = None if method in solvers else 1.0 if method.startswith("lcm") else gamma
            if own is None:
                images = sample_teacher(teacher, prompts, method, count, cfg, end=end)
            else:
                images = sample_student(students[method], prompts, count, own, end=end)
            row = {"method": method, "steps": count, "gamma": None if method.startswith("lcm") else own}
            rows.append(
                {**row, **judge.measure(images, prompts.labels), "distance": distance(images, pictures)}
            )
            pictures[method, count] = images[:64]
            report(f"{NAMES.get(method, method)}, {count} steps: Frechet distance {rows[-1]['frechet']:.1f}")
    for name, figures in judge.floors(prompts.labels).items():
        rows.append({"method": name, "steps": 0, "gamma": None, **figures})
    return rows, pictures


def distance(images: Tensor, pictures: Mapping[tuple[str, int], Tensor]) -> float | None:
    """Root mean square difference, in grey levels, to the teacher's own 20-step DDIM picture from the same
    noise.
    """
    converged = pictures.get(("ddim", max(STEPS)))
    if converged is None:
        return None
    return round(float((images[: len(converged)].float() - converged.float()).square().mean().sqrt()), 2)


def draw_steps(
    pictures: Mapping[tuple[str, int], Tensor], path: Path, *, columns: int = 4, rows: int = 2
) -> None:
    """Methods by steps: the same prompts and noise in every cell."""
    methods = list(dict.fromkeys(m for m, _ in pictures))
    steps = sorted({k for _, k in pictures})
    cells = [[tile(pictures[m, k][: columns * rows], columns, 3) for k in steps] for m in methods]
    names = [NAMES.get(m, m).replace(" (", "\n(").replace(", ", "\n") for m in methods]
    table_picture(cells, names, [f"{k} step{'s' * (k > 1)}" for k in steps], "Same prompts, same noise", path)


def draw_gammas(
    student: EmbeddedModel, prompts: Prompts, path: Path, steps: Sequence[int] = (2, 4, 8, 20)
) -> None:
    """Gamma by steps: more gamma, more noise put back between the steps."""
    few = Prompts(prompts.labels[:8], prompts.noise[:8], prompts.seed)
    cells = [[tile(sample_student(student, few, k, g), 4, 3) for k in steps] for g in GAMMAS]
    table_picture(
        cells, [f"gamma {g:g}" for g in GAMMAS], [f"{k} steps" for k in steps], "gamma by steps", path
    )
