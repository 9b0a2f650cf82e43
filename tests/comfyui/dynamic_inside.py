"""Runs in ComfyUI's interpreter: what `distill_inside.py` runs, on models that the host's own nodes load.

    python dynamic_inside.py COMFYUI PACK HOME MODELS [dynamic]

With "dynamic" the host's loaders make models with dynamic VRAM, where the host has that.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import distill_inside as inside
import torch
from dynamic_vram import switch_on
from torch import Tensor

FILES = {"sd15": "tiny-sd15", "flow": "tiny-flow", "bf16": "tiny-flow-bf16", "fp8": "tiny-flow-bf16"}
"""The names of the files by the kind of model; fp8: asked for in the loader."""


def loaded(kind: str) -> Any:
    """A MODEL by Load Checkpoint or Load Diffusion Model, as a graph has it."""
    import nodes

    name = f"{FILES[kind]}.safetensors"
    if kind == "sd15":
        return nodes.CheckpointLoaderSimple().load_checkpoint(name)[0]
    dtype = "fp8_e4m3fn" if kind == "fp8" else "default"
    return nodes.UNETLoader().load_unet(name, dtype)[0]


def text(kind: str, seed: int, count: int = 1) -> Any:
    import distill_models

    if kind != "sd15":
        return distill_models.text("sd3", seed, count)
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, 768, generator=generator), {}] for _ in range(count)]


def sampled(patcher: Any, kind: str) -> Tensor:
    channels = 4 if kind == "sd15" else 16
    return inside.run(
        "TCD_KSampler", model=patcher, seed=5, steps=4, cfg=1.0, gamma=0.3, positive=text(kind, 3),
        negative=text(kind, 2), latent_image={"samples": torch.zeros(1, channels, 4, 4)}, denoise=1.0,
    )[0]["samples"]  # fmt: skip


def dressed(kind: str) -> Any:
    """A MODEL with a style LoRA's patch on a weight, a changed shift or schedule, and a wrapper on it."""
    import comfy.model_sampling

    patcher = loaded(kind).clone()
    weights = dict(patcher.model.diffusion_model.named_parameters())
    name = next(n for n, w in sorted(weights.items()) if "block" in n and w.ndim == 2)
    style = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(8)) / 10
    assert patcher.add_patches({f"diffusion_model.{name}": ("diff", (style,))}, 0.7)
    patcher.set_model_unet_function_wrapper(
        lambda apply, given: 0.9 * apply(given["input"], given["timestep"], **given["c"])
    )
    if kind == "sd15":
        patcher.set_model_attn2_output_patch(lambda out, options: out * 1.2)
    else:
        sampling = type(
            "Shifted", (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST), {}
        )
        made = sampling(patcher.model.model_config)
        made.set_parameters(shift=2.0)
        patcher.add_object_patch("model_sampling", made)
    return patcher


