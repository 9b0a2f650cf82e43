"""Every key format is recognised and read alike, and converted without a change to the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from lora_files import Pairs, adapters, before_peft, every_format, kohya, lora_ab, text_encoder, write
from torch import Tensor

from comfyui_tcd.training.formats import FORMATS, LoraFile, convert, open_lora
from comfyui_tcd.training.lora_report import remarks
from comfyui_tcd.training.unet_layers import REFINER, SD2, SD15, SDXL, SSD1B, Architecture, all_layers

Write = Callable[..., LoraFile]
UNETS = {"SD 1.5": SD15, "SD 2.x": SD2, "SDXL": SDXL}
SOME = r"attn[12]\.to_(q|out\.0)$|conv1$|samplers\.0\.conv$|proj_in$|ff\.net\.2$"


@pytest.fixture
def opened(tmp_path: Path) -> Write:
    def write_and_open(
        tensors: Mapping[str, Tensor], name: str = "lora.safetensors", **metadata: str
    ) -> LoraFile:
        return open_lora(write(tmp_path / name, tensors, metadata))

    return write_and_open


def check(file: LoraFile, pairs: Pairs, tolerance: float = 1e-6) -> None:
    """`file` holds `pairs` and nothing else: the same change of a random input, layer by layer."""
    by_name = {name: pair for row, pair in pairs.items() for name in (row.ldm, row.diffusers)}
    assert len(file.layers) == len(pairs)
    for layer in file.layers:
        pair = by_name[layer.name]
        up, down = (layer.tensors[role].flatten(1).float() for role in ("up", "down"))
        x = torch.linspace(-1, 1, down.shape[1])
        theirs = pair.up.flatten(1).float() @ (pair.down.flatten(1).float() @ x)
        theirs *= pair.alpha / pair.down.shape[0]
        assert (layer.scale * (up @ (down @ x)) - theirs).norm() <= tolerance * theirs.norm(), layer.name


@pytest.mark.parametrize("base", UNETS)
@pytest.mark.parametrize("written", list(every_format(adapters(SD15, every=50))))
def test_what_a_file_of_any_format_is(opened: Write, base: str, written: str):
    pairs = adapters(UNETS[base], rank=2, every=3)
    file = opened(every_format(pairs)[written])
    assert file.formats == [written.split(",")[0]]
    assert file.bases == [base]
    assert {layer.rank for layer in file.layers} == {2}
    assert file.extra == {} and file.text_encoders == []
    with_alpha = FORMATS[file.formats[0]].alpha
    assert {layer.alpha for layer in file.layers} == ({3.0} if with_alpha else {None})
    check(file, pairs)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("written", ["kohya", "kohya-ldm", "comfyui", "peft", "diffusers", "diffusers-old"])
def test_from_any_format_to_any_other(opened: Write, written: str, to: str):
    pairs = adapters(SDXL, rank=2, only=SOME, every=9)
    file = opened(every_format(pairs)[written])
    tensors, metadata = convert(file, to)
    expected = every_format(pairs)[to]
    assert set(tensors) == set(expected)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in expected.items()}
    check(opened(tensors, "converted.safetensors", **metadata), pairs)


@pytest.mark.parametrize("unet", [SD15, SDXL, SSD1B, REFINER], ids=lambda unet: unet.name)
def test_every_layer_survives_the_whole_way(opened: Write, unet: Architecture):
    first = kohya(adapters(unet, rank=1, alpha=1.0))
    file = opened(first)
    for step in ("kohya-ldm", "diffusers-old", "comfyui", "peft"):
        tensors, _ = convert(file, step)
        file = opened(tensors)
    tensors, _ = convert(file, "kohya")
    assert set(tensors) == set(first)
    assert all(torch.equal(tensors[k], first[k]) for k in first)  # bit for bit: the scale is 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("alpha", "exact"), [(4.0, True), (8.0, True), (1.0, True), (3.0, False), (1e-6, False)]
)
def test_folding_alpha_loses_nothing(opened: Write, dtype: torch.dtype, alpha: float, exact: bool):
    pairs = adapters(SD15, rank=4, alpha=alpha, dtype=dtype, every=90)
    pairs = {row: p._replace(up=p.up.sign() * p.up.abs().clamp(0.5)) for row, p in pairs.items()}
    tensors, _ = convert(opened(kohya(pairs)), "diffusers")
    check(opened(tensors), pairs, tolerance=1e-6)
    ups = [v for k, v in tensors.items() if "lora_B" in k]
    assert {v.dtype for v in ups} == ({dtype} if exact else {torch.float32})
    assert {v.dtype for k, v in tensors.items() if "lora_A" in k} == {dtype}


def test_small_numbers_do_not_sink_below_half_precision(opened: Write):
    pairs = {row: p._replace(up=p.up * 1e-5) for row, p in adapters(SD15, every=90, dtype=torch.half).items()}
    pairs = {row: p._replace(alpha=0.125) for row, p in pairs.items()}  # a power of two, but too small
    tensors, _ = convert(opened(kohya(pairs)), "diffusers")
    for row, pair in pairs.items():
        up, down = (tensors[f"unet.{row.diffusers}.lora_{x}.weight"].flatten(1).float() for x in "BA")
        torch.testing.assert_close(up @ down, pair.delta, rtol=1e-5, atol=0)


def test_alpha_of_diffusers_own_metadata_counts(opened: Write):
    pairs = adapters(SD15, every=90)
    row = list(pairs)[1]
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 16,
        "unet.alpha_pattern": {row.diffusers.split(".", 1)[1]: 2},
        "text_encoder.lora_alpha": 99,
    }
    file = opened(lora_ab(pairs, "unet."), lora_adapter_metadata=json.dumps(settings))
    assert {layer.name: layer.alpha for layer in file.layers} == {
        r.diffusers: 2 if r is row else 16 for r in pairs
    }
    tensors, metadata = convert(file, "diffusers")
    assert "lora_adapter_metadata" not in metadata, "or the scale would count twice"
    again = opened(tensors, "again.safetensors", **metadata)
    for old, new in zip(file.layers, again.layers, strict=True):
        torch.testing.assert_close(old.delta(), new.delta())


def test_alpha_of_the_config_beside_peft_s_file(tmp_path: Path):
    tensors = lora_ab(adapters(SD15, every=90), "base_model.model.")
    config = {"lora_alpha": 8, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    file = open_lora(write(tmp_path / "adapter_model.safetensors", tensors))
    assert {layer.scale for layer in file.layers} == {4.0}  # 8 / sqrt(4)
    other = open_lora(write(tmp_path / "other.safetensors", tensors))
    assert {layer.alpha for layer in other.layers} == {None}


def test_settings_of_the_only_file_in_a_folder_are_its_own(tmp_path: Path):
    """Users rename `adapter_model.safetensors`; in a folder of many LoRAs, the settings are of nobody."""
    tensors = lora_ab(adapters(SD15, every=90), "base_model.model.")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "r": 4}))
    path = write(tmp_path / "style.safetensors", tensors)
    file = open_lora(path)
    assert {layer.scale for layer in file.layers} == {2.0}
    assert not any("adapter_config.json" in line for line in remarks(file))
    write(tmp_path / "another.safetensors", tensors)
    file = open_lora(path)
    assert {layer.scale for layer in file.layers} == {1.0}
    assert any(f"{len(file.layers)} layers are taken with scale 1" in line for line in remarks(file))


def test_settings_of_transformers_and_their_text_encoders_count(opened: Write):
    """diffusers writes them so for Flux and SD3, where the UNet's prefix is another."""
    layers = {
        "transformer.transformer_blocks.0.attn.to_q": 4.0,
        "transformer.transformer_blocks.0.attn.to_k": 0.5,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": 1.5,
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": 1.0,
    }
    tensors = {f"{k}.lora_{x}.weight": torch.randn(4, 4) for k in layers for x in "AB"}
    settings = {
        "transformer.lora_alpha": 16,
        "transformer.alpha_pattern": {"^transformer_blocks.0.attn.to_k": 2},
        "text_encoder.lora_alpha": 6,
    }
    file = opened(tensors, lora_adapter_metadata=json.dumps(settings))
    assert {x.raw: x.scale for x in file.layers} == layers
    assert [x.part for x in file.layers] == ["te1", "te2", "unet", "unet"]


