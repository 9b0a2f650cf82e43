"""What is no whole LoRA is refused by name and kind, before anything of it is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_files import adapters, kohya, write

from comfyui_tcd.training.formats import open_lora
from comfyui_tcd.training.lora_content import what_tensors
from comfyui_tcd.training.unet_layers import SD15

Z_IMAGE = {"qkv": (11520, 3840), "out": (3840, 3840)}
GOOD = kohya(adapters(SD15, every=60))


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_lora(path)
    message = str(caught.value)
    assert path.name in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("name", ["lora.pt", "lora.ckpt", "lora.bin", "lora.safetensors"])
def test_a_pickle_whatever_its_name(tmp_path: Path, name: str, new: bool):
    torch.save(GOOD, tmp_path / name, _use_new_zipfile_serialization=new)
    refused(tmp_path / name, "zip archive" if new else "pickle", "only safetensors")


def test_a_pickle_is_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Evil(), tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "zip archive")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.999, 0.5, 0.2, 0.01])
def test_a_cut_file(tmp_path: Path, share: float):
    path = write(tmp_path / "lora.safetensors", GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "cut", "again")


def test_every_length_of_a_small_file_is_refused(tmp_path: Path):
    path = write(tmp_path / "lora.safetensors", {"lora_unet_conv_in.lora_up.weight": torch.ones(1, 1)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"<!doctype html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs"),
        (b'{"error": "not found"}', "JSON"),
        (b"GGUF" + b"\0" * 30, "GGUF"),
        (b"\x10\0\0\0\0\0\0\0{not json at all", "damaged header"),
        (b"\x02\0\0\0\0\0\0\0{}", "no tensors"),
        (b"random words", "no safetensors"),
    ],
)
def test_other_contents(tmp_path: Path, content: bytes, kind: str):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    refused(path, kind)


def test_a_folder_and_nothing(tmp_path: Path):
    refused(tmp_path, "folder")
    with pytest.raises(FileNotFoundError, match="missing"):
        open_lora(tmp_path / "missing.safetensors")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "checkpoint"),
        (["down_blocks.0.resnets.0.conv1.weight"], "diffusion model"),
        (["decoder.conv_in.weight"], "VAE"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder"),
        (["emb_params"], "textual inversion"),
        (["clip_l", "clip_g"], "textual inversion"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["bundle_emb.mylora.clip_g"], "textual inversion"),
        (["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.on_input"], "IA3"),
        (["base_model.model.to_k.ia3_l"], "IA3"),
        (["double_blocks.0.processor.proj_lora1.down.weight"], "XLabs"),
        (["base_model.model.to_k.oft_R.weight"], "OFT"),
        (["base_model.model.to_k.boft_R"], "BOFT"),
        (["base_model.model.to_k.vera_lambda_b"], "VERA"),
        (["320.0.linear.0.weight", "320.1.linear.0.weight"], "hypernetwork"),
        (["something.else"], "1 tensors such as 'something.else'"),
        (["lora_unet_conv_in.alpha"], "such as"),
    ],
)
def test_safetensors_without_lora_keys(tmp_path: Path, keys: list[str], kind: str):
    path = write(tmp_path / "model.safetensors", {k: torch.zeros(1) for k in keys})
    refused(path, "no LoRA keys", kind)


def test_the_weights_of_a_known_model_are_called_by_its_name(tmp_path: Path):
    shapes = {f"layers.{i}.attention.{n}.weight": s for i in range(30) for n, s in Z_IMAGE.items()}
    tensors = {key: torch.empty(1, dtype=torch.bool).expand(shape) for key, shape in shapes.items()}
    assert "diffusion model" in what_tensors(tensors) and "(Z-Image)" in what_tensors(tensors)
    other = {key: torch.empty(1).expand(3, 3) for key in shapes}
    assert "it holds 60 tensors" in what_tensors(other)


def test_half_a_layer(tmp_path: Path):
    for role, other in (("down", "up"), ("up", "down")):
        removed = next(k for k in GOOD if k.endswith(f"lora_{role}.weight"))
        tensors = {k: v for k, v in GOOD.items() if k != removed}
        refused(write(tmp_path / "lora.safetensors", tensors), f"lora_{other} without its lora_{role}")


def test_factors_and_alphas_that_do_not_fit(tmp_path: Path):
    up = next(k for k in GOOD if k.endswith("lora_up.weight"))
    alpha = next(k for k in GOOD if k.endswith("alpha"))
    refused(write(tmp_path / "a.safetensors", {**GOOD, up: torch.zeros(8, 3)}), "do not fit", "damaged")
    refused(write(tmp_path / "b.safetensors", {**GOOD, up: torch.zeros(8)}), "do not fit")
    refused(write(tmp_path / "c.safetensors", {**GOOD, alpha: torch.zeros(3)}), "alpha of 3 numbers")


def test_a_layer_in_two_formats(tmp_path: Path):
    pairs = adapters(SD15, only="down_blocks.0.attentions.0.proj_in")
    extra = {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": next(iter(pairs.values())).down}
    refused(write(tmp_path / "lora.safetensors", kohya(pairs) | extra), "twice", "lora_A", "lora_down")


def test_settings_of_the_adapter_that_are_no_json(tmp_path: Path):
    path = write(tmp_path / "lora.safetensors", GOOD, {"lora_adapter_metadata": "{"})
    refused(path, "no JSON")
    (tmp_path / "adapter_config.json").write_text(json.dumps([1]))
    refused(write(tmp_path / "adapter_model.safetensors", GOOD), "no JSON object")