def trained(kind: str, name: str, plain: bool = True, stop: str = "", **other: Any) -> dict[str, Any]:
    """A run through the node, and what becomes of the MODEL and of the copy that was trained.

    `stop`: "error" or "interrupt", at a call of the network in the middle of the run.
    """
    import comfy.model_management as management

    patcher = loaded(kind) if plain else dressed(kind)
    kinds = type(patcher.model).__name__
    image, before = sampled(patcher, kind), at_rest(patcher)
    copies: list[Any] = []
    messages: list[str] = []
    ready, backbone, monitor = (inside.pack(m) for m in ("ready", "backbone", "progress"))
    made, apply, planned = ready.static_copy, backbone.HostBackbone._apply, monitor.Monitor.planned
    calls = [0]

    def copying(model: Any) -> Any:
        copy = made(model)
        copies.append((weakref.ref(copy.model), {str(w.dtype) for w in copy.model.parameters()}))
        return copy

    def failing(self: Any, *args: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 30 and stop == "error":
            raise RuntimeError("the card fell out")
        if calls[0] == 30 and stop:
            management.interrupt_current_processing(True)
        return apply(self, *args)

    ready.static_copy = copying
    backbone.HostBackbone._apply = failing
    monitor.Monitor.planned = lambda self, plan: (messages.append(plan), planned(self, plan))[1]
    found: dict[str, Any] = {"error": ""}
    student = None
    try:
        given = inside.given(
            "epsilon", name, patcher=patcher, conditioning=text(kind, 1, 3), negative=text(kind, 2),
            width=32, height=32, **other,
        )  # fmt: skip
        student, lora, path, _, losses = inside.run("TCD_Distill", **given)
        found |= {"lora": dict(lora), "path": path, "losses": [float(x) for x in losses["loss"]]}
    except BaseException as caught:
        found["error"] = traceback.format_exc()
        caught.__traceback__ = None
    finally:
        ready.static_copy, backbone.HostBackbone._apply = made, apply
        monitor.Monitor.planned = planned
        management.interrupt_current_processing(False)
    gc.collect()
    models = [getattr(m.model, "model", None) for m in management.current_loaded_models]
    listed = sum(type(model).__name__ == kinds for model in models)
    after = at_rest(patcher)
    if student is not None:
        found |= {"student": sampled(student, kind), "student is dynamic": dynamic(student)}
    return {
        **found,
        "dynamic": dynamic(patcher),
        "copies": len(copies),
        "alive": sum(ref() is not None for ref, _ in copies),
        "listed": listed,
        "dtypes": sorted(copies[0][1] if copies else {str(w.dtype) for w in patcher.model.parameters()}),
        "changed": [k for k in before if before[k] != after[k]],
        "plain": image,
        "again": sampled(patcher, kind),
        "plan": messages,
    }  # fmt: skip


def at_rest(patcher: Any) -> dict[str, Any]:
    """All that a training could leave on a MODEL, off the device, where the host may keep other weights.

    Weights are known by their memory: with dynamic VRAM the host makes new parameters of it each time.
    """
    inside.pack("ready").unload(patcher)
    return inside.state(patcher) | {"ids": [w.data_ptr() for w in patcher.model.parameters()]}


def dynamic(patcher: Any) -> bool:
    return getattr(patcher, "is_dynamic", lambda: False)()


def refused_without_a_way_to_read_it_again() -> str:
    """The words for a MODEL whose loader did not tell the host how it was loaded."""
    patcher = loaded("flow").clone()
    patcher.cached_patcher_init = None
    return refusal(patcher, "no loader")


def refused_with_something_in_the_layers() -> str:
    """The words for a MODEL with a LoRA in bypass mode."""
    patcher = loaded("flow").clone()
    patcher.set_injections("bypass_lora", [])
    return refusal(patcher, "bypass")


def refusal(patcher: Any, name: str) -> str:
    given = inside.given(
        "epsilon", name, patcher=patcher, conditioning=text("flow", 1, 3), negative=text("flow", 2),
        width=32, height=32,
    )  # fmt: skip
    try:
        inside.run("TCD_Distill", **given)
    except ValueError as error:
        return str(error)
    return ""


def quantized(models: str) -> list[str]:
    """Write the flow model in every format of weights that this host knows; the names of the files."""
    from safetensors.torch import load_file, save_file

    flow = load_file(Path(models) / "diffusion_models/tiny-flow.safetensors")
    found: dict[str, dict[str, Tensor]] = {"scaled_fp8": scaled_fp8(flow)}
    host: Any = import_module("comfy.quant_ops") if find_spec("comfy.quant_ops") else None  # not in 0.3.64
    for name, how in host.QUANT_ALGOS.items() if host else ():
        mark = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
        made: dict[str, Tensor] = dict(flow)
        for key in attention_and_mlp(flow):
            with suppress(ValueError):  # a format may want wider layers; mlp.fc2 serves all
                packed = host.QuantizedTensor.from_float(flow[key].bfloat16(), how["comfy_tensor_layout"])
                del made[key]
                parts = {k: as_stored(v) for k, v in packed.state_dict(key).items()}
                made |= {**parts, key.replace("weight", "comfy_quant"): mark}
        assert len(made) > len(flow), f"no layer could be written as {name}"
        found[name] = made
    for name, tensors in found.items():
        file = Path(models) / f"diffusion_models/tiny-flow-{name}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file)
    return list(found)


def as_stored(tensor: Tensor) -> Tensor:
    """The scales of mxfp8 as bytes: under dynamic VRAM the host's reader of files knows no other form."""
    return tensor.view(torch.uint8) if "e8m0" in str(tensor.dtype) else tensor


def attention_and_mlp(flow: Mapping[str, Tensor]) -> list[str]:
    return [k for k, v in flow.items() if "joint_blocks" in k and k.endswith("weight") and v.ndim == 2]


def scaled_fp8(flow: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The older form of fp8 with a scale for each layer, that all hosts know."""
    made = {**flow, "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key in attention_and_mlp(flow):
        scale = flow[key].abs().max() / 448
        made[key] = (flow[key] / scale).to(torch.float8_e4m3fn)
        made[key.replace("weight", "scale_weight")] = scale
    return made


def trained_quantized(name: str) -> dict[str, Any]:
    """TCD Distill on a quantized file: what it says, and whether the MODEL samples as before."""
    FILES[name] = f"tiny-flow-{name}"
    patcher = loaded(name)
    kinds = {type(w).__name__ for w in patcher.model.diffusion_model.parameters()}
    before = sampled(patcher, name)
    said = refusal(patcher, f"of {name}")
    return {"kinds": kinds, "said": said, "same": torch.equal(before, sampled(patcher, name))}


def with_lora(kind: str, path: str) -> dict[str, Any]:
    """A LoRA file by our loader and by core's: the patches, and what each samples."""
    import comfy.sd
    import comfy.utils

    lora = inside.pack("lora")
    ours, _, lines = lora.apply(loaded(kind), None, lora.read(path), 0.8)
    core, _ = comfy.sd.load_lora_for_models(loaded(kind), None, comfy.utils.load_torch_file(path), 0.8, 0)
    return {
        "lines": lines,
        "layers": {"ours": sorted(ours.patches), "core": sorted(core.patches)},
        "ours": sampled(ours, kind),
        "core": sampled(core, kind),
        "dynamic": dynamic(ours),
    }


def linear_layers(kind: str) -> dict[str, Any]:
    """The attention layers of the UNet with their shapes, and the width of its embedding of time."""
    network = loaded(kind).model.diffusion_model
    found = [(n, m) for n, m in network.named_modules() if n.endswith(("to_q", "to_out.0"))]
    layers = {n: (m.out_features, m.in_features) for n, m in found}
    return {"layers": layers, "width": network.time_embed[-1].out_features}


def embedded() -> Tensor:
    """Images of the embedded student."""
    model, clip, vae, latent = inside.run("TCD_EmbeddedModel", lora="tcd", batch_size=2)
    texts = [clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("red hair, glasses", "")]
    latents = inside.run(
        "TCD_KSampler", model=model, seed=5, steps=4, cfg=1.0, gamma=0.3, positive=texts[0],
        negative=texts[1], latent_image=latent, denoise=1.0,
    )[0]["samples"]  # fmt: skip
    return vae.decode(latents)


class Pixels:
    """A VAE that shows three channels of the latent."""

    def decode(self, samples: Tensor, **_: Any) -> Tensor:
        return samples[:, :3].movedim(1, -1).sigmoid().repeat_interleave(8, 1).repeat_interleave(8, 2)


def compared(kind: str) -> Tensor:
    """The cells of TCD Compare, teacher beside."""
    made = inside.run(
        "TCD_CompareGrid", model=loaded(kind), vae=Pixels(), seed=3, steps="1, 2", gammas="0, 0.3",
        positive=text(kind, 3), negative=text(kind, 2), cfg=1.0, denoise=1.0, lora_name="none",
        lora_strengths="1", reference_sampler="euler", reference_scheduler="normal", reference_steps=3,
        reference_cfg=1.0, cell_size=64,
        latent_image={"samples": torch.zeros(1, 4 if kind == "sd15" else 16, 4, 4)},
    )  # fmt: skip
    return made[1]


def main() -> None:
    models = sys.argv[4]
    wanted = sys.argv[5:] == ["dynamic"]
    del sys.argv[4:]

    def prepare() -> None:
        import folder_paths

        for kind in ("checkpoints", "diffusion_models", "vae"):
            folder_paths.add_model_folder_path(kind, str(Path(models) / kind), is_default=True)
        if wanted:
            switch_on()

    inside.main(globals(), prepare)


if __name__ == "__main__":
    main()