def test_an_embedding_of_peft_is_that_of_the_transposed_weight(opened: Write):
    """peft's factors: `lora_embedding_A` [rank, tokens], `lora_embedding_B` [width, rank]."""
    a, b = torch.randn(4, 10), torch.randn(6, 4)
    base = "base_model.model.text_model.embeddings.token_embedding.lora_embedding_"
    (layer,) = opened({f"{base}A": a, f"{base}B": b}).layers
    torch.testing.assert_close(layer.delta(), (b @ a).T)
    assert layer.shape == (10, 6)


def test_alphas_differ_by_layer(opened: Write):
    pairs = adapters(SD15, every=60)
    pairs = {row: p._replace(alpha=float(i + 1)) for i, (row, p) in enumerate(pairs.items())}
    for to in FORMATS:
        tensors, _ = convert(opened(kohya(pairs)), to)
        check(opened(tensors, f"{to}.safetensors"), pairs)


@pytest.mark.parametrize(
    ("unet", "prefix", "flat"),
    [(SD15, "lora_te_", "lora_te_"), (SDXL, "lora_te1_", "lora_te1_"), (SDXL, "lora_te2_", "lora_te2_")],
)
@pytest.mark.parametrize("to", [f for f in FORMATS if f != "peft"])
def test_text_encoders_go_along(opened: Write, unet: Architecture, prefix: str, flat: str, to: str):
    clip = text_encoder(prefix)
    file = opened(kohya(adapters(unet, every=50)) | clip)
    assert len(file.text_encoders) == 6
    expected = {x.name: x.delta() for x in file.text_encoders}
    tensors, _ = convert(file, to)
    again = opened(tensors)
    assert {x.part for x in again.text_encoders} == {x.part for x in file.text_encoders}
    for layer in again.text_encoders:
        torch.testing.assert_close(layer.delta(), expected[layer.name])
    back, _ = convert(again, "kohya")
    assert {k for k in back if "te" in k.split("_")[1]} == {k.replace(prefix, flat) for k in clip}


