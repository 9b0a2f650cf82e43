"""Adapters go in, train beside an untouched base, and come out without a trace; files mean what the network
computed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Scalar, TinyUNet, fingerprint, prompts, settings
from torch import Tensor, nn

from comfyui_tcd.training.about import about, family
from comfyui_tcd.training.backbone import digest
from comfyui_tcd.training.checkpoint import load_tensors, save_tensors
from comfyui_tcd.training.formats import open_lora
from comfyui_tcd.training.lora import (
    _KEPT,
    ADAPTER,
    PREFIX,
    Lora,
    injected,
    load_lora,
    lora_tensors,
    merge_lora,
    save_lora,
    target_layers,
    told_of_ranks,
)
from comfyui_tcd.training.lora_report import lines
from comfyui_tcd.training.unet_layers import ARCHITECTURES, SD15, Architecture, diffusers_names, layers


def forward(backbone: TinyUNet, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *backbone.latent_shape, generator=draw)
    at = backbone.schedule.point(torch.tensor([19.0, 500.0, 999.0]))
    with torch.no_grad():
        return torch.cat(backbone.predictor(prompts(3))(x, at, at))


def fill(lora: Lora, seed: int = 5) -> None:
    """Factors as after some training, in values that half precision holds exactly."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.parameters().values():
            parameter.copy_((torch.randn(parameter.shape, generator=draw) * 0.2).half())


@pytest.mark.parametrize("targets", ["all", "linear", "attention"])
def test_at_first_the_student_is_the_teacher_bit_for_bit(targets: str):
    backbone = TinyUNet()
    bare = forward(backbone)
    with injected(backbone.network, 4, 4.0, targets, seed=0) as lora:
        assert torch.equal(forward(backbone), bare)
        fill(lora)
        assert not torch.allclose(forward(backbone), bare)
        with lora.off():
            assert torch.equal(forward(backbone), bare)
            with lora.off():
                pass
            assert torch.equal(forward(backbone), bare), "leaving an inner `off` leaves the outer one"
        assert not torch.allclose(forward(backbone), bare)
        with pytest.raises(RuntimeError, match="in the teacher"), lora.off():
            raise RuntimeError("in the teacher")
        assert not torch.allclose(forward(backbone), bare)
    assert torch.equal(forward(backbone), bare)


@pytest.mark.parametrize("fails", [False, True])
def test_the_base_leaves_as_it_came(fails: bool):
    backbone = TinyUNet()
    backbone.network.eval()
    backbone.network.get_submodule("middle_block.0").train()
    for i, parameter in enumerate(backbone.network.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = fingerprint(backbone.network)
    keys = list(backbone.network.state_dict())
    try:
        with injected(backbone.network, 4, 4.0, "all", seed=0) as lora:
            fill(lora)
            assert list(backbone.network.state_dict()) != keys
            assert [n for n, p in backbone.network.named_parameters() if p.requires_grad] == [
                n for n, _ in backbone.network.named_parameters() if "lora_" in n
            ]
            x = torch.randn(2, *backbone.latent_shape)
            at = backbone.schedule.point(500.0)
            backbone.predictor(prompts(2))(x, at, at)[0].sum().backward()
            assert all(p.grad is not None for p in lora.parameters().values())
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert fingerprint(backbone.network) == before
    assert list(backbone.network.state_dict()) == keys
    assert all(p.grad is None for p in backbone.network.parameters())
    with injected(backbone.network, 4, 4.0, "all", seed=0):
        pass
    assert fingerprint(backbone.network) == before


def test_a_second_set_of_adapters_is_refused_and_the_first_stays():
    backbone = TinyUNet()
    with injected(backbone.network, 4, 4.0, "all", seed=0) as lora:
        fill(lora)
        out = forward(backbone)
        with (
            pytest.raises(ValueError, match="has peft adapters already"),
            injected(backbone.network, 4, 4.0, "all", 0),
        ):
            pass
        assert torch.equal(forward(backbone), out)


def test_targets_are_layers_of_the_blocks():
    network = TinyUNet().network
    every, linear, attention = (set(target_layers(network, t)) for t in ("all", "linear", "attention"))
    assert attention < linear < every
    assert all(isinstance(network.get_submodule(n), nn.Linear) for n in linear)
    assert any(isinstance(network.get_submodule(n), nn.Conv2d) for n in every)
    kept = ("time_embed", "label_emb", "input_blocks.0.", "out.")
    assert not [n for n in every if n.startswith(kept)]
    assert all(n.startswith(("input_blocks.", "middle_block.", "output_blocks.")) for n in every)
    assert {n.split(".")[-1] if n[-1] != "0" else "to_out" for n in attention} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out",
    }
    # Two attentions in each of the four transformer blocks.
    assert len(attention) == 4 * 2 * 4


