"""Files that peft and diffusers make: read and converted, they give those libraries' own merged weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_arithmetic import bias, grouped, merged
from lora_files import write
from lora_makers import Made, configs, made
from test_oracles import network
from torch import Tensor

from comfyui_tcd.training.formats import convert, open_lora

# peft, of the biases that it writes itself
pytestmark = pytest.mark.filterwarnings("ignore:Adapter 'default'")
KINDS = list(configs())
BASE = "SD 1.5"


def make(kind: str, folder: Path, written: str = "peft") -> Made:
    return made(lambda: network(BASE), configs()[kind], folder, written)


def check(tensors: Mapping[str, Tensor], maker: Made) -> None:
    """`tensors`, under kohya's keys, make of the maker's weights its merged ones, and change nothing else."""
    layers = grouped(tensors)
    names = {k.rpartition(".")[0] for k in maker.before}
    flat = {"lora_unet_" + name.replace(".", "_"): name for name in names}
    assert set(layers) <= set(flat)
    for base, name in flat.items():
        for kind, combine in (("weight", merged), ("bias", bias)):
            key = f"{name}.{kind}"
            if key not in maker.before:
                continue
            before, after = maker.before[key], maker.after[key]
            ours = combine(layers[base], before) if base in layers else before
            assert (ours - after).norm() <= 1e-4 * max((after - before).norm(), 1e-6 * after.norm()), key


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_makes(tmp_path: Path, kind: str):
    maker = make(kind, tmp_path)
    file = open_lora(maker.file)
    assert file.formats == ["peft"] and file.extra == {}
    for layer in file.layers:
        weight = maker.before[f"{layer.name}.weight"]
        assert layer.shape == tuple(weight.flatten(1).shape), layer.name
    tensors, _ = convert(file, "kohya")
    check(tensors, maker)
    changed = {k for k in maker.before if not torch.equal(maker.before[k], maker.after[k])}
    assert len(changed) >= len(file.layers) > 30, "or the maker's own merge does nothing"


@pytest.mark.parametrize("kind", ["LoRA", "LoRA, patterns", "LoRA, rslora", "DoRA"])
def test_what_diffusers_makes(tmp_path: Path, kind: str):
    maker = make(kind, tmp_path, "diffusers")
    check(convert(open_lora(maker.file), "kohya")[0], maker)


@pytest.mark.parametrize("dora", [False, True])
def test_diffusers_half_flat_names(tmp_path: Path, dora: bool):
    """Its converter to kohya's keys leaves a dot in those of magnitudes, and takes the rank for alpha."""
    from lora_makers import TARGETS
    from peft import LoraConfig

    config = LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, init_lora_weights=False, use_dora=dora)
    maker = made(lambda: network(BASE), config, tmp_path, "kohya")
    file = open_lora(maker.file)
    assert file.extra == {} and len(file.layers) == 124
    check(convert(file, "kohya")[0], maker)


@pytest.mark.parametrize("to", ["kohya", "peft", "diffusers"])
def test_dora_survives_a_conversion_there_and_back(tmp_path: Path, to: str):
    maker = make("DoRA", tmp_path / "peft")
    tensors, metadata = convert(open_lora(maker.file), to)
    again = open_lora(write(tmp_path / "again/lora.safetensors", tensors, metadata))
    check(convert(again, "kohya")[0], maker)


def test_peft_loads_the_dora_that_we_write(tmp_path: Path):
    from lora_makers import TARGETS, spread, weights
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    maker = make("DoRA", tmp_path / "made")
    kohya_file = write(tmp_path / "kohya/lora.safetensors", convert(open_lora(maker.file), "kohya")[0])
    write(tmp_path / "adapter_model.safetensors", convert(open_lora(kohya_file), "peft")[0])
    model = network(BASE)
    spread(model)
    peft_model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=TARGETS, use_dora=True))
    result = set_peft_model_state_dict(peft_model, load_peft_weights(str(tmp_path), device="cpu"))
    assert result.unexpected_keys == []
    after = weights(peft_model.merge_and_unload())
    assert all((after[k] - maker.after[k]).norm() <= 1e-4 * maker.after[k].norm() for k in after)


def test_dora_of_inputs_has_no_place_in_peft(tmp_path: Path):
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{base}.lora_up.weight": torch.randn(32, 4),
        f"{base}.lora_down.weight": torch.randn(4, 32),
        f"{base}.dora_scale": torch.rand(1, 32),
    }
    file = open_lora(write(tmp_path / "lora.safetensors", tensors))
    for to in ("peft", "diffusers"):
        with pytest.raises(ValueError, match=r"no keys for dora_scale .*choose kohya"):
            convert(file, to)
    assert torch.equal(convert(file, "kohya")[0][f"{base}.dora_scale"], tensors[f"{base}.dora_scale"])


@pytest.mark.parametrize("written", ["peft", "diffusers"])
@pytest.mark.parametrize("dora", [False, True])
def test_text_encoders(tmp_path: Path, written: str, dora: bool):
    from diffusers import StableDiffusionPipeline
    from lora_makers import spread, weights
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    small = CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = CLIPTextModel(small)
    spread(model)
    before = weights(model)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "fc1"], init_lora_weights=False, use_dora=dora
    )
    peft_model: Any = get_peft_model(model, config)
    if written == "peft":
        peft_model.save_pretrained(str(tmp_path))
        path = tmp_path / "adapter_model.safetensors"
    else:
        about = {k: v for k, v in config.to_dict().items() if not isinstance(v, set)}
        state: Any = get_peft_model_state_dict(peft_model.base_model.model, adapter_name="default")
        StableDiffusionPipeline.save_lora_weights(
            tmp_path, text_encoder_lora_layers=state, text_encoder_lora_adapter_metadata=about
        )
        path = tmp_path / "pytorch_lora_weights.safetensors"
    after = weights(peft_model.merge_and_unload())
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    layers = grouped(convert(open_lora(path), "kohya")[0])
    assert len(layers) == len(changed) == 4
    for base, parts in layers.items():
        key = next(k for k in changed if base.endswith(k.removesuffix(".weight").replace(".", "_")))
        assert base.startswith("lora_te_text_model_encoder_layers_")
        error = (merged(parts, before[key]) - after[key]).norm()
        assert error <= 1e-4 * (after[key] - before[key]).norm(), key
