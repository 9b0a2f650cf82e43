"""What the tests run inside ComfyUI: tiny models of its own classes, sampled by the pack. See comfyui_worker.py."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import nodes
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

PACK: dict[str, ModuleType] = {}
TYPES = {
    "epsilon": ("EPS", {}),
    "v": ("V_PREDICTION", {}),
    "v+zsnr": ("V_PREDICTION", {"zsnr": True}),
    "x0": ("EPS", {}),
    "edm": ("EDM", {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}),
    "v edm": ("V_PREDICTION_EDM", {}),
    "v continuous": ("V_PREDICTION_CONTINUOUS", {"sigma_min": 0.03, "sigma_max": 500.0}),
    "cascade": ("STABLE_CASCADE", {"shift": 2.0}),
    "flow": ("FLOW", {"shift": 3.0}),
    "flux": ("FLUX", {"shift": 1.15}),
    "cosmos": ("FLOW_COSMOS", {"sigma_data": 1.0, "sigma_max": 80.0, "sigma_min": 0.002}),
    "image to image": ("IMG_TO_IMG", {}),
}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": 0,
    "use_spatial_transformer": True,
    "context_dim": 16,
    "dtype": torch.float32,
}


def load(folder: str) -> None:
    """Remember the modules of the pack that ComfyUI loaded from `folder`."""
    name = folder.replace(".", "_x_")
    for part in ("nodes.host", "nodes.tcd_sss", "nodes.sampler"):
        PACK[part] = sys.modules[f"{name}.{part}"]


class Frames(UNetModel):
    """A network for 5-D latents: the frames of `[B, C, T, H, W]` as a batch."""

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, **kwargs: Any) -> Tensor:
        if x.ndim == 4:
            return super().forward(x, timesteps, context, **kwargs)
        t = x.shape[2]
        flat = x.movedim(2, 1).flatten(0, 1)
        out = super().forward(flat, timesteps.repeat_interleave(t), context.repeat_interleave(t, 0), **kwargs)
        return out.unflatten(0, (-1, t)).movedim(1, 2)


@cache
def base(kind: str, channels: int = 4) -> Any:
    """A ModelPatcher of random weights; one per kind, so clone it before a change."""
    model_type, settings = TYPES[kind]
    config = comfy.supported_models.SD15({**UNET, "in_channels": channels})
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    config.sampling_settings = dict(settings)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[model_type], unet_model=Frames)
    generator = torch.Generator().manual_seed(5)
    for name, weight in sorted(model.diffusion_model.named_parameters()):
        scale = 1 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
        weight.data = torch.randn(weight.shape, generator=generator) * scale
        if weight.ndim == 1 and name.endswith("weight"):
            weight.data += 1
    if kind == "x0":
        ms = comfy.model_sampling
        model.model_sampling = type("Sampling", (ms.ModelSamplingDiscrete, ms.X0), {})(config)
    if channels > 4:
        model.set_inpaint()
    model.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def text(seed: int, **extra: Any) -> Any:
    """A CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, 16, generator=generator), extra]]


def network(kind: str, x: Tensor, t: Tensor, cond: int = 1, concat: Tensor | None = None) -> Tensor:
    """The bare network, for the oracle's loop: x and t as the network takes them."""
    context = text(cond)[0][0].expand(x.shape[0], -1, -1)
    if concat is not None:
        x = torch.cat([x, concat], 1)
    channels = x.shape[1]
    return base(kind, channels).model.diffusion_model(x, t.expand(x.shape[0]).float(), context=context)


class Spy:
    """Sees every call of the network, as a wrapper of the model function."""

    def __init__(self, kind: str, channels: int = 4) -> None:
        self.calls: list[dict[str, Any]] = []
        self.model = base(kind, channels).clone()
        self.model.set_model_unet_function_wrapper(self)

    def __call__(self, apply: Any, args: Any) -> Tensor:
        ms = self.model.get_model_object("model_sampling")
        sigma = args["timestep"]
        self.calls.append(
            {"sigma": sigma.tolist(), "t": ms.timestep(sigma).tolist(), "batch": len(args["input"])}
        )
        return apply(args["input"], args["timestep"], **args["c"])


