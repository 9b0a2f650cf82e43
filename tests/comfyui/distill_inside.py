"""Runs in ComfyUI's interpreter: TCD_Distill and its companions on tiny models, in inference mode.

    python distill_inside.py COMFYUI PACK HOME

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import distill_standins
import torch
from comfyui_worker import send, serve
from torch import Tensor

SETTINGS = (
    "trajectories = 4\nvalidation_prompts = 1\nvalidate_every = {steps}\nsave_every = 1\nskip = 100\n{more}"
)


def node(name: str) -> Any:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]


def run(node_id: str, **given: Any) -> Any:
    """A node as the executor calls it."""
    from comfy_api.v0_0_2 import io

    hidden = {io.Hidden.unique_id: "7"}
    made = node(node_id).PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})
    return made.execute(**given).args


def pack(module: str) -> Any:
    return sys.modules[node("TCD_Distill").__module__.replace(".distill", f".{module}")]


def training(module: str) -> Any:
    return import_module(node("TCD_Distill").__module__.replace("nodes.distill", f"training.{module}"))


def base(kind: str) -> Any:
    import distill_models

    return distill_models.base(kind)


def text(kind: str, seed: int, count: int = 1) -> Any:
    import distill_models

    return distill_models.text(kind, seed, count)


def state(patcher: Any) -> dict[str, Any]:
    """All that a training could leave on a shared model."""
    model = patcher.model
    hashed = sha256()
    for name, value in model.state_dict().items():
        hashed.update(name.encode() + value.detach().contiguous().float().numpy().tobytes())
    parameters = list(model.named_parameters())
    return {
        "weights": hashed.hexdigest(),
        "modules": [f"{n} {type(m).__name__}" for n, m in model.named_modules()],
        "parameters": [(n, p.requires_grad, p.is_inference(), p.grad is None) for n, p in parameters],
        "ids": [id(p) for p in model.parameters()],
        "patches": sorted(patcher.patches),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "training": [n for n, m in model.named_modules() if m.training],
        "peft": hasattr(model.diffusion_model, "peft_config"),
    }  # fmt: skip


def given(kind: str, name: str, steps: int = 3, more: str = "", **other: Any) -> dict[str, Any]:
    """The inputs of TCD_Distill for a tiny run."""
    inputs = {
        "model": other.pop("patcher", None) or base(kind).clone(),
        **distill_standins.RUN,
        "run_name": name,
        "steps": steps,
        "width": 64,
        "height": 64,
        "conditioning": text(kind, 1, 3),
        "negative": text(kind, 2),
        "settings": SETTINGS.format(steps=steps, more=more),
    }
    return {**inputs, **other}


def sampled(patcher: Any, kind: str, steps: int = 4) -> Tensor:
    """A picture's latent by the pack's sampler."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    positive, negative = text(kind, 3), text(kind, 2)
    return run(
        "TCD_KSampler", model=patcher, seed=5, steps=steps, cfg=1.0, gamma=0.3, positive=positive,
        negative=negative, latent_image=latent, denoise=1.0,
    )[0]["samples"]  # fmt: skip


def dressed(kind: str) -> Any:
    """A MODEL as it comes from other nodes: a style LoRA's patch on a weight, a patch of the attention as of
    an IP-Adapter, a wrapper of the model's function.
    """
    patcher = base(kind).clone()
    weights = dict(patcher.model.diffusion_model.named_parameters())
    name = next(n for n, w in weights.items() if "blocks" in n and w.ndim == 2)
    style = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(8)) / 10
    assert patcher.add_patches({f"diffusion_model.{name}": ("diff", (style,))}, 0.7)
    patcher.set_model_attn2_output_patch(lambda out, options: out * 1.2)
    patcher.set_model_unet_function_wrapper(
        lambda apply, given: 0.9 * apply(given["input"], given["timestep"], **given["c"])
    )
    return patcher


