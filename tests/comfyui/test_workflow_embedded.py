"""TCD_EmbeddedModel inside ComfyUI says what `embedded` says by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_oracle import randn, relative

from comfyui_tcd.embedded.methods import guided_predictor, with_lora
from comfyui_tcd.embedded.model import EmbeddedModel
from comfyui_tcd.embedded.prompts import parse_all
from comfyui_tcd.embedded.sample import LCM_LORA, TCD_LORA
from comfyui_tcd.embedded.vae import VAE
from comfyui_tcd.samplers import plan, sample, timesteps

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
PROMPT = "red hair, glasses, hat"
FILES = {"tcd": TCD_LORA, "lcm": LCM_LORA}


def ours(lora: str, noise: torch.Tensor, noises: list[torch.Tensor], steps: int, gamma: float, cfg: float):
    model = EmbeddedModel.load()
    labels = parse_all([PROMPT] * len(noise))
    if lora != "none":
        model = with_lora(model, FILES[lora])
    predict = model.predictor(model.encode_labels(labels)) if cfg == 1 else None
    predict = predict or guided_predictor(model, labels, cfg)
    queue = list(noises)
    turns = plan(model.schedule, timesteps(steps), gamma)
    with torch.no_grad():
        x = sample(predict, noise, turns, lambda: queue.pop(0), model.schedule)
    return x, model.decode(x)


@pytest.mark.parametrize(
    ("lora", "steps", "gamma", "cfg"),
    [("tcd", 4, 0.3, 1.0), ("lcm", 4, 1.0, 1.0), ("none", 8, 0.0, 3.0)],
)
def test_it_samples_what_embedded_samples(inside: Inside, lora: str, steps: int, gamma: float, cfg: float):
    noise, noises = randn(1, 3, 8, 4, 4), [randn(10 + i, 3, 8, 4, 4) for i in range(steps)]
    expected, pictures = ours(lora, noise, noises, steps, gamma, cfg)
    given = {"noise": noise, "noises": noises, "steps": steps, "gamma": gamma, "cfg": cfg}
    found = inside("embedded", prompt=PROMPT, lora=lora, **given)
    assert found["empty"].shape == (3, 8, 4, 4) and not found["empty"].any()
    assert relative(found["latent"], expected) < 1e-4
    grey = (found["images"] * 255 - pictures.float()).abs()
    assert float(grey.max()) <= 1 and float((grey > 0.01).float().mean()) < 0.01
    assert relative(found["encoded"], VAE.load().encode(pictures)) < 0.02
    assert float(found["images"].std()) > 0.1


def test_the_lora_file_by_the_loader_is_the_nodes_option(inside: Inside, tmp_path: Path):
    shutil.copy(TCD_LORA, tmp_path / "embedded-tcd.safetensors")
    noise, noises = randn(1, 1, 8, 4, 4), [randn(10 + i, 1, 8, 4, 4) for i in range(4)]
    given = {"prompt": PROMPT, "noise": noise, "noises": noises, "steps": 4, "gamma": 0.3}
    option = inside("embedded", **given)["latent"]
    loaded = inside("embedded", lora="none", file=str(tmp_path / "embedded-tcd.safetensors"), **given)[
        "latent"
    ]
    bare = inside("embedded", lora="none", **given)["latent"]
    assert torch.equal(option, loaded) and relative(bare, option) > 0.05


def test_core_nodes_work_with_it(inside: Inside):
    by_node, by_core = inside("embedded_by_nodes", seed=3)
    assert by_node.shape == (2, 16, 16, 3) and torch.equal(by_node, by_core)
    assert not torch.equal(by_node[0], by_node[1])


def test_what_cannot_be_is_said(inside: Inside):
    given = {"noise": randn(1, 1, 8, 4, 4), "noises": [], "steps": 1, "gamma": 0.0}
    with pytest.raises(RuntimeError, match=r"unknown phrase 'red hairs'.*red hair.*glasses, sunglasses"):
        inside("embedded", prompt="red hairs", **given)
    with pytest.raises(RuntimeError, match=r"512x512 pixels.*16x16.*Upscale Image"):
        inside("embedded_by_nodes", seed=3, size=512)
