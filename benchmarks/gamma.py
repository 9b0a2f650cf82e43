"""What gamma does to the student that training can at best reach, on data where both are known exactly.

    python benchmarks/gamma.py

Data is N(0, std^2), so that every map is a factor: the teacher is exact, the student is the minimum of the
TCD loss (squared L2, no guidance) in closed form, and a sampling is a product of factors with noise added
between. Printed is the standard deviation of the samples, in units of the data's: below 1 too little contrast
and variety, above 1 too much. In bold the gamma that is nearest to the data.
"""

# ruff: noqa: T201

from __future__ import annotations

import torch
from torch import Tensor

from comfyui_tcd.samplers import DiscreteSchedule, Point, Predict, first_order, plan, timesteps, to_x0_eps
from comfyui_tcd.training.objective import TimeGrid

GAMMAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
STEPS = (1, 2, 4, 8, 20, 50)
RUNS = [  # (std of the data, range of s)
    (0.25, "uniform"),
    (0.5, "uniform"),
    (1.0, "uniform"),
    (0.5, "near"),
    (0.5, "phases"),
    (0.5, "zero"),
]
SCHEDULE = DiscreteSchedule.from_betas()
ONE, ZERO = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def predicts(eps: Tensor) -> Predict:
    """A network that says `eps` whatever it sees."""
    return lambda x, now, target: to_x0_eps("epsilon", eps, x, now.level)


def factor(a: Tensor, now: Point, down: Point) -> Tensor:
    """x_s / x_t of TCF(1) with `eps = a x`."""
    return first_order(predicts(a * ONE), ONE, now, down).x[0]


def optimum(std: float, grid: TimeGrid) -> Tensor:
    """`eps / x` of the student at each time, up the grid: least squares of f(x_t, t -> s) over s."""
    alpha, sigma = grid.points.level
    teacher = sigma / (alpha**2 * std**2 + sigma**2)
    points = grid.points.each()
    student = teacher.clone()
    for n in range(1, grid.n + 1):
        now, behind = points[n], points[n - 1]
        solved = factor(teacher[n], now, behind)
        over = under = torch.zeros((), dtype=torch.float64)
        for m in torch.nonzero(grid.odds[n]).flatten().tolist():
            still = factor(torch.zeros(()), now, points[m])  # f = still + slope a
            slope = first_order(predicts(ONE), ZERO, now, points[m]).x[0]
            goal = factor(student[n - 1], behind, points[m]) * solved
            over = over + grid.odds[n, m] * slope * (goal - still)
            under = under + grid.odds[n, m] * slope**2
        student[n] = over / under
    return student


def spread(student: Tensor, grid: TimeGrid, steps: int, gamma: float) -> float:
    """Standard deviation of the samples."""
    variance = 1.0
    for step in plan(SCHEDULE, timesteps(steps), gamma):
        n = int((grid.points.t - step.now.t).abs().argmin())
        variance *= float(factor(student[n], step.now, step.down)) ** 2
        if step.up is not None:
            variance = variance * float(step.up.alpha) ** 2 + float(step.up.sigma) ** 2
    return variance**0.5


def main() -> None:
    for std, s_range in RUNS:
        grid = TimeGrid.discrete(SCHEDULE, 20, s_range, 4)
        student = optimum(std, grid)
        print(f"\nStandard deviation of the data {std:g}, s {s_range}:\n")
        print(f"| steps \\ gamma | {' | '.join(f'{g:g}' for g in GAMMAS)} |\n|{' --- |' * (len(GAMMAS) + 1)}")
        for count in STEPS:
            row = [spread(student, grid, count, gamma) / std for gamma in GAMMAS]
            best = min(abs(r - 1) for r in row)
            cells = [f"**{r:.2f}**" if abs(r - 1) == best and count > 1 else f"{r:.2f}" for r in row]
            print(f"| {count} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
