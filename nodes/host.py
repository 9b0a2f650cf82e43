"""ComfyUI's models as `samplers` sees a model: the schedule, the time grid, the denoiser.

The host's state is `x0 + sigma eps`, level (1, sigma), for EPS, V, X0 and EDM models, and
`(1 - sigma) x0 + sigma eps` for CONST (flow) models. The schedule is always the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import comfy.model_sampling
import torch
from torch import Tensor

from ..samplers import (
    DiscreteSchedule,
    FlowSchedule,
    Level,
    Point,
    Predict,
    Schedule,
    Step,
    flow_sigmas,
    through,
    timesteps,
    to_x0_eps,
)
from .splus import telling, wants_target

NEAR = 1e-3
"""Of a timestep: a float32 sigma of the model's table is found again up to this."""


class Trajectory(NamedTuple):
    """A model's schedule in the host's state, and where the official sampler ends."""

    schedule: Schedule
    end: Point
    """Timestep 0 as (alpha, sigma) of VP, or sigma 0: a LATENT holds what a VP sampler returns."""


FLOW = Trajectory(FlowSchedule(), FlowSchedule().clean)


def find_model_sampling(model: Any) -> Any:
    """The live `model_sampling` below the wrappers that a sampler function is given."""
    while not hasattr(model, "model_sampling"):
        model = model.inner_model
    return model.model_sampling


def trajectory(model_sampling: Any) -> Trajectory:
    """ValueError where there is none: the model's prediction is no (x0, eps) of a Gaussian path."""
    ms, known = model_sampling, comfy.model_sampling
    if isinstance(ms, known.CONST):
        return FLOW
    mapping = getattr(known, "IMG_TO_IMG", ())
    if not isinstance(ms, (known.EPS, known.COSMOS_RFLOW)) or isinstance(ms, mapping):
        raise ValueError(
            f"TCD cannot sample a model of the type {[c.__name__ for c in type(ms).__mro__[1:-1]]}: it does "
            "not denoise along x0 + sigma eps or (1 - sigma) x0 + sigma eps; use euler for this model"
        )
    table = ms.sigmas.float().cpu().numpy().tobytes()
    return _discrete(table, isinstance(ms, known.ModelSamplingDiscrete))


@lru_cache(maxsize=8)  # the same model runs again and again
def _discrete(table: bytes, timesteps: bool) -> Trajectory:
    sigmas = torch.frombuffer(bytearray(table), dtype=torch.float32).unique_consecutive()
    vp = DiscreteSchedule.from_sigmas(sigmas)
    # Continuous models (EDM) have no timestep 0 to stop at.
    return Trajectory(vp.scaled(), vp.last if timesteps else vp.clean)


def _table(model_sampling: Any) -> Tensor:
    # Stable Cascade's is cut off above and below: the same sigma for many timesteps.
    return model_sampling.sigmas.float().cpu().unique_consecutive()


def grid(model_sampling: Any, steps: int, denoise: float = 1.0, original_steps: int | None = 50) -> Tensor:
    """SIGMAS of the official timesteps, float32 on the CPU, with the host's 0 at the end: [steps + 1].

    `denoise` is diffusers' `strength`; 0 gives no sigmas at all, with which the host returns its latent.
    `original_steps` of distillation; None for every timestep. Flow models: uniform in the unshifted time.
    """
    if denoise == 0:
        return torch.empty(0)
    ms = model_sampling
    if isinstance(ms, comfy.model_sampling.CONST):
        unit = getattr(ms, "multiplier", 1.0)
        sigmas = [float(ms.sigma(torch.tensor(u * unit))) for u in flow_sigmas(steps, 1.0, denoise)]
        return torch.tensor([*sigmas, 0.0])
    table = _table(ms)
    if original_steps is not None:
        original_steps = min(original_steps, len(table))
    times = timesteps(steps, denoise, original_steps, len(table))
    return torch.cat([table[times], table.new_zeros(1)])


def scheduler_handler(model_sampling: Any, steps: int) -> Tensor:
    """`grid` as KSampler asks for it: it cannot say the original steps, and asks more steps for a denoise."""
    return grid(model_sampling, steps, original_steps=50 if steps <= 50 else None)


def points(path: Trajectory, sigmas: Sequence[float]) -> list[Point]:
    """The host's own sigmas as points: the level is kept exactly, the time comes from the schedule.

    A sigma on the model's table, float32 rounding allowed for, gets its whole timestep, or else `s` would
    be one too low. Beyond the table, the time is that of its end. ValueError unless they descend.
    """
    if any(b > a for a, b in pairwise(sigmas)):
        raise ValueError("TCD needs descending sigmas: it only denoises; use euler to add noise (unsampling)")
    if isinstance(path.schedule, FlowSchedule):
        return [path.schedule.point(sigma) for sigma in sigmas]
    levels = torch.tensor(sigmas, dtype=torch.float64, device="cpu")
    t = path.schedule.at_lam(-levels.log()).t
    t = torch.where((t - t.round()).abs() < NEAR, t.round(), t)
    scaled = Point(t, Level(torch.ones_like(levels), levels)).each()
    return [path.schedule.clean if sigma == 0 else p for sigma, p in zip(sigmas, scaled, strict=True)]


@lru_cache(maxsize=32)
def plan(
    path: Trajectory, sigmas: tuple[float, ...], gamma: float, gamma_end: float, end: str
) -> Sequence[Step]:
    """The steps of Algorithm 4 through `sigmas`; gamma goes to gamma_end in a line over those that add noise.

    Where the sigmas end with 0, the last step ends as `end` says: at timestep 0, "official", as
    diffusers, or at 0, "clean". Above 0 it adds noise like the others: another sampler goes on from there.
    """
    visited = points(path, sigmas)
    ends = sigmas[-1] == 0
    noisy = len(visited) - 1 - ends
    share = [i / max(noisy - 1, 1) for i in range(noisy)]
    gammas = [gamma + (gamma_end - gamma) * s for s in share] + [0.0] * ends
    # Already below timestep 0 (karras and others may get there): there is no going back up.
    if ends and end == "official" and bool(path.end.level.lam >= visited[-2].level.lam - NEAR):
        visited[-1] = path.end
    return through(path.schedule, visited, gammas)


def predictor(model: Callable[..., Tensor], extra_args: Mapping[str, Any], path: Trajectory) -> Predict:
    """The host's denoiser (guidance, masks, hooks and all) as `samplers`' network; one call is one call.

    A TCF(S+) student is told the target's time, in timesteps as in training.
    """
    student, unit = wants_target(extra_args), 1000.0 if path is FLOW else 1.0

    def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
        given = telling(extra_args, unit * float(target.t)) if student else extra_args
        denoised = model(x, x.new_full([x.shape[0]], float(now.level.sigma)), **given)
        return to_x0_eps("sample", denoised, x, now.level)

    return predict
