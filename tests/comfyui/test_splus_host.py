"""TCF(S+) students inside ComfyUI: they sample as in training and in `embedded`, or are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_oracle import randn, relative
from torch import Tensor, nn

from comfyui_tcd.embedded.methods import with_lora
from comfyui_tcd.embedded.model import EmbeddedModel
from comfyui_tcd.embedded.prompts import parse_all
from comfyui_tcd.samplers import plan, sample, timesteps
from comfyui_tcd.training.checkpoint import save_tensors
from comfyui_tcd.training.splus import PREFIX

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
SHAPE = (2, 4, 8, 8)
PROMPT = "red hair, glasses, hat"


def write_student(path: Path, layers: Mapping[str, Any], width: int, target: bool = True) -> str:
    """A file as training writes it, random; `target`: with an embedding of s that matters."""
    generator = torch.Generator().manual_seed(11)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale / math.sqrt(shape[-1])

    tensors: dict[str, Tensor] = {}
    for name, (rows, columns) in layers.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = random(2, columns)
        tensors[f"{key}.lora_up.weight"] = random(rows, 2)
        tensors[f"{key}.alpha"] = torch.tensor(0.5)
    shapes = {"net.0.weight": (width, 128), "net.0.bias": (width,)}
    shapes |= {"net.2.weight": (width, width), "net.2.bias": (width,)}
    if target:
        tensors |= {PREFIX + name: random(*shape) for name, shape in shapes.items()}
    save_tensors(path, {k: v.half() for k, v in tensors.items()}, {})
    return str(path)


@pytest.fixture
def student(inside: Inside, tmp_path: Path) -> Callable[..., str]:
    def write(kind: str = "epsilon", **how: Any) -> str:
        found = inside("linear_layers", kind=kind)
        width = how.pop("width", found["width"])
        # names are remembered by the host's folder list, so each test needs its own
        return write_student(tmp_path / f"{tmp_path.name}.safetensors", found["layers"], width, **how)

    return write


def run(inside: Inside, kind: str, steps: int = 4, **given: Any) -> Any:
    arguments = {"noise": randn(1, *SHAPE), "noises": [randn(10 + i, *SHAPE) for i in range(steps)], **given}
    sigmas = inside("grid", kind=kind, steps=steps)
    return inside("custom", kind=kind, sigmas=sigmas, latent=torch.zeros(SHAPE), **arguments)["latent"]


def by_training(inside: Inside, kind: str, file: str, steps: int = 4, **given: Any) -> Tensor:
    sigmas = inside("grid", kind=kind, steps=steps)
    times = sigmas[:-1].tolist() if kind == "flow" else timesteps(steps)
    noises = [randn(10 + i, *SHAPE) for i in range(steps)]
    start = randn(1, *SHAPE)
    return inside("by_training", kind=kind, file=file, noise=start, noises=noises, times=times, **given)


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow"])
@pytest.mark.parametrize(("steps", "gamma"), [(1, 0.3), (4, 0.0), (4, 0.3), (4, 1.0), (7, 0.6)])
def test_it_samples_what_training_samples(
    inside: Inside, student: Callable[..., str], kind: str, steps: int, gamma: float
):
    file = student(kind)
    ours = run(inside, kind, steps, lora=file, gamma=gamma)
    expected = by_training(inside, kind, file, steps, gamma=gamma)
    assert relative(ours, expected) < 1e-4
    without = student(kind, target=False)
    assert relative(run(inside, kind, steps, lora=without, gamma=gamma), ours) > 1e-2, "s has to matter"


TOLERANCE = {"1": 1e-4, "multistep": 1e-4, "2": 5e-3}
"""Order 2 calls the network between two steps, at a timestep that ComfyUI rounds to a whole one."""


@pytest.mark.parametrize("order", ["2", "multistep"])
def test_other_orders(inside: Inside, student: Callable[..., str], order: str):
    file = student()
    ours = run(inside, "epsilon", lora=file, gamma=0.2, order=order)
    expected = by_training(inside, "epsilon", file, gamma=0.2, order=2 if order == "2" else order)
    assert relative(ours, expected) < TOLERANCE[order]


@pytest.mark.parametrize("strength", [0.5, -1.0])
def test_strength_is_of_the_embedding_too(inside: Inside, student: Callable[..., str], strength: float):
    file = student()
    ours = run(inside, "epsilon", lora=file, strength=strength, gamma=0.3)
    assert relative(ours, by_training(inside, "epsilon", file, gamma=0.3, strength=strength)) < 1e-4


def test_strength_zero_is_the_teacher_and_the_shared_model_stays(inside: Inside, student: Callable[..., str]):
    file, teacher = student(), run(inside, "epsilon")
    assert torch.equal(run(inside, "epsilon", lora=file, strength=0.0), teacher)
    assert relative(run(inside, "epsilon", lora=file), teacher) > 0.05
    assert torch.equal(run(inside, "epsilon"), teacher)
    assert torch.equal(run(inside, "epsilon", core="euler"), run(inside, "epsilon", core="euler"))


def test_other_samplers_are_refused_by_name(inside: Inside, student: Callable[..., str]):
    file = student()
    with pytest.raises(RuntimeError, match=rf"{Path(file).name}: a TCF\(S\+\) student .*use .*TCD Sampler"):
        run(inside, "epsilon", lora=file, core="euler")


def test_with_guidance_and_hooks_s_is_told_once(inside: Inside, student: Callable[..., str]):
    """A hook that changes nothing: only the way through the host is another."""
    file = student()
    hooked, plain = (
        run(inside, "epsilon", lora=file, cfg=2.0, feature=f) for f in ("idle hook", "same prompt")
    )
    assert relative(hooked, plain) < 1e-4


def test_a_student_of_another_width_is_refused(inside: Inside, student: Callable[..., str]):
    with pytest.raises(RuntimeError, match=r"embedding of s has 64 channels, .* of time 128"):
        run(inside, "epsilon", lora=student(width=64))


@pytest.mark.parametrize(("steps", "gamma", "order"), [(4, 0.3, "1"), (1, 0.0, "1"), (5, 0.5, "2")])
def test_the_embedded_model_samples_what_embedded_samples(
    inside: Inside, tmp_path: Path, steps: int, gamma: float, order: str
):
    model = EmbeddedModel.load()
    linear = ((n, m) for n, m in model.unet.named_modules() if isinstance(m, nn.Linear))
    layers = {n: m.weight.shape for n, m in linear if "transformer_blocks" in n}
    width: int = model.config.model_channels * 4
    file = write_student(tmp_path / f"{tmp_path.name}.safetensors", layers, width)
    noise, noises = randn(1, 3, 8, 4, 4), [randn(10 + i, 3, 8, 4, 4) for i in range(steps)]
    copy = with_lora(model, Path(file))
    assert copy.told is not None
    predict, queue = copy.told(copy.predictor(copy.encode_labels(parse_all([PROMPT] * 3)))), list(noises)
    turns = plan(copy.schedule, timesteps(steps), gamma)
    with torch.no_grad():
        expected = sample(
            predict, noise, turns, lambda: queue.pop(0), copy.schedule, 2 if order == "2" else 1
        )
    given = {"prompt": PROMPT, "noise": noise, "noises": noises, "steps": steps, "gamma": gamma}
    found = inside("embedded", lora="none", file=file, order=order, **given)
    assert relative(found["latent"], expected) < TOLERANCE[order]