def test_a_hosts_own_subclass_of_a_layer_counts():
    class HostLinear(nn.Linear):
        pass

    network = nn.Sequential(HostLinear(4, 4), nn.SiLU(), nn.Conv2d(4, 4, 1))
    assert target_layers(network, "all") == ["0", "2"]
    with injected(network, 2, 2.0, "all", 0) as lora:
        assert len(lora.parameters()) == 4
    assert type(network[0]) is HostLinear


def test_no_layer_to_adapt_is_refused():
    with pytest.raises(ValueError, match="matches no layer of Scalar"):
        target_layers(Scalar(torch.ones(2, 3)), "attention")


def test_a_layer_smaller_than_the_rank_gets_the_rank_that_it_can_have(tmp_path: Path):
    """At the scale of the others, in the network and in its file."""
    network = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 1), nn.Linear(1, 8), nn.Linear(8, 8))
    inner = nn.Sequential(network, nn.Linear(8, 8))  # its "1" is not the small "0.1"
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with injected(inner, 6, 3.0, "all", 0) as lora:
        fill(lora)
        adapted = inner(x)
        found = {n: layer.r[ADAPTER] for n, layer in lora.layers.items()}
        save_lora(tmp_path / "lora.safetensors", lora.parameters(), lora.alpha, {}, {}, lora.names)
    assert found == {"0.0": 3, "0.1": 1, "0.2": 1, "0.3": 6, "1": 6}
    assert told_of_ranks(inner, "all", 6) == "3 of 5 layers are smaller than rank 6 and get rank 1 to 3"
    assert told_of_ranks(inner, "all", 1) == ""
    tensors, _ = load_lora(tmp_path / "lora.safetensors")
    assert [tensors[f"{PREFIX}{n.replace('.', '_')}.alpha"].item() for n in found] == [1.5, 0.5, 0.5, 3, 3]
    assert merge_lora(inner, tensors) == 5
    assert (inner(x) - adapted).abs().max() < 2e-3 * adapted.abs().max()  # factors are float16 in files


def test_a_rank_larger_than_every_layer_is_refused_before_anything_changes():
    backbone = TinyUNet()
    before = fingerprint(backbone.network)
    with (
        pytest.raises(ValueError, match=r"rank 9999 is larger than every layer; lower rank to \d+ or less"),
        injected(backbone.network, 9999, 9999.0, "all", 0),
    ):
        pass
    assert fingerprint(backbone.network) == before


def test_factors_are_float32_on_a_bfloat16_base_and_hang_on_the_seed():
    backbone = TinyUNet()
    backbone.network.bfloat16()
    downs: list[Tensor] = []
    for seed in (0, 0, 1):
        with injected(backbone.network, 4, 4.0, "all", seed) as lora:
            named = lora.parameters()
            assert {p.dtype for p in named.values()} == {torch.float32}
            assert not any(bool(p.any()) for n, p in named.items() if n.endswith("lora_up"))
            downs.append(torch.cat([p.detach().flatten() for n, p in named.items() if n.endswith("down")]))
            x = torch.randn(2, *backbone.latent_shape)
            t = torch.tensor([5.0, 600.0])
            cond = {k: v.bfloat16() for k, v in prompts(2).items()}
            out = backbone.network(x.bfloat16(), t, cond["context"], cond["pooled"])
            assert out.dtype == torch.bfloat16
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])
    assert downs[0].std() > 0
    assert {p.dtype for p in backbone.network.parameters()} == {torch.bfloat16}


def test_the_drawing_of_factors_leaves_the_hosts_random_numbers_alone():
    backbone = TinyUNet()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with injected(backbone.network, 4, 4.0, "all", 0):
        pass
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.rand(4), expected)


def test_a_saved_and_merged_lora_is_what_the_adapters_computed(tmp_path: Path):
    backbone = TinyUNet()
    path = tmp_path / "lora.safetensors"
    with injected(backbone.network, 4, 2.0, "all", 0) as lora:  # alpha / rank = 1/2
        fill(lora)
        adapted = forward(backbone)
        save_lora(path, lora.parameters(), lora.alpha, {"base": "tiny"}, {}, lora.names)
    bare = forward(backbone)
    tensors, metadata = load_lora(path)
    assert metadata == {"base": "tiny"}
    assert merge_lora(backbone.network, tensors) == len(target_layers(backbone.network, "all"))
    assert (forward(backbone) - adapted).abs().max() < 1e-5 * adapted.abs().max()
    assert (bare - adapted).abs().max() > 1e-2

    merge_lora(backbone.network, tensors, -1.0)
    assert (forward(backbone) - bare).abs().max() < 1e-5 * bare.abs().max()


