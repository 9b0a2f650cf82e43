"""What comfyui_worker.py runs inside ComfyUI: tiny models of the host's classes, sampled by the pack."""

from __future__ import annotations

import json
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.supported_models
import comfy.utils
import nodes
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

PACK: dict[str, ModuleType] = {}
OF_TRAINING = ("samplers", "training.splus", "training.lora")
TYPES = {
    "epsilon": ("EPS", {}),
    "epsilon+zsnr": ("EPS", {"zsnr": True}),
    "v": ("V_PREDICTION", {}),
    "v+zsnr": ("V_PREDICTION", {"zsnr": True}),
    "x0": ("EPS", {}),
    "lcm": ("EPS", {}),
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
    for part in ("nodes.host", "nodes.tcd_sss", "nodes.sampler", "nodes.compare_run", *OF_TRAINING):
        PACK[part] = import_module(f"{name}.{part}")


class Frames(UNetModel):
    """Also for 5-D latents, frames as a batch, and for nested ones, which ComfyUI makes `[B, 1, n]`."""

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, **kwargs: Any) -> Tensor:
        if x.ndim == 3:
            return self.forward(x.reshape(x.shape[0], 4, 8, -1), timesteps, context, **kwargs).reshape(
                x.shape
            )
        if x.ndim == 4:
            return super().forward(x, timesteps, context, **kwargs)
        t = x.shape[2]
        flat = x.movedim(2, 1).flatten(0, 1)
        out = super().forward(flat, timesteps.repeat_interleave(t), context.repeat_interleave(t, 0), **kwargs)
        return out.unflatten(0, (-1, t)).movedim(1, 2)


@cache
def base(kind: str, channels: int = 4, dtype: torch.dtype = torch.float64) -> Any:
    """A ModelPatcher of random weights; one per kind, so clone it before a change.

    In float64 what differs from another sampler is the sampler's, not the network's rounding.
    """
    model_type, settings = TYPES[kind]
    config = comfy.supported_models.SD15({**UNET, "in_channels": channels, "dtype": dtype})
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    config.sampling_settings = dict(settings)
    if dtype.itemsize == 1:
        config.set_inference_dtype(dtype, torch.float32)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType[model_type], unet_model=Frames)
    generator = torch.Generator().manual_seed(5)
    for name, weight in sorted(model.diffusion_model.named_parameters()):
        scale = 1 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
        value = torch.randn(weight.shape, generator=generator) * scale
        weight.data = (value + (weight.ndim == 1 and name.endswith("weight"))).to(weight.dtype)
    if kind == "x0":
        ms = comfy.model_sampling
        model.model_sampling = type("Sampling", (ms.ModelSamplingDiscrete, ms.X0), {})(config)
    if channels > 4:
        model.set_inpaint()
    model.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    if kind == "lcm":
        given = {"sampling": "lcm", "zsnr": False}
        changed = patched(patcher, "ModelSamplingDiscrete", given)
        model.model_sampling = changed.get_model_object("model_sampling")
    return patcher


def text(seed: int, **extra: Any) -> Any:
    """A CONDITIONING."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, 16, generator=generator), extra]]


def network(kind: str, x: Tensor, t: Tensor, cond: int = 1, concat: Tensor | None = None) -> Tensor:
    """The bare network, for the oracle's loop: x and t as the network takes them."""
    if concat is not None:
        x = torch.cat([x, concat], 1)
    return evaluated(base(kind, x.shape[1]).model.diffusion_model, x, t, cond)


def evaluated(inner: Any, x: Tensor, t: Tensor, cond: int = 1) -> Tensor:
    """In the dtype of the network `inner`, the output in x's."""
    context = text(cond)[0][0].expand(x.shape[0], -1, -1)
    times = t.expand(x.shape[0]).float()
    return inner(x.to(inner.dtype), times, context=context.to(inner.dtype)).to(x.dtype)