def distilled(kind: str, name: str, patched: bool = False, **other: Any) -> dict[str, Any]:
    """A run through the node, and all that can be seen of it."""
    import comfy.sd
    import comfy.utils

    patcher = dressed(kind) if patched else base(kind).clone()
    before, plain = state(patcher), sampled(patcher, kind)
    found = state(patcher)
    model, lora, path, image, losses = run("TCD_Distill", **given(kind, name, patcher=patcher, **other))
    after = state(patcher)
    student = sampled(model, kind)
    again = sampled(patcher, kind)
    file = comfy.utils.load_torch_file(path)
    by_core, _ = comfy.sd.load_lora_for_models(patcher, None, file, 1.0, 0)
    in_memory, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0)
    layers = {k.rsplit(".", 2)[0] for k in file if k.endswith("lora_up.weight")}
    return {
        "changed by sampling": [k for k in before if before[k] != found[k]],
        "changed by training": [k for k in found if found[k] != after[k]],
        "plain": plain,
        "again": again,
        "student": student,
        "core": sampled(by_core, kind),
        "memory": sampled(in_memory, kind),
        "patched by core": len(by_core.patches),
        "layers": len(layers),
        "path": path,
        "image": image,
        "losses": [float(x) for x in losses["loss"]],
        "metadata": dict(getattr(lora, "metadata", {})),
    }


def refused(kind: str, name: str, break_at: str = "", **other: Any) -> dict[str, Any]:
    """A run that must fail: its error, and whether the model is as before."""
    import comfy.model_management as management

    patcher = base(kind).clone()
    with torch.inference_mode():
        management.load_models_gpu([patcher])
    before = state(patcher)
    backbone = pack("backbone")
    real, calls = backbone.HostBackbone._apply, [0]

    def failing(self: Any, *args: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == other_at:
            if break_at == "error":
                raise RuntimeError("the card fell out")
            management.interrupt_current_processing(True)
        return real(self, *args)

    other_at = other.pop("at", 0)
    backbone.HostBackbone._apply = failing
    try:
        run("TCD_Distill", **given(kind, name, patcher=patcher, **other))
        error = ""
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        backbone.HostBackbone._apply = real
        management.interrupt_current_processing(False)
    return {
        "error": error,
        "changed": [k for k in before if before[k] != state(patcher)[k]],
        "calls": calls[0],
    }


CANCELLED_STEPS = 4


def cancelled(phase: str, kind: str, name: str) -> dict[str, Any]:
    """A run in which Cancel is pressed in the middle of a phase, and the same run queued again.

    The host raises the interrupt where it next looks: 0.33 in any operator, also within a backward pass,
    older ones when the model is called.
    """
    import comfy.model_management as management

    patcher = base(kind).clone()
    with torch.inference_mode():
        management.load_models_gpu([patcher])
    before, pressed = state(patcher), [0]
    more = 'checkpointing = "blocks"'
    given_: dict[str, Any] = {"patcher": patcher, "steps": CANCELLED_STEPS, "more": more}

    def press(*_: Any) -> None:
        pressed[0] += 1
        # Not the first time, so that there is something to lose; only the last step is validated.
        if pressed[0] == (1 if phase == "validation" else 2):
            management.interrupt_current_processing(True)

    owner, attribute, real = moment(phase)

    def pressing(*args: Any, **kwargs: Any) -> Any:
        if phase != "backward":
            press()
            return real(*args, **kwargs)
        out = real(*args, **kwargs)
        if out.requires_grad:  # the student's: pressed when its gradient comes back
            out.register_hook(press)
        return out

    setattr(owner, attribute, pressing)
    try:
        run("TCD_Distill", **given(kind, name, **given_))
        error = ""
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}"
    finally:
        setattr(owner, attribute, real)
        management.interrupt_current_processing(False)
    changed = [k for k in before if before[k] != state(patcher)[k]]
    kept = len(training("report").read_log(Path(pack("runs").run_folder(name)) / "log.jsonl"))
    path = run("TCD_Distill", **given(kind, name, **given_))[2]
    return {"error": error, "pressed": pressed[0], "changed": changed, "kept": kept, "path": path}


def moment(phase: str) -> tuple[Any, str, Any]:
    """The function of a run in which Cancel is pressed: its owner, its name, itself."""
    backbone = pack("backbone").HostBackbone
    owner, name = {
        "pairs": (training("pairs").Trajectories, "batch"),
        "student": (training("stage").ChainedTargets, "loss"),
        "backward": (backbone, "_apply"),
        "validation": (training("recorder"), "write_png"),
        "saving": (training("state").State, "save"),
    }[phase]
    return owner, name, getattr(owner, name)


