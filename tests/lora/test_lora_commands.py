"""`tcd inspect`, `tcd convert`, and the table of known files behind the recommendations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lora_files import adapters, kohya, lora_ab, write

from comfyui_tcd import cli
from comfyui_tcd.training.formats import convert, open_lora
from comfyui_tcd.training.known_loras import KNOWN, advice
from comfyui_tcd.training.lora_report import faults, lines, remarks
from comfyui_tcd.training.unet_layers import SD2, SD15, SDXL, Architecture

CARD = "pytorch_lora_weights.safetensors"
NAMES = [
    # file, base, steps, cfg, gamma
    (f"TCD-SDXL-LoRA/{CARD}", SDXL, 4, 1, 0.3),
    (f"TCD-SD15-LoRA/{CARD}", SD15, 4, 1, 0.3),
    (f"TCD-SD21-base-LoRA/{CARD}", SD2, 4, 1, 0.3),
    ("tcd_sdxl.safetensors", SDXL, 4, 1, 0.3),
    (f"lcm-lora-sdxl/{CARD}", SDXL, 4, 1, 1.0),
    (f"lcm-lora-sdv1-5/{CARD}", SD15, 4, 1, 1.0),
    ("lcm_lora_sdxl.safetensors", SDXL, 4, 1, 1.0),
    ("Hyper-SDXL-1step-lora.safetensors", SDXL, 1, 1, 1.0),
    ("Hyper-SD15-1step-lora.safetensors", SD15, 1, 1, 1.0),
    ("Hyper-SDXL-2steps-lora.safetensors", SDXL, 2, 1, 0.0),
    ("Hyper-SD15-8steps-lora.safetensors", SD15, 8, 1, 0.0),
    ("Hyper-SDXL-8steps-CFG-lora.safetensors", SDXL, 8, 5, 0.0),
    ("Hyper-SD15-12steps-CFG-lora.safetensors", SD15, 12, 5, 0.0),
    ("pcm_sdxl_smallcfg_2step_converted.safetensors", SDXL, 2, 1, 0.0),
    ("pcm_sd15_smallcfg_16step_converted.safetensors", SD15, 16, 1, 0.0),
    ("pcm_sd15_normalcfg_4step_converted.safetensors", SD15, 4, 7.5, 0.0),
    ("pcm_sdxl_lcmlike_lora_converted.safetensors", SDXL, 4, 1, 1.0),
]


@pytest.mark.parametrize(("name", "unet", "steps", "cfg", "gamma"), NAMES, ids=lambda x: str(x)[:44])
def test_known_files(tmp_path: Path, name: str, unet: Architecture, steps: int, cfg: float, gamma: float):
    file = open_lora(write(tmp_path / name, kohya(adapters(unet, rank=1, only="attn2", every=5))))
    tip = advice(file)
    assert tip is not None and tip.source
    assert (tip.steps, tip.cfg, tip.gamma) == (steps, cfg, gamma)


def test_hyper_for_flux(tmp_path: Path):
    tensors = {
        f"transformer.single_transformer_blocks.{i}.attn.to_q.lora_{x}.weight": torch.ones(shape)
        for i in range(38)
        for x, shape in (("A", (1, 3072)), ("B", (3072, 1)))
    }
    tip = advice(open_lora(write(tmp_path / "Hyper-FLUX.1-dev-8steps-lora.safetensors", tensors)))
    assert tip is not None and (tip.steps, tip.strength) == (8, 0.125) and "strength 0.125" in str(tip)


@pytest.mark.parametrize(
    ("name", "unet"),
    [
        ("style.safetensors", SDXL),
        ("Hyper-SDXL-2steps-lora.safetensors", SD2),  # not a model it was made for
        ("lcm-lora-sdxl.safetensors", SD2),
        ("notcd.safetensors", SDXL),
        ("hyperrealism.safetensors", SDXL),
    ],
)
def test_unknown_files(tmp_path: Path, name: str, unet: Architecture):
    assert advice(open_lora(write(tmp_path / name, kohya(adapters(unet, rank=1, every=20))))) is None


@pytest.mark.parametrize(
    ("s_range", "steps", "gamma"),
    [("uniform", 4, 0.3), ("zero", 4, 1.0), ("phases", 8, 0.0), ("near", 8, 0.3)],
)
def test_our_trainer_s_metadata_comes_before_the_name(tmp_path: Path, s_range: str, steps: int, gamma: float):
    about = {"tcd.student": '"tcf1"', "tcd.s_range": f'"{s_range}"', "tcd.s_steps": "8"}
    about |= {"tcd.w_min": "3.0", "tcd.w_max": "8.0"}
    tensors = kohya(adapters(SDXL, rank=1, every=20))
    tip = advice(open_lora(write(tmp_path / "Hyper-SDXL-8steps-CFG-lora.safetensors", tensors, about)))
    assert tip is not None and (tip.steps, tip.cfg, tip.gamma) == (steps, 1, gamma)
    assert "cfg 4 to 9" in tip.note


def test_every_row_has_a_source_and_possible_settings():
    for row in KNOWN:
        assert row.advice.source and row.bases
        assert 0 <= row.advice.gamma <= 1 <= row.advice.cfg and row.advice.steps >= 1


def test_a_file_without_a_telling_name(tmp_path: Path):
    file = open_lora(write(tmp_path / "x" / CARD, kohya(adapters(SD15, rank=64, alpha=64.0, every=3))))
    assert any("published LCM and TCD LoRAs" in text for _, text in lines(file))
    file = open_lora(write(tmp_path / "x" / CARD, kohya(adapters(SD15, rank=32, every=3))))
    assert not any("published" in text for _, text in lines(file))


def test_alpha_that_got_lost_is_told(tmp_path: Path):
    tensors = lora_ab(adapters(SD15, every=60), "unet.")
    for said, expected in (("2.0", True), ("4.0", False), ("None", False)):
        file = open_lora(write(tmp_path / "lora.safetensors", tensors, {"ss_network_alpha": said}))
        assert any("has no effect" in text for _, text in lines(file)) is expected


GOOD = kohya(adapters(SD15, every=60, alpha=4.0))
UPS = [key for key in GOOD if key.endswith("lora_up.weight")]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {UPS[0]: GOOD[UPS[0]] * torch.nan},
            "1 of 5 layers, such as down_blocks.0.resnets.0.conv1, hold NaN",
        ),
        ({UPS[1]: (GOOD[UPS[1]] * 1e9).half()}, "hold NaN or infinity"),
        (
            {key: GOOD[key].to(torch.float8_e4m3fn) for key in UPS}
            | {UPS[1]: (GOOD[UPS[1]] * torch.nan).to(torch.float8_e4m3fn)},
            "1 of 5",
        ),
        ({key: GOOD[key] * 0 for key in UPS}, "every layer has a factor of zeros"),
        ({key: GOOD[key] * 0 for key in UPS[:2]}, "2 of 5 layers"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.alpha": torch.tensor(0.0)}, "alpha 0"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.alpha": torch.tensor(4096.0)}, "(alpha / rank) of 1024"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.alpha": torch.tensor(-4.0)}, "(alpha / rank) of -1"),
        ({"lora_unet_down_blocks_0_resnets_0_conv1.alpha": torch.tensor(64.0)}, ""),  # rsLoRA
        ({key: GOOD[key].to(torch.float8_e4m3fn) for key in UPS}, ""),
        ({}, ""),
    ],
)
def test_numbers_that_spoil_a_lora_are_told(tmp_path: Path, change: dict[str, torch.Tensor], told: str):
    found = faults(open_lora(write(tmp_path / "lora.safetensors", GOOD | change)))
    assert len(found) == bool(told) and all(told in text for text in found)


@pytest.mark.parametrize("word", ["hero", "mylora", "lora_A", "my.lora_up.weight"])
def test_a_bundled_embedding_is_told_and_kept(tmp_path: Path, word: str):
    keys = [f"bundle_emb.{word}.{part}" for part in ("clip_l", "clip_g", "clip_l_out")]
    path = write(tmp_path / "lora.safetensors", GOOD | {key: torch.ones(2, 768) for key in keys})
    file = open_lora(path)
    assert len(file.layers) == len(UPS) and any(
        f"embedding of {word} into it" in text for text in remarks(file)
    )
    assert not any("belong to no layer" in text for text in remarks(file))
    assert set(keys) <= set(convert(file, "diffusers")[0])


def test_inspect_prints_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "tcd.safetensors", kohya(adapters(SDXL, every=20)), {"author": "me"})
    assert cli.main(["inspect", str(path), "--layers", "--metadata"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "SDXL",
        "kohya, diffusers' names",
        "40 of the UNet, 0 of text encoders",
        "120",
        "0.75",
        "TCD: 4 steps, cfg 1, gamma 0.3",
        "model cards",
        "down_blocks.0.resnets.0.conv1  rank 4  alpha 3",
        "author = me",
    ):
        assert text in shown


def test_convert_writes_the_other_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write(tmp_path / "in.safetensors", kohya(adapters(SD15, every=20)), {"author": "me"})
    target = tmp_path / "out.safetensors"
    command = ["convert", str(source), str(target), "--format", "comfyui"]
    assert cli.main(command) == 0
    assert "14 layers, kohya, diffusers' names -> ComfyUI" in capsys.readouterr().out
    written = open_lora(target)
    assert written.formats == ["comfyui"] and written.metadata["author"] == "me"
    assert cli.main(command) == 2 and "--force" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({}, tmp_path / "lora.pt")
    assert cli.main(["inspect", str(tmp_path / "lora.pt")]) == 2
    assert "zip archive" in capsys.readouterr().err
    source = write(tmp_path / "in.safetensors", kohya(adapters(SD15, every=90)))
    assert cli.main(["convert", str(source), str(tmp_path / "out.pt"), "--format", "peft"]) == 2
    assert "out.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["convert", str(source), str(tmp_path / "out.safetensors"), "--format", "other"])