class Spy:
    """Sees every call of the network, as a wrapper of the model function."""

    def __init__(
        self,
        kind: str,
        channels: int = 4,
        settings: dict[str, Any] | None = None,
        lora: str = "",
        strength: float = 1.0,
        patch: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        self.calls: list[dict[str, Any]] = []
        self.model = base(kind, channels).clone()
        if patch is not None:
            self.model = patched(self.model, *patch)
        self.sampling = self.model.get_model_object("model_sampling")
        if settings is not None:
            self.model = PACK["nodes.sampler"].TCDSettings.execute(self.model, **settings).args[0]
        if lora:
            self.model = loaded(self.model, lora, strength)
        self.model.set_model_unet_function_wrapper(self)

    def __call__(self, apply: Any, args: Any) -> Tensor:
        ms = self.model.get_model_object("model_sampling")
        sigma = args["timestep"]
        self.calls.append(
            {"sigma": sigma.tolist(), "t": ms.timestep(sigma).tolist(), "batch": len(args["input"])}
        )
        return apply(args["input"], args["timestep"], **args["c"])

    def own_sampling(self) -> bool:
        """Whether what samples is still what the model had when it came."""
        return self.model.get_model_object("model_sampling") is self.sampling


def patched(model: Any, node: str, given: dict[str, Any]) -> Any:
    """The MODEL of one of core's ModelSampling nodes."""
    from comfy_extras import nodes_model_advanced

    return getattr(nodes_model_advanced, node)().patch(model, **given)[0]


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
    if scheduler.startswith("AYS "):
        from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler

        given = scheduler.removeprefix("AYS "), steps, 1.0
        if not hasattr(AlignYourStepsScheduler, "execute"):  # of the older kind in 0.3.52
            return AlignYourStepsScheduler().get_sigmas(*given)[0]
        return AlignYourStepsScheduler.execute(*given).args[0]
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
    core: str | None = None,
    settings: dict[str, Any] | None = None,
    feature: str = "",
    lora: str = "",
    strength: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    """SamplerCustom's work with the pack's SAMPLER (or the host's `core`), and all that can be seen."""
    spy = Spy(kind, 9 if concat is not None else 4, settings, lora, strength)
    extra = {} if concat is None else {"concat_latent_image": concat[:, 1:], "concat_mask": concat[:, :1]}
    positive = use(spy.model, feature) + text(1, **extra) if feature else text(1, **extra)
    seen: list[Any] = []
    keep = noise.clone(), latent.clone(), sigmas.clone()
    result = comfy.sample.sample_custom(
        spy.model,
        noise,
        cfg,
        comfy.samplers.sampler_object(core) if core else sampler(**options),
        sigmas,
        positive,
        text(2, **extra),
        latent,
        noise_mask=mask,
        callback=lambda i, x0, x, total: seen.append((i, x0.clone(), x.clone(), total)),
        disable_pbar=True,
        seed=seed,
    )
    unchanged = all(torch.equal(a, b) for a, b in zip(keep, (noise, latent, sigmas), strict=True))
    return {"latent": result, "calls": spy.calls, "seen": seen, "inputs unchanged": unchanged}


def loaded(model: Any, file: str, strength: float = 1.0) -> Any:
    """The MODEL of the node TCD_LoraLoader, for a file anywhere."""
    import folder_paths

    folder, _, name = file.rpartition("/")
    folder_paths.add_model_folder_path("loras", folder)
    node = nodes.NODE_CLASS_MAPPINGS["TCD_LoraLoader"].PREPARE_CLASS_CLONE(None)
    return node.execute(model, name, strength).args[0]


def linear_layers(kind: str) -> dict[str, Any]:
    """[channels of the embedding of time, shapes of the linear layers in the blocks by name]."""
    network = base(kind).model.diffusion_model
    named = ((n, m) for n, m in network.named_modules() if "transformer_blocks" in n and hasattr(m, "weight"))
    shapes = {n: list(m.weight.shape) for n, m in named if m.weight.ndim == 2}
    return {"width": network.time_embed[-1].out_features, "layers": shapes}


def by_training(
    kind: str,
    file: str,
    noise: Tensor,
    noises: list[Tensor],
    times: list[float],
    gamma: float,
    order: Any = 1,
    strength: float = 1.0,
) -> Tensor:
    """The LATENT of a TCF(S+) student as training samples it: weights merged, the embedding attached."""
    import copy

    samplers, lora, splus = PACK["samplers"], PACK["training.lora"], PACK["training.splus"]
    ms, student = base(kind).model.model_sampling, copy.deepcopy(base(kind).model.diffusion_model)
    flow = kind == "flow"
    schedule = samplers.FlowSchedule() if flow else samplers.DiscreteSchedule.from_sigmas(ms.sigmas.double())
    tensors, _ = lora.load_lora(Path(file))
    lora.merge_lora(student, tensors, strength)
    scaled = {k: v * strength if "net.2" in k else v for k, v in tensors.items()}  # its last layer is linear

    def predict(x: Tensor, now: Any, target: Any) -> tuple[Tensor, Tensor]:
        out = evaluated(student, x, now.t * (1000.0 if flow else 1.0))
        return samplers.to_x0_eps(kind, out, x, now.level)

    with splus.attached(student, 1000.0 if flow else 1.0, scaled) as embedding:
        steps, queue = samplers.plan(schedule, times, gamma), list(noises)
        result = samplers.sample(embedding.told(predict), noise, steps, lambda: queue.pop(0), schedule, order)
    return result / base(kind).model.latent_format.scale_factor


def ksampler(
    kind: str,
    latent: dict[str, Any],
    settings: dict[str, Any] | None = None,
    patch: tuple[str, dict[str, Any]] | None = None,
    **given: Any,
) -> Any:
    """The host's KSampler (Advanced) with the names of the lists."""
    spy = Spy(kind, settings=settings, patch=patch)
    arguments = {"cfg": 1.0, "sampler_name": "tcd_sss", "scheduler": "tcd_grid", "seed": 1, **given}
    out = nodes.common_ksampler(spy.model, positive=text(1), negative=text(2), latent=latent, **arguments)
    return {"latent": out[0]["samples"], "calls": spy.calls, "own sampling": spy.own_sampling()}


def tcd_ksampler(
    kind: str, latent: dict[str, Any], patch: tuple[str, dict[str, Any]] | None = None, **given: Any
) -> Any:
    """The node TCD_KSampler."""
    spy = Spy(kind, patch=patch)
    arguments = {"seed": 1, "steps": 4, "cfg": 1.0, "gamma": 0.3, "denoise": 1.0, **given}
    node = PACK["nodes.sampler"].TCDKSampler
    out = node.execute(spy.model, positive=text(1), negative=text(2), latent_image=latent, **arguments).args
    latents = {"latent": out[0]["samples"], "denoised": out[1]["samples"]}
    return {**latents, "calls": spy.calls, "own sampling": spy.own_sampling()}


def printed(kind: str, latent: dict[str, Any]) -> str:
    """What a run of the node TCD_KSampler writes to stdout."""
    import io
    from contextlib import redirect_stdout

    with redirect_stdout(io.StringIO()) as out:
        tcd_ksampler(kind, latent)
    return out.getvalue()


def initial_noise(shape: list[int], seed: int, numbers: list[int] | None = None) -> Tensor:
    return comfy.sample.prepare_noise(torch.zeros(shape), seed, numbers)


def use(model: Any, feature: str) -> Any:
    """One more CONDITIONING, or a patch of the model, with a feature of the host that samplers meet."""
    if feature == "area":
        return text(3, area=(4, 4, 2, 2), strength=1.0, set_area_to_bounds=False)
    if feature == "regional prompt":
        mask = torch.zeros(1, 8, 8)
        mask[:, :4] = 1
        return text(3, mask=mask, mask_strength=1.0, set_area_to_bounds=False)
    if feature == "same prompt":
        return text(3)
    if feature == "timestep range":
        return text(3, start_percent=0.0, end_percent=0.5)
    if feature == "ControlNet":
        picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
        control = controlnet().copy().set_cond_hint(picture, 1.0, (0.0, 1.0))
        return text(3, control=control, control_apply_to_uncond=True)
    if feature == "IP-Adapter":  # an attention patch, as that pack makes it
        model.set_model_attn2_patch(lambda q, k, v, extra: (q, k * 1.5, v * 0.5))
        return []
    if feature in ("hook", "idle hook"):
        import comfy.hooks

        weight = "diffusion_model.out.2.weight"
        now = model.model.diffusion_model.out[2].weight
        change = torch.ones(now.shape) if feature == "hook" else now.clone()
        hooks = comfy.hooks.create_hook_model_as_lora({weight: change}, None, 1.0, 1.0)
        model.register_all_hook_patches(
            hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
        )
        return text(3, hooks=hooks)
    raise KeyError(feature)


@cache
def controlnet() -> Any:
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.ops

    config = {
        **UNET,
        "transformer_depth": [1, 0],
        "num_heads": 4,
        "num_head_channels": -1,
        "hint_channels": 3,
    }
    for key in ("out_channels", "transformer_depth_output"):
        del config[key]
    network = comfy.cldm.cldm.ControlNet(**config, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(6)
    for _, weight in sorted(network.named_parameters()):
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


class Plain:
    """A model function whose x0 is `x0` everywhere, for the sampler function itself."""

    def __init__(self, kind: str, x0: float) -> None:
        sampling = SimpleNamespace(model_sampling=base(kind).model.model_sampling)
        self.inner_model, self.x0 = SimpleNamespace(inner_model=sampling), x0
        self.sigmas: list[float] = []

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        assert sigma.shape == (x.shape[0],)
        self.sigmas.append(float(sigma[0]))
        return torch.full_like(x, self.x0)


def plain(
    kind: str,
    sigmas: Tensor,
    x0: float = 1.0,
    shape: tuple[int, ...] = (1, 4, 64, 64),
    **options: Any,
) -> Any:
    """A run of the sampler function with an x0 known beforehand: the last state, and those it was shown."""
    model, ms = Plain(kind, x0), base(kind).model.model_sampling
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * sigmas[0]
    x += x0 * (1 - sigmas[0] if isinstance(ms, comfy.model_sampling.CONST) else 1)
    states: list[Tensor] = []
    shown: list[float] = []

    def callback(step: dict[str, Any]) -> None:
        states.append(step["x"])
        shown.append(float(step["sigma"]))

    run = PACK["nodes.tcd_sss"].sample_tcd_sss
    result = run(model, x, sigmas, {"seed": 1}, callback, True, **options)
    return {"result": result, "states": states, "sigmas": shown, "called": model.sigmas}


def marginals(kind: str, schedulers: list[str], steps: list[int], gammas: list[float]) -> list[Any]:
    """How far the states' mean is from alpha x0, at most, and their deviation from sigma; are they finite."""
    rows: list[Any] = []
    flow = isinstance(base(kind).model.model_sampling, comfy.model_sampling.CONST)
    for scheduler in schedulers:
        for n in steps:
            sigmas = schedule(kind, scheduler, n)
            for gamma in gammas:
                for order in ("1", "2", "multistep"):
                    run = plain(kind, sigmas, gamma=gamma, order=order, end="clean", shape=(1, 4, 32, 32))
                    mean = std = 0.0
                    for sigma, x in zip(run["sigmas"], run["states"], strict=True):
                        alpha = 1 - sigma if flow else 1.0
                        mean = max(mean, abs(float(x.mean()) - alpha) / max(sigma, 0.01))
                        std = max(std, abs(float(x.std()) / sigma - 1))
                    finite = all(bool(torch.isfinite(x).all()) for x in (*run["states"], run["result"]))
                    end = float((run["result"] - 1).abs().max()) if sigmas[-1] == 0 else 0.0
                    rows.append([scheduler, n, gamma, order, mean, std, end, finite])
    return rows


def interrupted(kind: str, latent: Tensor) -> list[Any]:
    """The user presses cancel in the second step: [name of what is raised, calls of the network]."""
    spy, sigmas = Spy(kind), grid(kind, 4)

    def callback(i: int, *_: Any) -> None:
        if i == 1:
            comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    try:
        comfy.sample.sample_custom(
            spy.model,
            latent,
            1.0,
            sampler(),
            sigmas,
            text(1),
            text(2),
            latent,
            callback=callback,
            seed=1,
        )
    except BaseException as error:
        return [type(error).__name__, len(spy.calls)]
    return ["", len(spy.calls)]


def registered() -> dict[str, Any]:
    """What the host's lists say of our names and another pack's."""
    import comfy.k_diffusion.sampling as k_diffusion

    host = comfy.samplers
    samplers, schedulers = host.KSampler.SAMPLERS, host.KSampler.SCHEDULERS
    offered = nodes.NODE_CLASS_MAPPINGS["KSampler"].INPUT_TYPES()["required"]
    functions = {name: getattr(k_diffusion, f"sample_{name}", None) for name in ("tcd_sss", "tcd")}
    return {
        "samplers": [name for name in samplers if "tcd" in name],
        "schedulers": [name for name in schedulers if "tcd" in name],
        "same lists": samplers is host.SAMPLER_NAMES and schedulers is host.SCHEDULER_NAMES,
        "offered": "tcd_sss" in offered["sampler_name"][0] and "tcd_grid" in offered["scheduler"][0],
        "from": {name: getattr(function, "__module__", "") for name, function in functions.items()},
        "nodes": sorted(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("TCD_")),
    }


def load_pack(folder: str) -> bool:
    """Another pack, or this one again from another folder."""
    import asyncio

    return asyncio.run(nodes.load_custom_node(folder))


def forget_us() -> None:
    """As if the pack had never been loaded."""
    import comfy.k_diffusion.sampling as k_diffusion

    del k_diffusion.sample_tcd_sss, comfy.samplers.SCHEDULER_HANDLERS["tcd_grid"]
    comfy.samplers.SAMPLER_NAMES.remove("tcd_sss")
    comfy.samplers.SCHEDULER_NAMES.remove("tcd_grid")
    for name in [n for n in nodes.NODE_CLASS_MAPPINGS if n.startswith("TCD_")]:
        del nodes.NODE_CLASS_MAPPINGS[name]


def has_nested() -> bool:
    """Whether this host can make one latent of several."""
    return hasattr(comfy.utils, "pack_latents")


def nested(kind: str, core: str = "", **given: Any) -> Any:
    """TCD_KSampler, or KSampler with `core`, on a latent of two parts."""
    from comfy.nested_tensor import NestedTensor

    latent = {"samples": NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 8, 8)])}
    if core:
        return ksampler(kind, latent, sampler_name=core, steps=4, **given)["latent"].unbind()
    out = tcd_ksampler(kind, latent, **given)
    return [out["latent"].unbind(), out["denoised"].unbind(), len(out["calls"])]


