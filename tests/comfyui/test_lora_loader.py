"""TCD_LoraLoader in ComfyUI: every format on models of full layout, and what must be refused."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from lora_files import Pairs, adapters, every_format, kohya, lora_ab, text_encoder, write
from torch import Tensor

from comfyui_tcd.training.unet_layers import SD2, SD15, SDXL, Architecture

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
UNETS = {"SD 1.5": SD15, "SD 2.x": SD2, "SDXL": SDXL}
FORMATS = list(every_format(adapters(SD15, every=90)))
EVERY = {"SD 1.5": 6, "SD 2.x": 9, "SDXL": 24}  # layers whose change is compared; names and counts: all
LORA = "lora.safetensors"


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with start(host.path, host.python, pack, log, "lora_inside.py", loras) as call:
        yield call


def small(unet: Architecture) -> Architecture:
    return replace(unet, width=32, context=24, vector=48 if unet.vector else 0)


def close(found: dict[str, Tensor], pairs: Pairs, strength: float = 1.0) -> None:
    by_name = {row.ldm: pair for row, pair in pairs.items()}
    for name, change in found.items():
        pair = by_name[name]
        down = pair.down.flatten(1).float()
        expected = pair.up.flatten(1).float() @ (down @ torch.linspace(-1, 1, down.shape[1]))
        expected *= strength * pair.alpha / down.shape[0]
        assert (change - expected).norm() <= 1e-3 * expected.norm(), name


@pytest.mark.parametrize("base", UNETS)
@pytest.mark.parametrize("written", FORMATS)
def test_every_format_patches_every_layer_alike(inside: Inside, loras: Path, base: str, written: str):
    pairs = adapters(UNETS[base], rank=2)
    tensors = every_format(pairs)[written]
    write(loras / LORA, tensors)
    done = inside("load", base=base, name=LORA)
    assert (
        f"matched {len(tensors)} of {len(tensors)} keys, {len(pairs)} of {len(pairs)} layers"
        in done["report"]
    )
    assert done["patched"] == sorted(f"diffusion_model.{row.ldm}.weight" for row in pairs)
    assert done["report"][0].startswith(f"{LORA}: {base}, rank 2, ") and done["before"] == 0
    assert not any("not in this model" in line for line in done["report"])
    found = inside("changes", base=base, name=LORA, every=EVERY[base])
    close(found, pairs)


@pytest.mark.parametrize("base", UNETS)
def test_the_host_s_own_loader_does_the_same_with_kohya_keys(inside: Inside, loras: Path, base: str):
    pairs = adapters(UNETS[base], rank=2)
    write(loras / LORA, kohya(pairs))
    core = inside("changes", base=base, name=LORA, core=True, strength=0.7, every=24)
    close(core, pairs, 0.7)
    ours = inside("changes", base=base, name=LORA, strength=0.7, every=24)
    assert set(core) == set(ours) and all(torch.equal(core[k], ours[k]) for k in core)


def test_what_the_host_s_loader_drops_is_loaded(inside: Inside, loras: Path):
    pairs = adapters(SD15, rank=2, only=r"attn[12]\.|proj_in$", every=3)
    write(loras / LORA, lora_ab(pairs, "unet."))
    core = inside("changes", base="SD 1.5", name=LORA, core=True)
    assert not any("attn" in name for name in core), "then this node's reason is gone"
    assert set(inside("changes", base="SD 1.5", name=LORA)) == {row.ldm for row in pairs}


@pytest.mark.parametrize("base", UNETS)
def test_the_network_computes_with_it_and_without_it_again(inside: Inside, loras: Path, base: str):
    pairs = adapters(small(UNETS[base]), rank=4)
    plain = inside("run", base=base, name="")["out"]
    results: dict[str, Tensor] = {}
    for written, tensors in every_format(pairs).items():
        write(loras / LORA, tensors)
        done = inside("run", base=base, name=LORA, strength=0.5)
        assert done["restored"] and done["patches left"] == 0
        results[written] = done["out"]
    first = results["kohya"]
    assert (first - plain).norm() > 0.05 * plain.norm()
    for written, out in results.items():
        assert (out - first).norm() < 1e-3 * first.norm(), written
    write(loras / LORA, kohya(pairs))
    low = inside("run", base=base, name=LORA, strength=0.5, low_vram=True)
    assert low["delayed"] > 0, "nothing was patched while running, as low VRAM does"
    assert (low["out"] - first).norm() < 1e-3 * first.norm()
    whole = inside("run", base=base, name=LORA, strength=1.0)["out"]
    assert (whole - first).norm() > 1e-3 * first.norm()


@pytest.mark.parametrize("written", ["kohya", "kohya-ldm", "comfyui", "diffusers"])
@pytest.mark.parametrize(
    ("of", "on"),
    [("SD 1.5", "SDXL"), ("SDXL", "SD 1.5"), ("SD 1.5", "SD 2.x"), ("SD 2.x", "SD 1.5"), ("SD 2.x", "SDXL")],
)
def test_a_lora_of_another_base_is_refused(inside: Inside, loras: Path, of: str, on: str, written: str):
    write(loras / LORA, every_format(adapters(UNETS[of], rank=1))[written])
    error = inside("load", base=on, name=LORA)["error"]
    assert LORA in error and f"a LoRA for {of}" in error and f"the model is {on}" in error
    assert "do not fit" in error


def test_a_lora_of_which_nothing_is_in_the_model_is_refused(inside: Inside, loras: Path):
    base = "lora_unet_double_blocks_18_txt_mod_lin"
    up, down = torch.ones(18432, 1), torch.ones(1, 3072)
    write(loras / LORA, {f"{base}.lora_up.weight": up, f"{base}.lora_down.weight": down})
    error = inside("load", base="SD 1.5", name=LORA)["error"]
    assert LORA in error and "Flux" in error and "none of its 1 layers" in error and "SD 1.5" in error


def test_layers_that_the_model_lacks_are_told(inside: Inside, loras: Path):
    deep = replace(SD15, down=(2,) * 6 + (0,) * 2)
    write(loras / LORA, kohya(adapters(deep, rank=1)))
    report = inside("load", base="SD 1.5", name=LORA)["report"]
    assert any("layers are not in this model, such as lora_unet_down_blocks" in line for line in report)


def test_other_files_are_refused(inside: Inside, loras: Path):
    torch.save({}, loras / "pickle.safetensors")
    torch.save({}, loras / "pickle.pt")
    whole = write(loras / "cut.safetensors", kohya(adapters(SD15, every=30))).read_bytes()
    (loras / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    write(loras / "unet.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)})
    target = {"tcd_s_embed.net.0.weight": torch.ones(2, 2)}
    write(loras / "splus.safetensors", kohya(adapters(SD15, every=30)) | target)
    write(loras / "text.safetensors", text_encoder("lora_te_"))
    for name, word in {
        "pickle.safetensors": "zip archive",
        "pickle.pt": "zip archive",
        "cut.safetensors": "cut",
        "unet.safetensors": "whole checkpoint",
        "splus.safetensors": "no embedding of s",
        "text.safetensors": "connect CLIP",
    }.items():
        error = inside("load", base="SD 1.5", name=name)["error"]
        assert name in error and word in error


def test_the_same_lora_twice_is_told(inside: Inside, loras: Path):
    pairs, others = adapters(SD15, every=20), adapters(SD15, every=20, rank=3)
    write(loras / "a.safetensors", kohya(pairs))
    write(loras / "copy.safetensors", kohya(pairs, ldm=True))
    write(loras / "b.safetensors", kohya(others))

    def warned(first: str, second: str, **how: Any) -> bool:
        lines = inside("twice", base="SD 1.5", first=first, second=second, **how)
        return any("in the model already" in line for line in lines)

    assert warned("a.safetensors", "a.safetensors")
    assert warned("a.safetensors", "copy.safetensors")
    assert warned("a.safetensors", "a.safetensors", core_first=True)
    assert not warned("a.safetensors", "b.safetensors")


def test_strength_zero_changes_nothing(inside: Inside, loras: Path):
    write(loras / LORA, kohya(adapters(SD15, every=30)))
    done = inside("load", base="SD 1.5", name=LORA, strength=0.0, with_clip="SD 1.5")
    assert done["same model"] and done["same clip"] and "strength 0" in done["report"][0]


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        ("SD 1.5", {"lora_te_": 768}),
        ("SD 2.x", {"lora_te_": 1024}),
        ("SDXL", {"lora_te1_": 768, "lora_te2_": 1280}),
    ],
)
def test_text_encoders(inside: Inside, loras: Path, base: str, parts: dict[str, int]):
    tensors = kohya(adapters(UNETS[base], rank=2, every=20))
    for prefix, width in parts.items():
        tensors |= text_encoder(prefix, width=width)
    write(loras / LORA, tensors)
    done = inside("load", base=base, name=LORA, with_clip=base)
    assert len(done["clip"]) == 6 * len(parts)
    assert any(f"matched {len(tensors)} of {len(tensors)} keys" in line for line in done["report"])
    alone = inside("load", base=base, name=LORA)
    assert alone["clip"] is None
    assert any("CLIP is not connected" in line for line in alone["report"])
    write(loras / LORA, kohya(adapters(UNETS[base], every=20)))
    assert inside("load", base=base, name=LORA, with_clip=base)["same clip"]


def test_an_inpaint_model_takes_all_but_the_first_layer(inside: Inside, loras: Path):
    write(loras / LORA, kohya(adapters(SD15, rank=2, only="conv_in|attn1")))
    done = inside("load", base="SD 1.5", name=LORA, channels=9)
    assert any("1 layers are not in this model, such as lora_unet_conv_in" in line for line in done["report"])
    assert len(done["patched"]) == 64


def test_a_file_is_read_once_until_it_changes(inside: Inside, loras: Path):
    path = write(loras / "cached.safetensors", kohya(adapters(SD15, every=30)))
    reads, mark, kept = inside("cached", name=path.name)
    assert reads == 1 and kept <= 2
    assert inside("cached", name=path.name) == [0, mark, kept]
    write(path, kohya(adapters(SD15, every=29)))
    reads, other, kept = inside("cached", name=path.name)
    assert reads == 1 and other != mark and kept <= 2


def test_the_node_shows_what_it_found(inside: Inside, loras: Path):
    write(loras / "Hyper-SDXL-1step-lora.safetensors", kohya(adapters(SDXL, rank=2, every=9)))
    (sent,), report = inside("shown", base="SDXL", name="Hyper-SDXL-1step-lora.safetensors")
    assert sent == [report, "7"]
    assert "recommended: Hyper-SD, unified: 1 steps, cfg 1, gamma 1 (1 to 8 steps" in report


def test_the_node_s_declaration(inside: Inside, loras: Path):
    write(loras / LORA, kohya(adapters(SD15, every=30)))
    info = inside("info")
    assert info["display_name"] == "TCD LoRA Loader" and info["category"] == "TCD/loaders"
    assert set(info["input"]["required"]) == {"model", "lora_name", "strength"}
    assert set(info["input"]["optional"]) == {"clip", "bypass"}
    assert info["output"] == ["MODEL", "CLIP", "STRING"]