def test_text_encoders_of_sd_2_have_their_own_name_in_comfyui(opened: Write):
    file = opened(kohya(adapters(SD2, only="attn2", every=9)) | text_encoder("lora_te_"))
    assert any(k.startswith("text_encoders.clip_h.") for k in convert(file, "comfyui")[0])


def test_a_peft_file_is_of_one_model(opened: Write):
    file = opened(kohya(adapters(SD15, every=50)) | text_encoder("lora_te_"))
    with pytest.raises(ValueError, match="choose diffusers"):
        convert(file, "peft")


def test_an_embedding_of_s_is_kept_and_told(opened: Write):
    embedding = {"tcd_s_embed.net.0.weight": torch.randn(8, 4), "tcd_s_embed.net.0.bias": torch.randn(8)}
    file = opened(kohya(adapters(SD15, every=50)) | embedding)
    assert file.needs_target
    for to in FORMATS:
        again = opened(convert(file, to)[0])
        assert again.needs_target
        assert all(torch.equal(again.extra[k], v) for k, v in embedding.items())


def test_metadata_is_kept_but_for_hashes_and_alpha(opened: Write):
    about = {"tcd.rank": "4", "ss_network_alpha": "3.0", "sshs_model_hash": "abc", "ss_network_dim": "4"}
    file = opened(kohya(adapters(SD15, every=50)), **about)
    assert convert(file, "comfyui")[1] == {
        "tcd.rank": "4",
        "ss_network_alpha": "3.0",
        "ss_network_dim": "4",
    }
    assert convert(file, "diffusers")[1]["ss_network_alpha"] == "4.0"


