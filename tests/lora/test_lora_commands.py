"""`tcd inspect`, `tcd convert`, and the table of known files behind the recommendations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import adapters, kohya, lora_ab, write

from comfyui_tcd import cli
from comfyui_tcd.training.formats import convert, open_lora
from comfyui_tcd.training.known_loras import KNOWN, advice, trailing
from comfyui_tcd.training.lora_bases import base_models, family
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
    ("hyperSDXL_8steps.safetensors", SDXL, 8, 1, 0.0),
    ("HyperSD15-4step.safetensors", SD15, 4, 1, 0.0),
    ("dmd2_sdxl_4step_lora_fp16.safetensors", SDXL, 4, 1, 1.0),
    ("SDXL/dmd2.safetensors", SDXL, 4, 1, 1.0),
    ("sdxl_lightning_2step_lora.safetensors", SDXL, 2, 1, 0.0),
    ("sdxl_lightning_8step_lora.safetensors", SDXL, 8, 1, 0.0),
    ("sd_xl_turbo_lora_v1.safetensors", SDXL, 4, 1, 1.0),
    ("sdxl_tdd_lora_weights.safetensors", SDXL, 4, 1.7, 0.2),
    (f"flash-sdxl/{CARD}", SDXL, 4, 1, 1.0),
]
# Attention layers of other models at their real sizes: names by number of the block, blocks, width.
DITS = {
    "Flux": ("transformer.single_transformer_blocks.{}.attn.to_q", 38, 3072),
    "Flux.2": ("diffusion_model.double_blocks.{}.img_attn.proj", 8, 6144),
    "Qwen-Image": ("transformer_blocks.{}.attn.add_q_proj", 60, 3072),
    "Wan": ("diffusion_model.blocks.{}.self_attn.q", 40, 5120),
    "Z-Image": ("diffusion_model.layers.{}.attention.to_q", 30, 3840),
    "Anima": ("diffusion_model.blocks.{}.self_attn.q_proj", 28, 2048),
    "LTX-2": ("diffusion_model.transformer_blocks.{}.audio_attn1.to_q", 48, 2048),
    "SD3": ("transformer.transformer_blocks.{}.attn.to_q", 24, 1536),
}
DIT_NAMES = [
    # file, base, steps, strength, shift, first and last time
    ("Hyper-FLUX.1-dev-8steps-lora", "Flux", 8, 0.125, None, ()),
    ("FLUX.1-Turbo-Alpha", "Flux", 8, 1, None, ()),
    ("FLUX.1-dev_tdd_lora_weights", "Flux", 8, 1, None, ()),
    ("Flux_2-Turbo-LoRA_comfyui", "Flux.2", 8, 1, None, (1.0, 0.00031)),
    ("Qwen-Image-Lightning-4steps-V1.0", "Qwen-Image", 4, 1, 3.0, (1.0, 0.5)),
    ("Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16", "Qwen-Image", 8, 1, 3.0, (1.0, 0.3)),
    ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise", "Wan", 4, 1, 5.0, (1.0, 0.625)),
    ("lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16", "Wan", 4, 1, 5.0, (1.0, 0.625)),
    ("Z-Image-Fun-Lora-Distill-8-Steps-2602", "Z-Image", 8, 0.8, None, ()),
    ("anima-turbo-lora-v0.2", "Anima", 8, 1, None, ()),
    ("ltx-2-19b-distilled-lora-384", "LTX-2", 8, 1, None, (1.0, 0.421875)),
    ("Hyper-SD3-8steps-CFG-lora", "SD3", 8, 0.125, None, ()),
]


@pytest.mark.parametrize(("name", "unet", "steps", "cfg", "gamma"), NAMES, ids=lambda x: str(x)[:44])
def test_known_files(tmp_path: Path, name: str, unet: Architecture, steps: int, cfg: float, gamma: float):
    file = open_lora(write(tmp_path / name, kohya(adapters(unet, rank=1, only="attn2", every=5))))
    tip = advice(file)
    assert tip is not None and tip.source
    assert (tip.steps, tip.cfg, tip.gamma) == (steps, cfg, gamma)


@pytest.mark.parametrize(("name", "base", "steps", "strength", "shift", "ends"), DIT_NAMES)
def test_known_files_of_other_models(
    tmp_path: Path,
    name: str,
    base: str,
    steps: int,
    strength: float,
    shift: float | None,
    ends: tuple[float, ...],
):
    tip = advice(open_lora(write(tmp_path / f"{name}.safetensors", of_dit(base))))
    assert tip is not None and (tip.steps, tip.strength, tip.cfg) == (
        steps,
        strength,
        5 if base == "SD3" else 1,
    )
    assert tip.shift == shift and (tip.sigmas[:1] + tip.sigmas[-1:]) == pytest.approx(ends)
    assert not tip.sigmas or len(tip.sigmas) == steps


def of_dit(base: str) -> dict[str, torch.Tensor]:
    key, blocks, width = DITS[base]
    shapes = (("A", (1, width)), ("B", (width, 1)))
    return {f"{key.format(i)}.lora_{x}.weight": torch.ones(s) for i in range(blocks) for x, s in shapes}


def test_times_are_those_of_diffusers_schedulers(tmp_path: Path):
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    for n in (1, 2, 4, 8):
        theirs = EulerDiscreteScheduler(timestep_spacing="trailing")
        theirs.set_timesteps(n)
        assert list(trailing(n, None)["timesteps"]) == [round(float(t)) for t in theirs.timesteps]
    # As LightX2V does: evenly spaced, then shifted.
    flow: Any = FlowMatchEulerDiscreteScheduler(shift=5.0)
    flow.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert trailing(4, 5.0)["sigmas"] == pytest.approx(flow.sigmas[:-1].tolist())
    assert [1000 * x for x in trailing(4, 5.0)["sigmas"]] == pytest.approx(
        [1000, 937.5, 833.333, 625], abs=1e-2
    )
    tip = advice(open_lora(write(tmp_path / "dmd2.safetensors", kohya(adapters(SDXL, rank=1, every=20)))))
    assert tip is not None and tip.timesteps == (999, 749, 499, 249) and "999, 749, 499, 249" in str(tip)


def test_a_renamed_file_is_known_by_its_metadata(tmp_path: Path):
    about = {"modelspec.title": "SDXL Lightning 8step LoRA"}
    tensors = kohya(adapters(SDXL, rank=1, every=20))
    tip = advice(open_lora(write(tmp_path / "fast.safetensors", tensors, about)))
    assert tip is not None and (tip.title, tip.steps) == ("SDXL-Lightning", 8) and len(tip.timesteps) == 8


@pytest.mark.parametrize(
    ("name", "unet"),
    [
        ("style.safetensors", SDXL),
        ("Hyper-SDXL-2steps-lora.safetensors", SD2),  # not a model it was made for
        ("lcm-lora-sdxl.safetensors", SD2),
        ("notcd.safetensors", SDXL),
        ("hyperrealism.safetensors", SDXL),
        ("hyperdetail_sd_8steps.safetensors", SDXL),
        ("lightning_bolts.safetensors", SDXL),
        ("turbocharged.safetensors", SDXL),
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
    families = {kind.family for kind in base_models().values()} | {"Anima", "SDXL", "SD 1.5", "SD 2.x"}
    for row in KNOWN:
        assert row.advice.source and row.bases
        assert 0 <= row.advice.gamma <= 1 <= row.advice.cfg and row.advice.steps >= 1
        times = row.settings(row.advice.steps)
        assert not (times.timesteps and times.sigmas)
        assert len(times.timesteps or times.sigmas or range(row.advice.steps)) == row.advice.steps
        assert list(times.sigmas) == sorted(times.sigmas, reverse=True)
        assert {family(name) for name in row.bases} <= families, row.bases


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


@pytest.mark.parametrize(("shape", "told"), [((320, 1), True), ((1, 320), False)])
def test_a_conversion_of_dora_says_what_the_host_makes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, int], told: bool
):
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{base}.lora_down.weight": torch.randn(4, 320),
        f"{base}.lora_up.weight": torch.randn(320, 4),
        f"{base}.dora_scale": torch.rand(shape),
    }
    source = write(tmp_path / "dora.safetensors", tensors)
    assert cli.main(["convert", str(source), str(tmp_path / "out.safetensors"), "--format", "kohya-ldm"]) == 0
    assert ("norm of the weight alone" in capsys.readouterr().out) is told


def test_a_conversion_beside_settings_that_would_count_again_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    source = write(
        tmp_path / "adapter_model.safetensors", lora_ab(adapters(SD15, every=60), "base_model.model.")
    )
    command = ["convert", str(source), "--force", "--format", "peft"]
    assert cli.main([*command, str(source)]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    target = tmp_path / "another" / "adapter_model.safetensors"
    target.parent.mkdir()
    assert cli.main([*command, str(target)]) == 0
    scaled = {x.name: x.delta() for x in open_lora(source).layers}
    assert all(torch.allclose(x.delta(), scaled[x.name]) for x in open_lora(target).layers)