def test_strength_scales_the_weights(tmp_path: Path):
    backbone = TinyUNet()
    layer = target_layers(backbone.network, "all")[0]
    weight = backbone.network.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    with injected(backbone.network, 4, 4.0, "all", 0) as lora:
        fill(lora)
        save_lora(tmp_path / "lora.safetensors", lora.parameters(), lora.alpha, {}, {}, lora.names)
    tensors, _ = load_lora(tmp_path / "lora.safetensors")
    start = weight.detach().clone()
    merge_lora(backbone.network, tensors, 1.0)
    whole = weight.detach() - start
    merge_lora(backbone.network, tensors, 0.5)
    torch.testing.assert_close(weight.detach() - start, 1.5 * whole)


def test_files_hold_kohyas_keys(tmp_path: Path):
    backbone = TinyUNet()
    with injected(backbone.network, 4, 2.0, "all", 0) as lora:
        fill(lora)
        save_lora(tmp_path / "lora.safetensors", lora.parameters(), lora.alpha, {}, {}, lora.names)
    tensors, _ = load_tensors(tmp_path / "lora.safetensors")
    names = target_layers(backbone.network, "all")
    portable = diffusers_names(n for n, _ in backbone.network.named_modules())
    stems = [PREFIX + portable[n].replace(".", "_") for n in names]
    assert all(stem.startswith(tuple(PREFIX + p for p in ("down_", "mid_", "up_"))) for stem in stems)
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{stem}.{part}" for stem in stems for part in parts}
    for name, stem in zip(names, stems, strict=True):
        weight = backbone.network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        assert down.dtype == up.dtype == torch.float16
        assert down.shape == (4, *weight.shape[1:]) and up.shape[:2] == (weight.shape[0], 4)
        assert tensors[f"{stem}.alpha"].item() == 2.0


def test_a_file_with_the_original_names_merges_alike(tmp_path: Path):
    with injected(TinyUNet().network, 4, 2.0, "all", 0) as lora:
        fill(lora)
        factors = {n: p.detach().clone() for n, p in lora.parameters().items()}
        names = lora.names
    networks = [TinyUNet().network for _ in range(2)]
    for network, scheme in zip(networks, (names, {}), strict=True):
        assert merge_lora(network, lora_tensors(factors, 2.0, scheme)) == len(names)
    assert digest(dict(networks[0].named_parameters())) == digest(dict(networks[1].named_parameters()))


@pytest.mark.parametrize("unet", ARCHITECTURES, ids=lambda unet: unet.name)
def test_layers_of_every_unet_have_diffusers_names(unet: Architecture):
    rows = [row for row in layers(unet) if re.match(r"(in|out)put_blocks|middle_block", row.ldm)]
    found = diffusers_names(row.ldm for row in rows)
    first = "input_blocks.0.0"
    assert found.pop(first) == first
    assert found == {row.ldm: row.diffusers for row in rows if row.ldm != first}


def test_layers_of_other_networks_keep_their_names():
    for name in ("double_blocks.0.img_attn.qkv", "down_blocks.0.attentions.0.proj_in", "blocks.3.ff.0"):
        assert diffusers_names([name]) == {name: name}


def sd_unet() -> nn.Module:
    """Stable Diffusion's UNet by diffusers, narrow."""
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return made


