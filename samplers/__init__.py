"""Trajectory consistency distillation (arXiv 2402.19159): the mathematics, for any `alpha x0 + sigma eps`.

A network becomes a `Predict`, `(x, now, target) -> (x0, eps)`; a time of it is a `Point`, with its `Level`.

    levels.py     Level (alpha, sigma); epsilon, v, sample and flow outputs to (x0, eps) and back
    schedules.py  time -> Point and back: discrete (VP or scaled) and flow
    tcf.py        f(x_t, t -> s), Eq. 17: TCF(1), Eq. 21; TCF(2), Eq. 22; multistep. TCF(S+), Eq. 24, is
                  TCF(1) of a network that looks at `target`
    timesteps.py  the origin grid, the official choice of steps, s = floor((1 - gamma) t_next)
    sss.py        strategic stochastic sampling: plan and loop of Algorithm 4; gamma = 1 is Algorithm 3

    schedule = DiscreteSchedule.from_betas()
    steps = plan(schedule, timesteps(4), gamma=0.3)
    x = sample(predict, torch.randn(shape), steps, noise=lambda: torch.randn(shape))
"""

from .levels import PREDICTIONS, Level, Point, compute_dtype, from_x0_eps, placed, rows, to_x0_eps
from .schedules import DiscreteSchedule, FlowSchedule, Schedule
from .sss import Callback, Order, Step, noise_to, plan, renoise, sample, through, transition
from .tcf import Denoised, Predict, first_order, jump, multistep, tcf1, tcf2
from .timesteps import custom, flow_sigmas, left, origin, target, timesteps

__all__ = [
    "PREDICTIONS",
    "Callback",
    "Denoised",
    "DiscreteSchedule",
    "FlowSchedule",
    "Level",
    "Order",
    "Point",
    "Predict",
    "Schedule",
    "Step",
    "compute_dtype",
    "custom",
    "first_order",
    "flow_sigmas",
    "from_x0_eps",
    "jump",
    "left",
    "multistep",
    "noise_to",
    "origin",
    "placed",
    "plan",
    "renoise",
    "rows",
    "sample",
    "target",
    "tcf1",
    "tcf2",
    "through",
    "timesteps",
    "to_x0_eps",
    "transition",
]
