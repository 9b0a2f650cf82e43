"""Runs in ComfyUI's interpreter: UNets of full size with random weights, sampled by the pack.

    python full_size_inside.py COMFYUI PACK

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

SOURCE = 1 << 20
"""Random numbers that every weight is cut from."""
_conditioning: dict[str, Any] = {}
"""What the network was given in the last run, for `network`."""


@cache
def model(architecture: str) -> Any:
    """A ModelPatcher: weights kept in bfloat16, to take half the memory, and computed with in float32."""
    import comfy.model_patcher
    import comfy.supported_models
    from lora_inside import CLASSES, UNETS

    config = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320}
    config |= {"use_spatial_transformer": True, **UNETS[architecture]}
    known = getattr(comfy.supported_models, CLASSES[architecture])(config)
    known.set_inference_dtype(torch.bfloat16, torch.float32)
    made = known.get_model({}, device=torch.device("cpu"))
    source = torch.randn(SOURCE, generator=torch.Generator().manual_seed(5)).bfloat16()
    for name, weight in made.diffusion_model.named_parameters():
        scale = 1 / weight[0].numel() ** 0.5 if weight.ndim > 1 else 0.1
        for part in weight.data.view(-1).split(SOURCE):
            part.copy_(source[: len(part)]).mul_(scale)
        if weight.ndim == 1 and name.endswith("weight"):
            weight.data += 1
    made.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def size(architecture: str) -> int:
    """Parameters of the UNet."""
    return sum(p.numel() for p in model(architecture).model.diffusion_model.parameters())


def conditioning(architecture: str) -> Any:
    width = model(architecture).model.model_config.unet_config["context_dim"]
    words = torch.randn(1, 77, width, generator=torch.Generator().manual_seed(8))
    return [[words, {"pooled_output": words.flatten()[None, :1280]}]]


def run(
    architecture: str, node: str, latent: Tensor, steps: int, gamma: float, denoise: float = 1.0
) -> dict[str, Any]:
    """By core's KSampler or by TCD_KSampler, cfg 1: the state, and what another sampler needs for the same.

    State and latent in the model's scale, timesteps called, initial noise, noise of the steps.
    """
    import comfy.sample
    import nodes
    from comfyui_inside import PACK

    patched, sigmas, seed = model(architecture).clone(), list[float](), 3
    ms = patched.get_model_object("model_sampling")

    def seen(apply: Any, args: Any) -> Tensor:
        sigmas.extend(args["timestep"].tolist())
        _conditioning.update(context=args["c"]["c_crossattn"], y=args["c"].get("y"))
        return apply(args["input"], args["timestep"], **args["c"])

    patched.set_model_unet_function_wrapper(seen)
    words, given = conditioning(architecture), {"samples": latent}
    if node == "KSampler":
        (patched,) = nodes.NODE_CLASS_MAPPINGS["TCD_Settings"].execute(patched, gamma).args
        names = "tcd_sss", "tcd_grid"
        (out,) = nodes.KSampler().sample(patched, seed, steps, 1.0, *names, words, words, given, denoise)
    else:
        ours = nodes.NODE_CLASS_MAPPINGS[node]
        out = ours.execute(patched, seed, steps, 1.0, gamma, words, words, given, denoise).args[0]
    noise = PACK["nodes.tcd_sss"].step_noise(latent, seed)
    into = patched.model.process_latent_in
    return {
        "state": into(out["samples"]),
        "latent": into(latent),
        "timesteps": ms.timestep(torch.tensor(sigmas)).tolist(),
        "noise": comfy.sample.prepare_noise(latent, seed, [0]),
        "noises": [noise(sigma) for sigma in sigmas[1:]],
    }


def network(architecture: str, x: Tensor, t: Tensor) -> Tensor:
    """The bare network, with the conditioning of the last run."""
    given = {name: value for name, value in _conditioning.items() if value is not None}
    return model(architecture).model.diffusion_model(x, t.expand(x.shape[0]).float(), **given)


if __name__ == "__main__":
    from comfyui_worker import main

    main(globals())
