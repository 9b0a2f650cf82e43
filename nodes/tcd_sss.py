"""`sample_tcd_sss`, by k-diffusion's contract, its noise and settings, and its place in KSampler's lists."""

from __future__ import annotations

import inspect
import logging
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor
from tqdm.auto import tqdm

from ..samplers import Order, Step, sample
from ..samplers.timesteps import check_gamma
from .host import find_model_sampling, plan, predictor, scheduler_handler, trajectory

PACK = "trajectory-consistency"
MARK = "tcd_pack"
SAMPLER, SCHEDULER = "tcd_sss", "tcd_grid"
SETTINGS = "tcd_settings"
ORDERS: dict[str, Order] = {"1": 1, "2": 2, "multistep": "multistep"}
ENDS = ("official", "clean")
log = logging.getLogger(PACK)


class Settings(NamedTuple):
    """Of a run. TCD Settings carries them as a plain dict under the key SETTINGS of the model options."""

    gamma: float = 0.3
    gamma_end: float | None = None
    """Of the last step that adds noise, gamma is a line up to there; None: gamma stays."""
    order: str = "1"
    end: str = "official"

    @classmethod
    def choose(cls, extra_args: Mapping[str, Any], **given: Any) -> Settings:
        """What is given (not None), else what the model carries, else the defaults. ValueError if no good."""
        carried = dict(extra_args.get("model_options", {}).get(SETTINGS, {}))
        if given.get("gamma") is not None:
            carried.pop("gamma_end", None)  # of another line
        chosen = cls(**{**carried, **{name: value for name, value in given.items() if value is not None}})
        for gamma in chosen.line:
            check_gamma(gamma)
        if chosen.order not in ORDERS or chosen.end not in ENDS:
            raise ValueError(
                f"order {chosen.order!r} must be one of {', '.join(ORDERS)}; "
                f"end {chosen.end!r} one of {', '.join(ENDS)}"
            )
        return chosen

    @property
    def line(self) -> tuple[float, float]:
        return self.gamma, self.gamma if self.gamma_end is None else self.gamma_end


@torch.no_grad()
def sample_tcd_sss(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    noise_sampler: Callable[[Any, Any], Tensor] | None = None,
    gamma: float | None = None,
    gamma_end: float | None = None,
    order: str | None = None,
    end: str | None = None,
    noise_device: str = "cpu",
    batch_index: Sequence[int] | None = None,
) -> Tensor:
    """Strategic stochastic sampling (Algorithm 4) of any descending `sigmas`; k-diffusion's arguments first.

    What is None comes from the model's TCD Settings, else from `Settings`. `batch_index`: the number of each
    item of the batch, which decides its noise.
    """
    extra_args = {} if extra_args is None else extra_args
    chosen = Settings.choose(extra_args, gamma=gamma, gamma_end=gamma_end, order=order, end=end)
    levels = _without_steps_at_zero(sigmas.tolist())
    if len(levels) <= 1:
        return x
    ms = find_model_sampling(model)
    path = trajectory(ms)
    steps = plan(path, tuple(levels), *chosen.line, chosen.end)
    own_noise = step_noise(x, extra_args.get("seed"), noise_device, batch_index)
    scale, at, clean = getattr(ms, "noise_scale", 1.0), 0, x

    def noise() -> Tensor:
        given = noise_sampler and noise_sampler(sigmas[at], sigmas[at + 1])
        z = own_noise(levels[at + 1]) if given is None else given
        return z if scale == 1 else z * scale

    with tqdm(total=len(steps), disable=disable) as bar:

        def after(i: int, step: Step, state: Tensor, x0: Tensor) -> None:
            nonlocal at, clean
            at, clean = i, x0
            if callback is not None:
                sigma = sigmas[i]
                callback({"x": state, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
            bar.update()

        network, order_ = predictor(model, extra_args, path), ORDERS[chosen.order]
        result = sample(network, x, steps, noise, path.schedule, order_, after)
    mask = extra_args.get("denoise_mask")
    if mask is not None and levels[-1] == 0:
        # Where the picture is kept, the host's x0 is the picture itself: the official end must not touch it.
        result = torch.lerp(clean.to(result), result, mask.to(result))
    return result


def _without_steps_at_zero(sigmas: list[float]) -> list[float]:
    while len(sigmas) > 1 and sigmas[-2] == 0:
        sigmas = sigmas[:-1]
    return sigmas


def step_noise(
    x: Tensor, seed: int | None, device: str = "cpu", batch_index: Sequence[int] | None = None
) -> Callable[[float], Tensor]:
    """noise(sigma_next) like `x`: a function of the seed, the item's number and sigma_next alone.

    So a batch's item is that item alone, a run split in two is the run, and the noise is never the initial
    noise, which old hosts on a CPU repeat. `seed` None: from torch's global generator. `device` "cpu": the
    same on every device; "gpu": drawn where x is.
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"noise_device {device!r} is not 'cpu' or 'gpu'")
    seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    place = x.device if device == "gpu" else torch.device("cpu")
    numbers = range(x.shape[0]) if batch_index is None else batch_index
    if len(numbers) != x.shape[0]:
        raise ValueError(f"batch_index names {len(numbers)} items, but the batch has {x.shape[0]}")
    drawn: Counter[float] = Counter()
    generator = torch.Generator(place)

    def noise(sigma_next: float) -> Tensor:
        z = torch.empty(x.shape, device=place)
        for item, number in zip(z.unbind(), numbers, strict=True):
            generator.manual_seed(_mix(seed, number, sigma_next, drawn[sigma_next]))
            item.normal_(generator=generator)
        drawn[sigma_next] += 1
        return z.to(x)

    return noise


def _mix(seed: int, number: int, sigma: float, repeat: int) -> int:
    key = struct.pack("<QqfI", seed % 2**64, number, sigma, repeat)
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def register() -> None:
    """Put the sampler and the scheduler into KSampler's lists, in place; a name that is taken stays so."""
    function = f"sample_{SAMPLER}"
    earlier = getattr(k_diffusion, function, None)
    if _ours(earlier, SAMPLER):
        if earlier is not None:
            _tell_of_second_copy(earlier)
        setattr(k_diffusion, function, sample_tcd_sss)
        for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSampler.SAMPLERS):
            if SAMPLER not in names:
                names.append(SAMPLER)
    handlers = comfy.samplers.SCHEDULER_HANDLERS
    if _ours(getattr(handlers.get(SCHEDULER), "handler", None), SCHEDULER):
        handlers[SCHEDULER] = comfy.samplers.SchedulerHandler(scheduler_handler, True)
        for names in (comfy.samplers.SCHEDULER_NAMES, comfy.samplers.KSampler.SCHEDULERS):
            if SCHEDULER not in names:
                names.append(SCHEDULER)


def _ours(present: object, name: str) -> bool:
    """Free, or ours from an earlier import of the pack, maybe under another name."""
    if present is None or getattr(present, MARK, None) == PACK:
        return True
    log.warning("%r is another pack's here and stays so; use the nodes of the category TCD", name)
    return False


def _tell_of_second_copy(earlier: Callable[..., Any]) -> None:
    if earlier.__name__ != sample_tcd_sss.__name__:
        return  # what prestartup_script.py put there
    there, here = (Path(inspect.getfile(inspect.unwrap(f))) for f in (earlier, sample_tcd_sss))
    if there.resolve() != here.resolve():
        folders = there.parents[1], here.parents[1]
        log.warning("this pack is installed twice, in %s and %s; the second is used: remove one", *folders)


for _function in (sample_tcd_sss, scheduler_handler):
    setattr(_function, MARK, PACK)