def planned(free: int, kind: str = "epsilon") -> str:
    """The plan that the node shows, with so many bytes free; -1 and -2: of the second and the last plan."""
    distill, memory, run_of = pack("distill"), training("memory"), training("run")
    real, told = distill.free_memory, []
    config = distill.settings_of(
        "sd15", base(kind), SETTINGS.format(steps=3, more=""), steps=3, batch=2, rank=4
    )
    if free < 0:
        for made, cond, _ in opened(kind, 3):
            plans = memory.plans(run_of.needs(config, made, cond), config)
            free = plans[1 if free == -1 else -1].need
    monitor = pack("progress").Monitor
    real_planned = monitor.planned
    monitor.planned = lambda self, plan: (told.append(plan), real_planned(self, plan))[1]
    distill.free_memory = lambda device: free
    try:
        run("TCD_Distill", **given(kind, f"planned {free}"))
    finally:
        distill.free_memory, monitor.planned = real, real_planned
    return told[0]


def kept(kind: str) -> dict[str, int]:
    """Bytes that a sample's backward pass keeps, and those of the base's layers in float32."""
    distill, narrow = pack("distill"), training("narrow")
    config = distill.settings_of(
        "sd15", base(kind), SETTINGS.format(steps=3, more=""), steps=3, batch=2, rank=4
    )
    opening = opened(kind, 3)
    made, cond, _ = next(opening)
    needs = training("run").needs(config, made, cond)
    opening.close()
    layers = narrow.narrow_layers(base(kind).model.diffusion_model)
    wide = 4 * sum(layer.weight.numel() for layer in layers)
    return {"kept": needs.kept.whole, "layers": len(layers), "wide": wide}


def opened(kind: str, count: int, patcher: Any = None) -> Any:
    patcher = patcher or base(kind).clone()
    backbone = pack("backbone")
    with pack("ready").ready(patcher):
        made = backbone.HostBackbone(patcher, (4, 8, 8), lambda x: x)
        cond = made.encode(text(kind, 1, count))
        uncond = made.encode(text(kind, 2), uncond=True)
        yield made, cond, uncond


def devices(kind: str) -> dict[str, str]:
    """Of encoded prompts, for a model on a device that is not the CPU."""
    backbone = pack("backbone")

    class Elsewhere(backbone.HostBackbone):
        device = torch.device("meta")

    patcher = base(kind).clone()
    with pack("ready").ready(patcher):
        made = Elsewhere(patcher, (4, 8, 8), lambda x: x)
        conds = made.encode(text(kind, 1, 2)), made.encode(text(kind, 2), uncond=True)
        return {k: v.device.type for k, v in pack("prompts").alike(*conds)[0].items()}


def rows(kind: str, count: int = 3) -> dict[str, Any]:
    """Predictions of a batch of unlike prompts, times and states, and of its items alone."""
    for made, cond, _ in opened(kind, count):
        x = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        flow = made.flow
        t = torch.linspace(0.2, 0.9, count, dtype=torch.float64) * (1.0 if flow else 999.0)
        now = made.schedule.point(t)
        with torch.no_grad():
            both = made.predictor(cond)(x, now, now)
            alone = []
            for i in range(count):
                at = made.schedule.point(t[i : i + 1])
                part = {k: v[i : i + 1] for k, v in cond.items()}
                alone.append(made.predictor(part)(x[i : i + 1], at, at))
        return {
            "batch": both,
            "alone": tuple(torch.cat(p) for p in zip(*alone, strict=True)),
            "x": x,
            "level": tuple(v.float() for v in now.level),
        }
    return {}


def guided_like_the_host(kind: str, patched: bool = False) -> dict[str, Tensor]:
    """x0 of one prompt by the bridge, and by the host's own path of a sampling."""
    patcher = dressed(kind) if patched else base(kind).clone()
    opening = opened(kind, 1, patcher)
    made, cond, _ = next(opening)
    now = made.schedule.point(torch.tensor([0.6 if made.flow else 599.0], dtype=torch.float64))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ours = made.predictor(cond)(x, now, now)[0]
    opening.close()
    return {"ours": ours, "host": by_host(patcher, x, now, made.flow, text(kind, 1), text(kind, 2))}


def by_host(
    patcher: Any, x: Tensor, now: Any, flow: bool, positive: Any, negative: Any, cfg: float = 1.0
) -> Tensor:
    """x0 of one state of the paper, as the host's sampling asks for it; with cfg 0 of the negative prompt."""
    import comfy.samplers

    alpha, sigma = (float(v) for v in now.level)
    state_, level = (x, sigma) if flow else (x / alpha, sigma / alpha)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    seen: dict[str, Tensor] = {}

    class Once(comfy.samplers.Sampler):
        def sample(self, model_wrap: Any, sigmas: Any, extra_args: Any, *_: Any, **__: Any) -> Tensor:
            seen["x0"] = model_wrap(state_, torch.tensor([level]), **extra_args)
            return state_

    guider.sample(torch.zeros_like(x), torch.zeros_like(x), Once(), torch.tensor([level, 0.0]), seed=1)
    return seen["x0"]