def node_info() -> dict[str, Any]:
    """As the frontend gets it."""
    ours = {n: c for n, c in nodes.NODE_CLASS_MAPPINGS.items() if n.startswith("TCD_")}
    return json.loads(json.dumps({name: node.GET_NODE_INFO_V1() for name, node in ours.items()}))


def advanced_inputs() -> dict[str, Any]:
    """By input: [by the host's own field, by extra_dict], of those that are served as advanced."""
    import inspect

    from comfy_api.v0_0_2 import io

    found: dict[str, list[bool]] = {}
    for name, node in nodes.NODE_CLASS_MAPPINGS.items():
        for given in node.define_schema().inputs if name.startswith("TCD_") else ():
            if given.as_dict().get("advanced"):
                own, by_hand = getattr(given, "advanced", None), (given.extra_dict or {}).get("advanced")
                found[f"{name}.{given.id}"] = [bool(own), bool(by_hand)]
    return {"has field": "advanced" in inspect.signature(io.Int.Input).parameters, "inputs": found}


def overhead(shape: list[int], network: bool, steps: int, repeats: int) -> dict[str, float]:
    """Median seconds of one CPU a step of ours and of core's euler_ancestral, turn by turn.

    "first run": ours where it has to plan the steps, which it remembers for the next run.
    """
    import statistics
    import time

    import comfy.k_diffusion.sampling as k_diffusion

    kind = "epsilon"
    sigmas, noise = grid(kind, steps), torch.randn(shape)
    times: dict[str, list[float]] = {"first run": [], "tcd_sss": [], "euler_ancestral": []}
    for turn in range(repeats + 1):
        names = list(times)
        for name in names[turn % 3 :] + names[: turn % 3]:  # what ran before must favour none
            sampler_name = "tcd_sss" if name == "first run" else name
            if name == "first run":
                PACK["nodes.host"].plan.cache_clear()
            begin = time.thread_time()
            if network:
                model, zero = base(kind), torch.zeros(shape)
                chosen = comfy.samplers.sampler_object(sampler_name)
                comfy.sample.sample_custom(
                    model, noise, 1.0, chosen, sigmas, text(1), text(2), zero, disable_pbar=True, seed=turn
                )
            else:
                function = getattr(k_diffusion, f"sample_{sampler_name}")
                function(Plain(kind, 0.5), noise * sigmas[0], sigmas, {"seed": turn}, None, True)
            if turn:
                times[name].append((time.thread_time() - begin) / steps)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def embedded(
    prompt: str,
    noise: Tensor,
    noises: list[Tensor],
    steps: int,
    gamma: float,
    cfg: float = 1.0,
    lora: str = "tcd",
    file: str = "",
    order: str = "1",
) -> dict[str, Tensor]:
    """TCD_EmbeddedModel sampled and decoded by core's nodes; `file`: a LoRA by TCD_LoraLoader instead."""
    known = nodes.NODE_CLASS_MAPPINGS
    model, clip, vae, latent = known["TCD_EmbeddedModel"].execute(lora, len(noise)).args
    if file:
        model = loaded(model, file)
    positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in (prompt, ""))
    sigmas = known["TCD_Scheduler"].execute(model, steps, 1.0, 50).args[0]
    start = latent["samples"]
    made = sampler(noises, gamma=gamma, order=order)
    result = comfy.sample.sample_custom(model, noise, cfg, made, sigmas, positive, negative, start, seed=1)
    images = nodes.VAEDecode().decode(vae, {"samples": result})[0]
    again = nodes.VAEEncode().encode(vae, images)[0]["samples"]
    return {"latent": result, "images": images, "encoded": again, "empty": start}