def test_diffusers_loads_what_was_trained_under_the_original_names(tmp_path: Path):
    """The network of ComfyUI has ldm's names; the file of its LoRA serves diffusers' own loader."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    unet: Any = sd_unet()
    shapes = {n: m for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    rows = [row for row in layers(SD15) if row.diffusers in shapes and not _KEPT.match(row.ldm)]
    draw = torch.Generator().manual_seed(0)
    factors: dict[str, Tensor] = {}
    for row in rows:
        weight = shapes[row.diffusers].weight
        factors[f"{row.ldm}.lora_down"] = torch.randn(4, *weight.shape[1:], generator=draw)
        ones = (1,) * (weight.ndim - 2)
        factors[f"{row.ldm}.lora_up"] = torch.randn(len(weight), 4, *ones, generator=draw)
    names = diffusers_names(row.ldm for row in layers(SD15))
    path = tmp_path / "lora.safetensors"
    save_lora(path, factors, 2.0, {}, {}, names)

    before = {n: shapes[n].weight.detach().clone() for n in shapes}
    loaded = StableDiffusionLoraLoaderMixin.lora_state_dict(str(path), unet_config=unet.config)
    state, alphas = loaded[0], loaded[1]
    StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, unet)
    unet.fuse_lora()
    unet.unload_lora()
    after = {n: m.weight.detach() for n, m in unet.named_modules() if n in shapes}
    assert {n for n in shapes if not torch.equal(before[n], after[n])} == {row.diffusers for row in rows}
    for row in rows:
        up, down = (factors[f"{row.ldm}.lora_{side}"].half().float().flatten(1) for side in ("up", "down"))
        delta = (0.5 * up @ down).reshape(before[row.diffusers].shape)
        seen = after[row.diffusers] - before[row.diffusers]
        assert (seen - delta).abs().max() < 1e-3 * delta.abs().max(), row.diffusers


def test_an_all_zero_lora_is_refused_and_not_written(tmp_path: Path):
    with injected(TinyUNet().network, 4, 4.0, "all", 0) as lora:
        with pytest.raises(ValueError, match="every lora_up is zero, so nothing was learnt"):
            save_lora(tmp_path / "lora.safetensors", lora.parameters(), 4.0, {}, {})
        assert not list(tmp_path.iterdir())


def test_a_file_without_a_lora_is_refused(tmp_path: Path):
    save_tensors(tmp_path / "other.safetensors", {"weight": torch.ones(2)}, {})
    with pytest.raises(ValueError, match=r"other.safetensors: no LoRA keys"):
        load_lora(tmp_path / "other.safetensors")


@pytest.mark.parametrize("fault", ["name", "rows", "columns", "no up"])
def test_a_lora_of_another_model_changes_nothing(fault: str):
    backbone = TinyUNet()
    first, last = (PREFIX + target_layers(backbone.network, "all")[i].replace(".", "_") for i in (0, -1))
    weights = {PREFIX + n.replace(".", "_"): m for n, m in backbone.network.named_modules()}
    good = weights[first].weight
    assert isinstance(good, Tensor)
    tensors = {
        f"{first}.lora_down.weight": torch.ones(2, *good.shape[1:]),
        f"{first}.lora_up.weight": torch.ones(good.shape[0], 2),
    }
    bad = weights[last].weight
    assert isinstance(bad, Tensor)
    stem = "lora_unet_elsewhere" if fault == "name" else last
    columns = 7 if fault == "columns" else bad[0].numel()
    tensors[f"{stem}.lora_down.weight"] = torch.ones(2, columns)
    if fault != "no up":
        tensors[f"{stem}.lora_up.weight"] = torch.ones(7 if fault == "rows" else bad.shape[0], 2)
    before = fingerprint(backbone.network)
    with pytest.raises(ValueError, match=f"{stem}.* fits no layer of UNet: the file is for another model"):
        merge_lora(backbone.network, tensors)
    assert fingerprint(backbone.network) == before


@pytest.mark.parametrize(
    ("s_range", "hint"), [("uniform", "4 steps, cfg 1, gamma 0.3"), ("phases", "2 steps, cfg 1, gamma 0")]
)
def test_a_saved_lora_says_what_it_is_and_how_to_sample(tmp_path: Path, s_range: str, hint: str):
    config = settings(s_range=s_range, s_steps=2)
    backbone = TinyUNet()
    path = tmp_path / "lora.safetensors"
    texts = about(config, backbone.network, (4, 64, 96), "my lora") | {"tcd.teacher": "tiny"}
    texts |= {f"tcd.{k}": json.dumps(v) for k, v in config.as_dict().items()}
    with injected(backbone.network, 4, 4.0, "all", 0) as lora:
        fill(lora)
        save_lora(path, lora.parameters(), lora.alpha, texts, {}, lora.names)
    shown = dict(lines(open_lora(path)))
    assert hint in shown["recommended"] and hint in shown["its own hint"]
    assert "the file's metadata" in shown["recommended"]
    required = ("sai_model_spec", "architecture", "implementation", "title", "resolution")
    assert all(texts[f"modelspec.{name}"] for name in required)
    assert texts["modelspec.resolution"] == "768x512" and texts["ss_network_alpha"] == "4.0"


def test_the_kind_of_a_unet_is_told_by_its_text_encoding():
    assert family(TinyUNet().network) is None
    unet: Any = nn.Module()
    unet.attn2 = nn.Module()
    unet.attn2.to_k = nn.Linear(768, 8)
    texts = about(settings(), unet, (4, 64, 64), "x")
    assert texts["ss_base_model_version"] == "sd_v1"
    assert texts["modelspec.architecture"] == "stable-diffusion-v1/lora"
    unet.attn2.to_k = nn.Linear(2048, 8)
    unet.label_emb = nn.Linear(4, 4)
    assert about(settings(), unet, (4, 128, 128), "x")["ss_base_model_version"] == "sdxl_base_v1-0"