def told(kind: str) -> dict[str, dict[str, str]]:
    """What a network is told in `transformer_options`, by the host's sampler and by the bridge: types, and
    values where they are no tensors. With another node's patches on the model.
    """
    import comfy.model_base

    seen: list[dict[str, str]] = []
    real = comfy.model_base.BaseModel.apply_model

    def watched(self: Any, *args: Any, **given: Any) -> Tensor:
        options = given["transformer_options"]
        seen.append({k: described(v) for k, v in options.items()})
        seen[-1]["uuids"] = str(len(options["uuids"]))  # each prompt's own, new each time
        levels, at = options["sample_sigmas"], options["sigmas"]
        assert bool(levels.diff().le(0).all()) and levels[-1] == 0 and bool(torch.isin(at, levels).all())
        return real(self, *args, **given)

    def described(value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{value.ndim} dimensions of {value.dtype} on {value.device}"
        return str(value)

    comfy.model_base.BaseModel.apply_model = watched
    try:
        guided_like_the_host(kind, patched=True)
    finally:
        comfy.model_base.BaseModel.apply_model = real
    return {"bridge": seen[0], "host": seen[-1]}


def schedule(kind: str) -> dict[str, Tensor]:
    """Levels of the schedule that the loss is taken on, and the model's own sigmas."""
    patcher = base(kind)
    made = pack("backbone").schedule_of(patcher.get_model_object("model_sampling"))
    times = torch.tensor([0.0, 19.0, 499.0, 999.0], dtype=torch.float64)
    alpha, sigma = made.point(times).level
    sigmas = patcher.model.model_sampling.sigmas
    return {"sigma_hat": sigma / alpha, "host": sigmas[times.long()].double()}


def saved(name: str, form: str, path: str = "", tensors: Any = None, notes: str = "") -> str:
    return run("TCD_SaveLora", name=name, format=form, path=path, lora=tensors, notes=notes)[0]


def dataset(folder: str, faulty: str = "stop", width: int = 16, height: int = 16) -> Any:
    _, clip, vae, _ = run("TCD_EmbeddedModel", lora="none", batch_size=1)
    return run("TCD_Dataset", folder=folder, vae=vae, clip=clip, width=width, height=height, faulty=faulty)


def from_dataset(folder: str, name: str, steps: int = 2) -> dict[str, Any]:
    model, clip, _, _ = run("TCD_EmbeddedModel", lora="none", batch_size=1)
    data, _ = dataset(folder)
    inputs = given("", name, steps=steps, patcher=model, conditioning=None, negative=None, clip=clip)
    inputs["preset"], inputs["dataset"] = "embedded", data
    _, lora, path, _, losses = run("TCD_Distill", **inputs)
    return {"path": path, "losses": [float(x) for x in losses["loss"]], "keys": len(lora)}


def of_latents(latents: Any, conditioning: Any, faulty: str = "stop") -> dict[str, Any]:
    """What TCD_DatasetFromLatents makes of lists, as a run reads it."""
    given = {"latents": latents, "conditioning": conditioning, "faulty": [faulty]}
    data, report = run("TCD_DatasetFromLatents", **given)
    ((tensor, prompts),) = pack("dataset").shards_of(data)
    return {"latents": tensor, "prompts": prompts, "report": report, "shape": data["latent_shape"]}


def distilled_from(latents: Any, conditioning: Any, name: str) -> Any:
    data, _ = run("TCD_DatasetFromLatents", latents=latents, conditioning=conditioning, faulty=["stop"])
    return run("TCD_Distill", **given("epsilon", name, dataset=data))[2]


def embedded(name: str, prompts: str, **other: Any) -> dict[str, Any]:
    """The shipped teacher distilled through the bridge."""
    model, clip, vae, _ = run("TCD_EmbeddedModel", lora="none", batch_size=1)
    inputs = given("", name, patcher=model, conditioning=None, negative=None, clip=clip, vae=vae)
    inputs |= {"preset": "embedded", "prompts": prompts, "width": 16, "height": 16, **other}
    _, lora, path, image, losses = run("TCD_Distill", **inputs)
    return {"lora": dict(lora), "path": path, "losses": [float(x) for x in losses["loss"]], "image": image}


def inputs_of_the_command(prompts: list[str]) -> Any:
    """What `tcd train --comfyui` notes of a run of the embedded model, in the size of the node's."""
    import atexit

    model, clip, vae, _ = run("TCD_EmbeddedModel", lora="none", batch_size=1)
    headless = import_module(node("TCD_Distill").__module__.replace(".distill", ".headless"))
    real, closing = atexit.register, []
    atexit.register = closing.append
    try:
        opened = headless.Opened(model, clip, vae, (16, 16), "")
        conds = opened.encode(prompts), opened.encode([""])
        teacher = training("backbone").fingerprint(opened.backbone.network)
        made = opened.backbone
        return training("inputs").inputs_of(teacher, made.schedule, made.latent_shape, *conds)
    finally:
        atexit.register = real
        for close in closing:
            close()


def messages(kind: str, name: str) -> list[str]:
    """All that the panel is told of a run in words."""
    monitor, told = pack("progress").Monitor, []
    real = monitor.send
    monitor.send = lambda self, force=False: (told.append(self.message), real(self, force))[1]
    try:
        run("TCD_Distill", **given(kind, name))
    finally:
        monitor.send = real
    return told


def started_fast(kind: str, name: str, features: list[str]) -> dict[str, Any]:
    """`messages` of a ComfyUI started with these of --fast, and whether float16 is summed in 16 bits."""
    from comfy.cli_args import PerformanceFeature, args

    matmul, was, seen = torch.backends.cuda.matmul, args.fast, []
    backbone = pack("backbone").HostBackbone
    real = backbone._apply

    def look(self: Any, *given: Any) -> Tensor:
        seen.append(matmul.allow_fp16_accumulation)
        return real(self, *given)

    args.fast, matmul.allow_fp16_accumulation = {PerformanceFeature(f) for f in features}, True
    backbone._apply = look
    try:
        told = messages(kind, name)
        after = matmul.allow_fp16_accumulation
    finally:
        args.fast, matmul.allow_fp16_accumulation, backbone._apply = was, False, real
    return {"messages": told, "accumulates": [True, any(seen), after]}


def with_foreign_layers(kind: str, name: str) -> str:
    """The refusal of a model with a layer of the package cublas_ops, which has no backward pass."""
    patcher = own_model(kind)
    layer = type("CublasLinear", (torch.nn.Linear,), {"__module__": "cublas_ops"})(2, 2)
    patcher.model.diffusion_model.add_module("foreign", layer)
    try:
        run("TCD_Distill", **given(kind, name, patcher=patcher))
    except ValueError as error:
        return str(error)
    return ""


class Evicting:
    """A VAE for which the host frees all the memory that it can."""

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, latents: Tensor) -> Tensor:
        import comfy.model_management as management

        self.calls += 1
        management.free_memory(1e30, management.get_torch_device())
        return latents[:, :3].movedim(1, -1).sigmoid()


