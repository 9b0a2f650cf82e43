"""Runs in ComfyUI's interpreter: tiny models of all the host's classes, sampled and distilled.

    python zoo_inside.py COMFYUI PACK HOME

Asked and answered as by comfyui_worker.py. The models are made and loaded by zoo_models.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import distill_inside
import distill_standins
import torch
import zoo_models
from distill_inside import SETTINGS, by_host, pack, run, state, training
from torch import Tensor
from zoo_models import RECIPES

STEPS = 2


def classes() -> list[str]:
    return zoo_models.classes()


def base(name: str) -> Any:
    return zoo_models.base(name, Path(sys.argv[-1])).clone()


def shape_of(name: str, patcher: Any) -> tuple[int, ...]:
    """Of a latent of the class's picture, as the host has it."""
    side = zoo_models.side(name, patcher.get_model_object("latent_format"))
    return pack("distill").latent_shape(patcher, side, side, None, None)


def sampled(name: str, patcher: Any, **settings: Any) -> Tensor:
    """A latent by TCD_KSampler."""
    positive, negative = texts(name)
    latent = {"samples": torch.zeros(1, *shape_of(name, patcher))}
    return run(
        "TCD_KSampler", model=patcher, seed=5, steps=3, cfg=1.5, positive=positive, negative=negative,
        latent_image=latent, denoise=1.0, **{"gamma": 0.3, **settings},
    )[0]["samples"]  # fmt: skip


def texts(name: str) -> tuple[Any, Any]:
    """A positive and a negative prompt, as encoded."""
    lengths = RECIPES[name].encoded
    return zoo_models.text(name, 3, lengths[:1]), zoo_models.text(name, 2, lengths[3:])


def without_noise(name: str) -> dict[str, Tensor]:
    """The pack's sampler with gamma 0, and the host's euler on the same sigmas."""
    import comfy.sample
    import comfy.samplers

    patcher = base(name)
    positive, negative = texts(name)
    latent = torch.zeros(1, *shape_of(name, patcher))
    sigmas = run("TCD_Scheduler", model=patcher, steps=3, denoise=1.0)[0]
    noise = comfy.sample.prepare_noise(latent, 5, [0])
    euler = comfy.sample.sample_custom(
        patcher, noise, 1.5, comfy.samplers.sampler_object("euler"), sigmas, positive, negative, latent,
        disable_pbar=True, seed=5,
    )  # fmt: skip
    return {
        "ours": sampled(name, patcher, gamma=0.0, end="clean"),
        "euler": euler,
        "noisy": sampled(name, patcher),
    }


def empty(name: str) -> dict[str, list[int]]:
    """Shapes of a sample that the host's KSampler makes of an empty LATENT, and that a training takes."""
    import nodes

    patcher = base(name)
    side = zoo_models.side(name, patcher.get_model_object("latent_format"))
    latent = nodes.EmptyLatentImage().generate(side, side)[0]
    positive, negative = texts(name)
    sampled = nodes.KSampler().sample(patcher, 1, 1, 1.0, "euler", "simple", positive, negative, latent, 1.0)
    ours = pack("distill").latent_shape(patcher, 8, 8, latent, None)
    return {"host": list(sampled[0]["samples"].shape[1:]), "ours": list(ours)}


def preview(name: str) -> dict[str, Tensor]:
    """A picture of a latent without a VAE, as the host previews it and as a training shows it."""
    import latent_preview
    import numpy as np

    patcher = base(name)
    form = patcher.get_model_object("latent_format")
    latent = torch.randn(1, *shape_of(name, patcher), generator=torch.Generator().manual_seed(1))
    ours = pack("distill").decoder(form, None)(patcher.model.process_latent_out(latent))
    factors = [form.latent_rgb_factors, getattr(form, "latent_rgb_factors_bias", None)]
    reshape = getattr(form, "latent_rgb_factors_reshape", None)
    host = ours[0]
    if factors[0] is not None:
        previewer = latent_preview.Latent2RGBPreviewer(*factors, *([reshape] if reshape else []))
        host = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latent)))
    return {"ours": ours[0], "host": host}


def rows(name: str) -> dict[str, Any]:
    """x0 of a batch of unlike prompts, states and times, with the negative one last, by the bridge while the
    model is ready to train; and of each row alone by the host's sampling.
    """
    patcher, lengths = base(name), RECIPES[name].encoded
    positive, negative = (zoo_models.text(name, s, n) for s, n in ((1, lengths[:3]), (2, lengths[3:])))
    shape, count = shape_of(name, patcher), len(lengths)
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))
    with pack("ready").ready(patcher) as (held, *_):
        made = pack("backbone").HostBackbone(held, shape, lambda x: x)
        conds = pack("prompts").alike(made.encode(positive), made.encode(negative, uncond=True))
        cond = training("backbone").concat(conds)
        times = torch.linspace(0.3, 0.9, count, dtype=torch.float64)
        times = times if made.flow else (999 * times).round()
        now = made.schedule.point(times)
        with torch.no_grad():
            ours = made.predictor(cond)(x, now, now)[0]
        calls = len(pack("prompts").grouped(cond))
    host: list[Tensor] = []
    for i in range(count):
        at, cfg = made.schedule.point(times[i : i + 1]), float(i < len(positive))
        entry = positive[i : i + 1] or positive[:1]
        host.append(by_host(patcher, x[i : i + 1], at, made.flow, entry, negative, cfg))
    return {"ours": ours, "host": torch.cat(host), "calls": calls}


def distilled(name: str) -> dict[str, Any]:
    """A training through the node, and what its LoRA does by every loader."""
    import comfy.sd
    import comfy.utils
    import folder_paths

    # as main.py does, so that lists of LoRAs show those that were made
    folder_paths.add_model_folder_path("loras", str(Path(folder_paths.get_output_directory(), "loras")))
    patcher = base(name)
    lengths = RECIPES[name].encoded
    plain = sampled(name, patcher)
    before = state(patcher)
    side = zoo_models.side(name, patcher.get_model_object("latent_format"))
    inputs = {
        **distill_standins.RUN,
        "model": patcher, "run_name": name, "steps": STEPS, "width": side, "height": side,
        "conditioning": zoo_models.text(name, 1, lengths[:3]),
        "negative": zoo_models.text(name, 2, lengths[3:]),
        "settings": SETTINGS.format(steps=STEPS, more=""),
    }  # fmt: skip
    model, _, path, image, losses = run("TCD_Distill", **inputs)
    after = state(patcher)
    file = comfy.utils.load_torch_file(path)
    core, _ = comfy.sd.load_lora_for_models(patcher, None, file, 1.0, 0)
    loaded = run("TCD_LoraLoader", model=patcher, lora_name=Path(path).name, strength=1.0)[0]
    return {
        "changed": [k for k in before if before[k] != after[k]],
        "plain": plain,
        "again": sampled(name, patcher),
        "student": sampled(name, model),
        "core": sampled(name, core),
        "ours": sampled(name, loaded),
        "patched by core": len(core.patches),
        "layers": len({k.rsplit(".", 2)[0] for k in file if k.endswith("lora_up.weight")}),
        "losses": [float(x) for x in losses["loss"]],
        "image": image,
    }


if __name__ == "__main__":
    distill_inside.main(globals())