def embedded_by_nodes(seed: int, size: int = 16) -> list[Tensor]:
    """Pictures by TCD_KSampler, and by KSampler with the same names."""
    known = nodes.NODE_CLASS_MAPPINGS
    model, clip, vae, latent = known["TCD_EmbeddedModel"].execute("tcd", 2).args
    text_ = [nodes.CLIPTextEncode().encode(clip.clone(), words)[0] for words in ("red hair", "")]
    ours = known["TCD_KSampler"].execute(model, seed, 4, 1.0, 0.3, *text_, latent, 1.0).args[0]
    names = "tcd_sss", "tcd_grid"
    core = nodes.KSampler().sample(model, seed, 4, 1.0, *names, *text_, latent, 1.0)[0]
    images = [nodes.VAEDecode().decode(vae, x)[0] for x in (ours, core)]
    nodes.VAEEncode().encode(vae, torch.zeros(1, size, size, 3))
    return images


def version() -> str:
    import comfyui_version

    return comfyui_version.__version__


def compare_grid(output: str, loras: str = "", lora: str = "none", **given: Any) -> dict[str, Any]:
    """TCD_CompareGrid on the embedded model, and the same cells and reference by TCD_KSampler and KSampler.

    `loras`: the folder of `lora`. Every cell comes as (steps, gamma, order, strength, images).
    """
    import folder_paths

    folder_paths.set_output_directory(output)
    if loras:
        folder_paths.add_model_folder_path("loras", loras)
    known = nodes.NODE_CLASS_MAPPINGS
    teacher, clip, vae, latent = known["TCD_EmbeddedModel"].execute("none", 2).args
    words = [nodes.CLIPTextEncode().encode(clip, t)[0] for t in ("red hair, glasses", "")]
    node = known["TCD_CompareGrid"].PREPARE_CLASS_CLONE(None)
    defaults = {
        "seed": 5, "steps": "1, 3", "gammas": "0, 0.6", "cfg": 1.0, "denoise": 1.0, "lora_name": lora,
        "lora_strengths": "1", "reference_sampler": "euler", "reference_scheduler": "normal",
        "reference_steps": 6, "reference_cfg": 3.0, "cell_size": 128,
    }  # fmt: skip
    asked: dict[str, Any] = {**defaults, **given}
    bar: list[tuple[int, int, bool]] = []  # value, total, with a preview of the sheet
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, **_: bar.append((value, total, preview is not None))
    )
    try:
        sheet, images, table = node.execute(teacher, *words, latent, vae, **asked).args
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    cells: list[Any] = []
    for strength in map(float, asked["lora_strengths"].split(",")):
        model = teacher
        if lora != "none":
            loader = known["TCD_LoraLoader"].PREPARE_CLASS_CLONE(None)
            model = loader.execute(teacher, lora, strength).args[0]
        for order in asked.get("orders", "1").replace(" ", "").split(","):
            for gamma in map(float, asked["gammas"].split(",")):
                for steps in map(int, asked["steps"].split(",")):
                    alone = known["TCD_KSampler"].execute(
                        model, asked["seed"], steps, asked["cfg"], gamma, *words, latent, asked["denoise"],
                        order,
                    )  # fmt: skip
                    picture = nodes.VAEDecode().decode(vae, alone.args[0])[0]
                    cells.append((steps, gamma, order, strength, picture))
    reference = None
    if asked["reference_sampler"] != "none":
        numbered = {**latent, "batch_index": [0, 1]}
        names = asked["reference_sampler"], asked["reference_scheduler"]
        run = nodes.common_ksampler(
            teacher, asked["seed"], asked["reference_steps"], asked["reference_cfg"], *names, *words,
            numbered, asked["denoise"],
        )  # fmt: skip
        reference = nodes.VAEDecode().decode(vae, run[0])[0]
    return {
        "sheet": sheet,
        "images": images,
        "csv": table,
        "cells": cells,
        "reference": reference,
        "bar": bar,
    }
