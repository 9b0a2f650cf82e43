"""The embedding of s in a LoRA file: brought back whole, kept on the student, refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from comfyui_tcd.embedded.methods import with_lora
from comfyui_tcd.embedded.model import LATENT, EmbeddedModel
from comfyui_tcd.training.checkpoint import save_tensors
from comfyui_tcd.training.splus import PREFIX, TargetEmbedding


def random(width: int, sinusoids: int = 128) -> dict[str, Tensor]:
    shapes = {"net.0.weight": (width, sinusoids), "net.0.bias": (width,)}
    shapes |= {"net.2.weight": (width, width), "net.2.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    return {PREFIX + k: torch.randn(v, generator=generator) / width**0.5 for k, v in shapes.items()}


def test_a_student_of_the_embedded_model_is_told_s(tmp_path: Path):
    model = EmbeddedModel.load()
    width: int = model.config.model_channels * 4
    layer = next(n for n, _ in model.unet.named_modules() if n.endswith("attn1.to_q"))
    weight = model.unet.get_parameter(f"{layer}.weight")
    rows, columns = len(weight), weight.shape[1]
    key = f"lora_unet_{layer.replace('.', '_')}"
    draw = torch.Generator().manual_seed(1)
    shapes = {"lora_down": (2, columns), "lora_up": (rows, 2)}
    factors = {k: torch.randn(v, generator=draw) for k, v in shapes.items()}
    path = tmp_path / "student.safetensors"
    embedding = {k: 8 * v for k, v in random(width).items()}  # loud beside the timestep's own
    save_tensors(path, {f"{key}.{k}.weight": v for k, v in factors.items()} | embedding, {})
    student = with_lora(model, path)
    assert student.told is not None
    predict = student.told(student.predictor(student.unconditional()))
    x, point = torch.randn(1, *LATENT, generator=draw), student.schedule.point
    with torch.no_grad():
        near, far = (predict(x, point(500), point(s))[0] for s in (400.0, 0.0))
    assert (near - far).norm() > 1e-2 * far.norm()


@pytest.mark.parametrize("sinusoids", [128, 64])
def test_it_comes_back_and_the_random_numbers_stay(sinusoids: int):
    tensors, state = random(8, sinusoids), torch.get_rng_state()
    made = TargetEmbedding.of(tensors)
    assert {PREFIX + k: v.tolist() for k, v in made.state_dict().items()} == {
        k: v.tolist() for k, v in tensors.items()
    }
    assert made(torch.tensor([0.0, 500.0])).shape == (2, 8)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("lost", ["net.0.weight", "net.0.bias", "net.2.weight"])
def test_a_damaged_one_is_refused(lost: str):
    tensors = random(8)
    del tensors[PREFIX + lost]
    with pytest.raises(ValueError, match="no embedding of s"):
        TargetEmbedding.of(tensors)
    tensors[PREFIX + lost] = torch.zeros(3)
    with pytest.raises(ValueError, match="no embedding of s"):
        TargetEmbedding.of(tensors)