def given_noise(noises: list[Tensor]) -> Any:
    queue = list(noises)
    return lambda sigma, sigma_next: queue.pop(0)


def sampler(noises: list[Tensor] | None = None, **options: Any) -> Any:
    """The SAMPLER of the node TCD_Sampler, with the step noise of the test where it is given."""
    made = PACK["nodes.sampler"].TCDSampler.execute(**{"gamma": 0.3, **options}).args[0]
    if noises is not None:
        made.extra_options["noise_sampler"] = given_noise(noises)
    return made


def grid(kind: str, steps: int, denoise: float = 1.0, original_steps: int = 50) -> Tensor:
    node = PACK["nodes.sampler"].TCDScheduler
    return node.execute(base(kind), steps, denoise, original_steps).args[0]


def schedule(kind: str, scheduler: str, steps: int) -> Tensor:
    return comfy.samplers.calculate_sigmas(base(kind).get_model_object("model_sampling"), scheduler, steps)


def table(kind: str) -> Tensor:
    return base(kind).model.model_sampling.sigmas


def custom(
    kind: str,
    sigmas: Tensor,
    latent: Tensor,
    noise: Tensor,
    seed: int = 1,
    cfg: float = 1.0,
    mask: Tensor | None = None,
    concat: Tensor | None = None,
    name: str | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """SamplerCustom's work with the pack's SAMPLER (or a host's, `name`), and everything that can be seen."""
    spy = Spy(kind, 9 if concat is not None else 4)
    if settings is not None:
        spy.model = PACK["nodes.sampler"].TCDSettings.execute(spy.model, **settings).args[0]
    extra = {} if concat is None else {"concat_latent_image": concat[:, 1:], "concat_mask": concat[:, :1]}
    seen: list[Any] = []
    keep = noise.clone(), latent.clone(), sigmas.clone()
    result = comfy.sample.sample_custom(
        spy.model,
        noise,
        cfg,
        comfy.samplers.sampler_object(name) if name else sampler(**options),
        sigmas,
        text(1, **extra),
        text(2, **extra),
        latent,
        noise_mask=mask,
        callback=lambda i, x0, x, total: seen.append((i, x0.clone(), x.clone(), total)),
        disable_pbar=True,
        seed=seed,
    )
    unchanged = all(torch.equal(a, b) for a, b in zip(keep, (noise, latent, sigmas), strict=True))
    return {"latent": result, "calls": spy.calls, "seen": seen, "inputs unchanged": unchanged}


def ksampler(kind: str, latent: dict[str, Any], settings: dict[str, Any] | None = None, **given: Any) -> Any:
    """The host's KSampler (Advanced) with the names of the lists."""
    spy = Spy(kind)
    if settings is not None:
        spy.model = PACK["nodes.sampler"].TCDSettings.execute(spy.model, **settings).args[0]
    arguments = {"cfg": 1.0, "sampler_name": "tcd_sss", "scheduler": "tcd_grid", "seed": 1, **given}
    out = nodes.common_ksampler(spy.model, positive=text(1), negative=text(2), latent=latent, **arguments)
    return {"latent": out[0]["samples"], "calls": spy.calls}


def tcd_ksampler(kind: str, latent: dict[str, Any], **given: Any) -> Any:
    """The node TCD_KSampler."""
    spy = Spy(kind)
    arguments = {"seed": 1, "steps": 4, "cfg": 1.0, "gamma": 0.3, "denoise": 1.0, **given}
    node = PACK["nodes.sampler"].TCDKSampler
    out = node.execute(
        spy.model, positive=text(1), negative=text(2), latent_image=latent, **arguments
    ).args
    return {"latent": out[0]["samples"], "denoised": out[1]["samples"], "calls": spy.calls}


def initial_noise(shape: list[int], seed: int, numbers: list[int] | None = None) -> Tensor:
    return comfy.sample.prepare_noise(torch.zeros(shape), seed, numbers)
