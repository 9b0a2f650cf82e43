"""Runs in ComfyUI's interpreter: the LoRA loader with and without bypass, on small models.

python bypass_inside.py COMFYUI PACK FOLDER_OF_LORAS
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from base_models_inside import network
from lora_inside import execute, main, model
from torch import Tensor

CPU = torch.device("cpu")
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "vec_in_dim": 16,
    "context_in_dim": 24,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
}


def patcher(kind: str, narrow: bool = False) -> Any:
    """A MODEL with random weights: "SD 1.5", "SDXL" or "Flux"; `narrow`: in float8, computed in float32."""
    if kind != "Flux" and not narrow:
        return model(kind, small=True)
    import comfy.model_patcher
    import comfy.supported_models

    config = dict(FLUX) if kind == "Flux" else dict(model(kind, small=True).model.model_config.unet_config)
    config.pop("dtype", None)
    made = getattr(comfy.supported_models, {"SD 1.5": "SD15"}.get(kind, kind))
    # A type to compute in beside that of the weights makes the host cast each weight as it is used.
    types = (torch.float16, torch.float32) if narrow else (torch.float32, None)
    built = network(made, config, "cpu", *types)
    generator = torch.Generator().manual_seed(5)
    for weight in built.diffusion_model.parameters():
        scale = 1 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
        weight.data = torch.randn(weight.shape, generator=generator) * scale
        if narrow and weight.ndim == 2:
            weight.data = weight.data.to(torch.float8_e4m3fn)
    built.eval().requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(built, load_device=CPU, offload_device=CPU)


def forward(loaded: Any, kind: str) -> Tensor:
    """The network's output for one input, within the host's own loading of models."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([loaded])
    told = {**loaded.model_options.get("transformer_options", {}), "tcd_target": 200.0}
    return call(loaded.model.diffusion_model, kind, told)


def call(unet: Any, kind: str, options: dict[str, Any] | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 7, 24, generator=generator)
    y = {"SDXL": torch.randn(1, 48, generator=generator), "Flux": torch.randn(1, 16, generator=generator)}
    time = torch.tensor([0.5 if kind == "Flux" else 500.0])
    return unet(x, time, context=context, y=y.get(kind), transformer_options=options or {}).clone()


def both_ways(kind: str, names: list[str], strength: float = 1.0, narrow: bool = False) -> dict[str, Any]:
    """The outputs without, merged and beside, the reports, and the weights' patches of the last."""
    import comfy.model_management

    plain = patcher(kind, narrow)
    before = {k: v.clone() for k, v in plain.model.state_dict().items()}
    out: dict[str, Any] = {"plain": forward(plain, kind)}
    for way in ("merged", "beside"):
        loaded = plain
        for name in names:
            loaded, _, report = execute(loaded, name, strength, None, way == "beside")
            out[f"{way} report"] = report.split("\n")
        out[way] = forward(loaded, kind)
        out[f"{way} patches"] = sorted(k for k, v in loaded.patches.items() if v)
        out[f"{way} changed"] = sum(
            not torch.equal(before[k].float(), v.float()) for k, v in loaded.model.state_dict().items()
        )
        out[f"{way} again"] = forward(plain, kind)
        if way == "merged" and narrow:
            out["true"] = exact(plain, loaded, kind)
    comfy.model_management.unload_all_models()
    out["after"] = call(plain.model.diffusion_model, kind)
    return out


def exact(plain: Any, loaded: Any, kind: str) -> Tensor:
    """The network in float32 with the LoRA added to the dequantised weights by the host's arithmetic."""
    import comfy.lora

    kept = {k: v.data for k, v in plain.model.named_parameters()}
    for key, weight in plain.model.named_parameters():
        weight.data = weight.data.float()
        if key in loaded.patches:
            weight.data = comfy.lora.calculate_weight(loaded.patches[key], weight.data.clone(), key)
    made = call(plain.model.diffusion_model, kind)
    for key, weight in plain.model.named_parameters():
        weight.data = kept[key]
    return made


def life(name: str, other: str) -> dict[str, Any]:
    """What clones that are thrown away, switched or loaded twice do to the outputs."""
    plain = patcher("SD 1.5")
    one = execute(plain, name, 1.0, None, True)[0]
    two = execute(one, other, 1.0, None, True)[0]
    out: dict[str, Any] = {
        "plain": forward(plain, "SD 1.5"),
        "one": forward(one, "SD 1.5"),
        "two": forward(two, "SD 1.5"),
    }
    out["one again"] = forward(one, "SD 1.5")
    clone = one.clone()
    del clone
    gc.collect()
    out["a clone is gone"] = call(one.model.diffusion_model, "SD 1.5")
    clone = one.clone()
    out["by a clone"] = forward(clone, "SD 1.5")
    del clone
    gc.collect()
    out["one after it"] = forward(one, "SD 1.5")
    two.detach()
    out["another was detached"] = call(one.model.diffusion_model, "SD 1.5")
    one.detach()
    out["detached"] = call(one.model.diffusion_model, "SD 1.5")
    twice = execute(one, name, 1.0, None, False)[2]
    out["twice"] = [execute(one, name, 1.0, None, True)[2], twice]
    return out


def by_core(kind: str, name: str) -> Tensor | None:
    """The output with the host's own bypass; None where it has none."""
    import comfy.sd
    import comfy.utils
    import folder_paths

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        return None
    tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name))
    return forward(comfy.sd.load_bypass_lora_for_models(patcher(kind), None, tensors, 1.0, 0.0)[0], kind)


def gradient(name: str) -> float:
    """The norm of the input's gradient through a model with a LoRA beside it, outside of inference mode."""
    with torch.inference_mode(False):
        plain = patcher("SD 1.5", narrow=True)
    loaded = execute(plain, name, 1.0, None, True)[0]
    forward(loaded, "SD 1.5")
    with torch.inference_mode(False), torch.enable_grad():
        x, context = torch.randn(1, 4, 16, 16).requires_grad_(), torch.randn(1, 7, 24)
        loaded.model.diffusion_model(x, torch.tensor([500.0]), context=context, y=None).sum().backward()
        assert x.grad is not None
        return float(x.grad.norm())


if __name__ == "__main__":
    main(globals())
