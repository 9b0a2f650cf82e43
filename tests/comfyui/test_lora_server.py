"""TCD_LoraLoader in a real server: a stand-in checkpoint of SD 1.5, files in models/loras, API graphs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_oracle import relative
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve
from lora_files import adapters, kohya, write
from machine_memory import skip_below
from safetensors.torch import load_file, save_file
from workflow_standins import make

from comfyui_tcd.training.checkpoint import save_tensors
from comfyui_tcd.training.formats import convert, open_lora
from comfyui_tcd.training.unet_layers import SDXL

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
LORA = "tcd-sd15-lora.safetensors"
STRENGTH = 0.8


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    skip_below(5, "a stand-in of SD 1.5")
    home = tmp_path_factory.mktemp("lora server")
    copy_pack(home / "custom_nodes/trajectory-consistency")
    make(host, home / "models", f"checkpoints/{CHECKPOINT}", f"loras/{LORA}")
    write_loras(home / "models/loras")
    with serve(host, home) as found:
        yield found
    (home / "models/checkpoints" / CHECKPOINT).unlink()


def write_loras(folder: Path) -> None:
    tensors = {k: v * 0 + 3.0 if k.endswith("alpha") else v for k, v in load_file(folder / LORA).items()}
    save_file(tensors, folder / "kohya.safetensors")
    save_tensors(
        folder / "diffusers.safetensors", *convert(open_lora(folder / "kohya.safetensors"), "diffusers")
    )
    save_tensors(folder / "again.safetensors", *convert(open_lora(folder / "diffusers.safetensors"), "kohya"))
    whole = (folder / LORA).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"first_stage_model.encoder.conv_in.weight": torch.ones(2, 2)}, folder / "vae.safetensors")
    write(folder / "sdxl.safetensors", kohya(adapters(SDXL, rank=1)))
    torch.save({"a": torch.ones(1)}, folder / "pickle.safetensors")
    torch.save({"a": torch.ones(1)}, folder / "pickle.pt")


def graph(**models: dict[str, Any] | None) -> dict[str, Any]:
    """A run for each, through a node that takes MODEL (and CLIP) or through none."""
    made = {
        "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text="a cat"),
        "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }
    for name, loader in models.items():
        model = ["checkpoint", 0]
        if loader is not None:
            loader["inputs"] |= {"model": ["checkpoint", 0], "clip": ["checkpoint", 1]}
            made[f"{name} loader"], model = loader, [f"{name} loader", 0]
        made[f"{name} sampler"] = node(
            "TCD_KSampler", model=model, seed=4, steps=2, cfg=1.0, gamma=0.3, positive=["positive", 0],
            negative=["negative", 0], latent_image=["empty", 0], denoise=1.0,
        )  # fmt: skip
        made[name] = node("SaveLatent", samples=[f"{name} sampler", 0], filename_prefix=name)
    return made


def ours(file: str) -> dict[str, Any]:
    return node("TCD_LoraLoader", lora_name=file, strength=STRENGTH)


def core(file: str) -> dict[str, Any]:
    return node("LoraLoader", lora_name=file, strength_model=STRENGTH, strength_clip=STRENGTH)


def test_it_does_what_core_does_with_the_converted_file(server: Server):
    """Core itself drops the attention of the file in diffusers' keys. "A variant": see workflow_standins."""
    with server.texts() as shown:
        a_without, b_ours, c_again, d_kohya, e_dropped = server.latents(
            graph(
                a=None,
                b=ours("diffusers.safetensors"),
                c=core("again.safetensors"),
                d=core("kohya.safetensors"),
                e=core("diffusers.safetensors"),
            )
        )
    assert a_without.isfinite().all() and float(a_without.std()) > 0.1
    assert relative(b_ours, c_again) < 1e-4 and relative(b_ours, d_kohya) < 1e-4
    assert relative(b_ours, a_without) > 1e-2 and relative(b_ours, e_dropped) > 1e-2
    keys = len(load_file(server.output.with_name("models") / "loras/diffusers.safetensors"))
    first, second, *_ = shown["b loader"].split("\n")
    assert first == "diffusers.safetensors: a variant of SD 1.5, rank 4, alpha none (scale 1), diffusers keys"
    assert second == f"matched {keys} of {keys} keys, {keys // 2} of {keys // 2} layers"
    assert set(shown) == {"b loader"}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("sdxl.safetensors", "a LoRA for SDXL, but the model is SD 1.5; "),
        ("vae.safetensors", "no LoRA"),
        ("cut.safetensors", "cut"),
        ("pickle.safetensors", "zip archive"),
        ("pickle.pt", "zip archive"),
    ],
)
def test_what_is_no_lora_for_the_model_is_refused_by_name(server: Server, file: str, says: str):
    message = server.error(graph(a=ours(file)))
    assert file in message and says in message