@pytest.mark.parametrize(
    ("unets", "base"),
    [
        ((SD15, r"attn1"), ["SD 1.5", "SD 2.x"]),
        ((SD15, r"attn2\.to_k"), ["SD 1.5"]),
        ((SDXL, r"attn2\.to_k"), ["SDXL"]),
        ((SSD1B, r""), ["SSD-1B"]),
        ((SSD1B, r"down_blocks.*attn1"), ["SSD-1B"]),
        ((SDXL, r"down_blocks.*transformer_blocks\.[01]\.attn1"), ["SDXL"]),
        ((REFINER, r"attn"), ["SDXL refiner"]),
    ],
)
def test_part_of_the_layers_may_fit_more_than_one_base(
    opened: Write, unets: tuple[Architecture, str], base: list[str]
):
    assert opened(kohya(adapters(unets[0], only=unets[1]))).bases == base


def test_layers_of_other_models_have_no_other_names(opened: Write):
    tensors = {f"diffusion_model.blocks.0.cross_attn.k.lora_{x}.weight": torch.randn(8, 8) for x in "AB"}
    with pytest.raises(ValueError, match="name in other formats is unknown"):
        convert(opened(tensors), "kohya")


def test_other_widths_are_unknown(opened: Write):
    from dataclasses import replace

    assert opened(kohya(adapters(replace(SD15, width=32, context=16)))).bases == []
    deeper = replace(SDXL, name="deeper", width=640)
    assert opened(kohya(adapters(deeper, only="attn2", every=9))).bases == ["a variant of SDXL"]


def test_other_adapters_are_kept_where_the_format_has_them(opened: Write):
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = kohya(adapters(SD15, only=r"down_blocks.0.attentions.0.*attn1.to_q$"))
    extra = {
        f"{base}.dora_scale": torch.randn(320, 1),
        "lora_unet_conv_in.diff": torch.randn(320, 4, 3, 3),
        "lora_unet_conv_out.hada_w1_a": torch.randn(4, 2),
    }
    file = opened(tensors | extra)
    assert set(convert(file, "kohya")[0]) == {*tensors, *extra}
    with pytest.raises(ValueError, match="choose kohya"):
        convert(file, "diffusers")


@pytest.mark.parametrize("unet", [SD15, SDXL], ids=lambda unet: unet.name)
def test_norms_and_biases_go_along(opened: Write, unet: Architecture):
    tensors = kohya(adapters(unet, every=20))
    for row in all_layers(unet):
        if len(row.shape) == 1:
            base = "lora_unet_" + row.diffusers.replace(".", "_")
            tensors |= {f"{base}.w_norm": torch.randn(row.shape), f"{base}.b_norm": torch.randn(row.shape)}
        elif row.diffusers.endswith("conv1"):
            tensors["lora_unet_" + row.diffusers.replace(".", "_") + ".diff_b"] = torch.randn(row.shape[0])
    file = opened(tensors)
    assert file.bases == [unet.name] and file.extra == {}
    ldm, _ = convert(file, "kohya-ldm")
    assert "lora_unet_out_0.w_norm" in ldm and "lora_unet_input_blocks_1_0_in_layers_0.b_norm" in ldm
    back, _ = convert(opened(ldm), "kohya")
    assert set(back) == set(tensors) and all(torch.equal(back[k], tensors[k]) for k in tensors)


def test_the_trainer_s_own_file(tmp_path: Path):
    from comfyui_tcd.training.lora import load_lora, save_lora

    pairs = adapters(SD15, every=40)
    named = {f"{r.ldm}.lora_{n}": getattr(p, n) for r, p in pairs.items() for n in ("down", "up")}
    path = tmp_path / "tcd.safetensors"
    save_lora(path, named, 3.0, {"tcd.student": '"tcf1"'}, {"tcd_s_embed.net.0.bias": torch.zeros(3)})
    file = open_lora(path)
    assert file.formats == ["kohya-ldm"] and file.bases == ["SD 1.5"] and file.needs_target
    check(file, pairs, tolerance=2e-3)  # saved in half precision
    tensors, _ = convert(file, "kohya-ldm")
    ours, _ = load_lora(path)
    assert set(tensors) == set(ours) and all(torch.equal(tensors[k], ours[k]) for k in ours)


def test_old_attention_without_processors(opened: Write):
    pairs = adapters(SD15, only="attn1")
    assert opened(before_peft(pairs, processor=False)).formats == ["diffusers-old"]
