"""ComfyUI's models as `samplers` sees a model: the schedule, the time grid, the denoiser.

The host's state is `x0 + sigma eps`, level (1, sigma), for EPS, V, X0 and EDM models, and
`(1 - sigma) x0 + sigma eps` for CONST (flow) models. The schedule is always the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace
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
    left,
    through,
    timesteps,
    to_x0_eps,
)
from .splus import telling, wants_target

NEAR = 1e-3
"""Of a timestep: a float32 sigma of the model's table is found again up to this."""
MAPPINGS = ("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
"""Kinds of prediction below EPS and CONST whose network does not denoise: it maps one picture to another."""
BETAS = ("linear", "sqrt_linear", "cosine", "squaredcos_cap_v2", "sqrt")
"""The lists of betas that the host's ModelSamplingDiscrete can make."""
OFFICIAL = 50
"""The timesteps that TCD and LCM are distilled on."""


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
    """Find the schedule of a model by its `model_sampling`.

    ValueError where there is none: the model's prediction is no (x0, eps) of a Gaussian path.
    """
    ms, known = model_sampling, comfy.model_sampling
    mappings = tuple(getattr(known, name) for name in MAPPINGS if hasattr(known, name))
    if isinstance(ms, mappings) or not isinstance(ms, (known.CONST, known.EPS, known.COSMOS_RFLOW)):
        raise ValueError(
            f"TCD cannot sample a model of the type {[c.__name__ for c in type(ms).__mro__[1:-1]]}: it does "
            "not denoise along x0 + sigma eps or (1 - sigma) x0 + sigma eps; use euler for this model"
        )
    if isinstance(ms, known.CONST):
        return FLOW
    return _discrete(_table(ms).numpy().tobytes(), isinstance(ms, known.ModelSamplingDiscrete))


@lru_cache(maxsize=8)  # the same model runs again and again
def _discrete(table: bytes, timesteps: bool) -> Trajectory:
    vp = DiscreteSchedule.from_sigmas(torch.frombuffer(bytearray(table), dtype=torch.float32))
    # Continuous models (EDM) have no timestep 0 to stop at.
    return Trajectory(vp.scaled(), vp.last if timesteps else vp.clean)


def _table(model_sampling: Any) -> Tensor:
    """Give the sigma of every timestep of the model, ascending, float32 on the CPU [T]."""
    ms, table = model_sampling, model_sampling.sigmas.float().cpu()
    if isinstance(ms, comfy.model_sampling.ModelSamplingDiscrete) and len(table) < ms.num_timesteps:
        table = _whole(tuple(table.tolist()), ms.num_timesteps, ms.linear_start, ms.linear_end, ms.zsnr)
    # Stable Cascade's is cut off above and below: the same sigma for many timesteps.
    return table.unique_consecutive()


@lru_cache(maxsize=8)
def _whole(kept: tuple[float, ...], timesteps: int, start: float, end: float, zsnr: bool) -> Tensor:
    """Give all sigmas [timesteps] of a table of which only every k-th is `kept`, ending with the last.

    ModelSamplingDiscrete (lcm) makes such a table of 50. It knows everything of the whole one but the name of
    its betas: the host makes those of every name, and the right ones give exactly what is kept. ValueError
    if none does.
    """
    shared = {"timesteps": timesteps, "linear_start": start, "linear_end": end}
    for betas in BETAS:
        config = SimpleNamespace(sampling_settings={**shared, "beta_schedule": betas})
        whole = comfy.model_sampling.ModelSamplingDiscrete(config, zsnr=zsnr).sigmas.cpu()
        same = whole.flip(0)[:: timesteps // len(kept)][: len(kept)].flip(0)
        if torch.allclose(same, torch.tensor(kept), rtol=1e-6, atol=0):
            return whole
    raise ValueError(
        f"this model's sampling keeps {len(kept)} of its {timesteps} timesteps, and the others cannot be "
        "found again; take out the node that changed it (ModelSamplingDiscrete, or another pack's)"
    )


def grid(
    model_sampling: Any, steps: int, denoise: float = 1.0, original_steps: int | None = OFFICIAL
) -> Tensor:
    """Give the SIGMAS of the official timesteps and the host's 0 after them, float32 on the CPU [steps + 1].

    `denoise` is diffusers' `strength`; 0 gives no sigmas at all, with which the host returns its latent.
    `original_steps` of distillation; None for every timestep. Flow models: uniform in the unshifted time.
    ValueError, in the words of the nodes' inputs, where fewer timesteps are left than `steps`.
    """
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise {denoise} is outside 0..1; 1 starts from pure noise")
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
        # Stable Cascade's is no round number: what is over is left out at the clean end, not of the noise.
        table = table[len(table) % min(OFFICIAL, len(table)) :]
    if steps > len(left(denoise, original_steps, len(table))):
        raise ValueError(_too_many(steps, denoise, original_steps, len(table)))
    times = timesteps(steps, denoise, original_steps, len(table))
    return torch.cat([table[times], table.new_zeros(1)])


def _too_many(steps: int, denoise: float, original_steps: int | None, num_train: int) -> str:
    def fitting(share: float) -> int:
        return len(left(share, original_steps, num_train))

    room, all_ = fitting(denoise), fitting(1.0)
    advice = [f"{room} steps or fewer"] if room else []
    enough = next((i / 100 for i in range(1, 101) if fitting(i / 100) >= steps), None)
    if enough is not None:
        advice.append(f"denoise {enough:g} or more")
    if original_steps is not None and steps <= len(left(denoise, None, num_train)):
        advice.append(f"original_steps 0, which takes all {num_train} timesteps")
    return (
        f"{steps} steps do not fit: denoise {denoise:g} leaves {room} of the {all_} timesteps of "
        f"original_steps {original_steps or 0}; use {', or '.join(advice) or 'fewer steps'}"
    )


def scheduler_handler(model_sampling: Any, steps: int) -> Tensor:
    """Give `grid` as KSampler asks for it: without original steps, and for a denoise, more steps.

    KSampler and other nodes ask for steps / denoise of them and take the last. Where that is more than the
    model has timesteps, the times between them are evenly apart, as those of the host's normal scheduler.
    """
    ms = model_sampling
    if isinstance(ms, comfy.model_sampling.CONST) or steps <= len(table := _table(ms)):
        return grid(ms, steps, original_steps=OFFICIAL if steps <= OFFICIAL else None)
    schedule = DiscreteSchedule.from_sigmas(table).scaled()
    times = torch.linspace(len(table) - 1, 0, steps, dtype=torch.float64, device="cpu")
    return torch.cat([schedule.point(times).level.sigma, times.new_zeros(1)]).float()


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