def evicted(kind: str, name: str) -> dict[str, Any]:
    """A run on a MODEL with other nodes' patches, whose validation images want all the memory."""
    import comfy.model_management as management

    patcher, vae = dressed(kind), Evicting()
    plain = sampled(patcher, kind)
    found = run("TCD_Distill", **given(kind, name, patcher=patcher, vae=vae))
    listed = [m for m in management.current_loaded_models if m.model is patcher]
    weights = dict(patcher.model.named_parameters())
    return {
        "lora": dict(found[1]),
        "decoded": vae.calls,
        "listed": len(listed),
        "again": sampled(patcher, kind),
        "plain": plain,
        "inference": any(w.is_inference() for w in weights.values()),
    }


def own_model(kind: str) -> Any:
    """A model of this kind that no other test uses."""
    import comfyui_inside

    return comfyui_inside.base.__wrapped__(kind, dtype=torch.float32).clone()


def latest(node_id: str) -> Any:
    return pack("progress").latest(node_id)


def main(functions: Mapping[str, Any] | None = None, prepare: Callable[[], None] = lambda: None) -> None:
    """Answer calls of these functions, of this file's unless another script gives its own.

    `prepare` runs once ComfyUI is imported.
    """
    host, folder, home = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    sys.argv = ["main.py", "--cpu", "--base-directory", home]
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths
    import nodes

    for name in ("input", "output", "temp"):
        (Path(home) / name).mkdir(parents=True, exist_ok=True)
    folder_paths.set_temp_directory(str(Path(home) / "temp"))
    prepare()
    send(answers, [asyncio.run(nodes.load_custom_node(folder)), None])
    serve(answers, functions or globals())


if __name__ == "__main__":
    main()
