"""`tcd train --diffusers FOLDER`: tiny pipelines of every kind, and what diffusers makes of the LoRA."""

from __future__ import annotations

import gc
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from transformers import CLIPTextModel

from comfyui_tcd.cli import main
from comfyui_tcd.samplers import DiscreteSchedule
from comfyui_tcd.training.checkpoint import load_tensors, save_tensors
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.diffusers_backbone import Opened, open_model, schedule_of, variant_of
from comfyui_tcd.training.lora import merge_lora
from comfyui_tcd.training.report import read_log
from comfyui_tcd.training.run import train

KINDS = ("epsilon", "v", "sdxl")
PROMPTS = ["a cat", "a dog on a sofa", "hats"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("pipelines with a space")
    return {kind: tiny.save(home / kind, kind) for kind in KINDS}


def teacher(folder: Path, **given: Any) -> Opened:
    usual = {"width": None, "height": None, "negative": ""}
    return open_model(Namespace(**{"diffusers": folder, **usual, **given}))


def level(t: float) -> Any:
    """A time of the usual schedule for a batch of one."""
    return DiscreteSchedule.from_betas().point(torch.tensor([t]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_evaluation_is_diffusers_own(folders: dict[str, Path], kind: str):
    """Of a prompt and of the negative one: texts, sizes, time, kind of prediction."""
    found = teacher(folders[kind])
    conds = [found.encode(PROMPTS[:1]), found.encode([""])]
    pipeline = tiny.opened(folders[kind], kind)
    encoded = pipeline.encode_prompt(PROMPTS[0], "cpu", 1, True) if kind != "sdxl" else (
        pipeline.encode_prompt(PROMPTS[0], device="cpu", do_classifier_free_guidance=True)
    )  # fmt: skip
    x = torch.randn(1, 4, tiny.SIDE // 2, tiny.SIDE // 2, generator=torch.Generator().manual_seed(2))
    now = level(599.0)
    for i, cond in enumerate(conds):
        added = {}
        if kind == "sdxl":
            sizes = torch.tensor([[tiny.SIDE, tiny.SIDE, 0, 0, tiny.SIDE, tiny.SIDE]])
            added = {"text_embeds": encoded[2 + i], "time_ids": sizes}
        with torch.no_grad():
            said = pipeline.unet(x, 599, encoded[i], added_cond_kwargs=added).sample
            pipeline.scheduler.set_timesteps(1000)
            theirs = pipeline.scheduler.step(said, 599, x).pred_original_sample
            x0, eps = found.backbone.predictor(cond)(x, now, now)
        assert torch.allclose(x0, theirs, atol=1e-4 * float(theirs.abs().max()))
        alpha, sigma = (float(v) for v in now.level)
        assert torch.allclose(alpha * x0 + sigma * eps, x, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_prompt_is_encoded_as_any_other(folders: dict[str, Path], kind: str):
    found = teacher(folders[kind], negative=PROMPTS[2])
    cond, uncond = found.encode(PROMPTS), found.encode(PROMPTS[2:])
    assert cond.keys() == uncond.keys()
    assert all(torch.allclose(value[2:], uncond[name], atol=1e-5) for name, value in cond.items())
    assert not torch.allclose(cond["context"][:1], uncond["context"], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_learnt_and_diffusers_loads_it(folders: dict[str, Path], tmp_path: Path, kind: str):
    found = teacher(folders[kind])
    prompts, uncond = found.encode(PROMPTS), found.encode([""])
    network = found.backbone.network
    before = {k: v.clone() for k, v in network.state_dict().items()}
    config = DistillConfig(  # every step sees all pairs, with s = 0: only the weights change the loss
        steps=20, batch=5, rank=4, alpha=4.0, learning_rate=1e-3, decay="constant", warmup=0, skip=200,
        trajectories=1, reuse=20, w_min=2.0, w_max=2.0, s_range="zero", average=0.0, validate_every=20,
        validation_prompts=1,
    )  # fmt: skip
    train(config, found.backbone, prompts, uncond, tmp_path, metadata=found.metadata, quiet=True)
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    losses = [r["loss"] for r in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.97 * losses[0]
    tensors, metadata = load_tensors(tmp_path / "lora.safetensors")
    assert metadata["tcd.teacher"] == found.kind and len(metadata["tcd.teacher_hash"]) == 64

    pipeline = tiny.opened(folders[kind], kind)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    layers = merge_lora(network, tensors)
    assert layers == sum(k.endswith("lora_down.weight") for k in tensors) > 20
    ours, theirs = network.state_dict(), pipeline.unet.state_dict()
    changed = [k for k in before if not torch.equal(ours[k], before[k])]
    assert len(changed) == layers
    for key in before:
        deltas = [state[key] - before[key] for state in (ours, theirs)]
        assert (deltas[0] - deltas[1]).norm() <= 1e-3 * deltas[0].norm(), key


def test_the_command_trains_from_a_folder(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "my prompts.txt").write_text("\n".join(PROMPTS))
    given = {
        "diffusers": folders["sdxl"], "prompts": tmp_path / "my prompts.txt", "out": tmp_path / "out",
        "steps": 2, "batch": 2, "rank": 4, "skip": 200, "trajectories": 2, "validation-prompts": 1,
    }  # fmt: skip
    arguments = ["train", *(str(part) for name, value in given.items() for part in (f"--{name}", value))]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("done: 2 steps, loss ")
    assert "accumulation = 4 " in (tmp_path / "out/config.toml").read_text(), "the row of SDXL"
    assert (tmp_path / "out/lora.safetensors").is_file() and (tmp_path / "out/step-000002.png").is_file()
    assert main([*arguments, "--seed", "3"]) == 2
    assert "other settings (seed)" in capsys.readouterr().err


def test_the_text_encoders_are_gone_before_the_network_is_loaded(folders: dict[str, Path]):
    found = teacher(folders["epsilon"])
    found.encode(PROMPTS)
    found.encode([""])
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, CLIPTextModel)]
    assert "backbone" not in vars(found)
    assert found.backbone.network.config["cross_attention_dim"] == tiny.WIDTH  # pyright: ignore


def test_the_schedule_is_the_folders_own():
    usual = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    usual |= {"num_train_timesteps": 1000}
    times = torch.tensor([0.0, 500.0, 999.0])
    assert torch.equal(schedule_of(usual).point(times).level.alpha, level(0.0).level.alpha.new_tensor(
        [float(level(float(t)).level.alpha) for t in times]
    ))  # fmt: skip
    zero = schedule_of({**usual, "rescale_betas_zero_snr": True})
    assert float(zero.point(999.0).level.alpha) == 0
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    listed = schedule_of({"trained_betas": betas.tolist(), "prediction_type": "epsilon"})
    assert torch.allclose(listed.point(times).level.alpha, schedule_of(usual).point(times).level.alpha)


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy of a pipeline with other values in one of its files."""
    for path in folder.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "holds a FluxPipeline"),
        ("unet/config.json", {"in_channels": 9}, "no plain text-to-image teacher"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "no plain text-to-image teacher"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "cubic"}, "beta_schedule is 'cubic'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
    ],
)
def test_a_folder_that_cannot_be_a_teacher_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str, values: dict[str, Any], said: str
):
    with pytest.raises(ValueError, match=said):
        teacher(changed(folders["epsilon"], tmp_path / "other", name, **values))


def test_wrong_folders_sizes_and_no_prompts_are_named(folders: dict[str, Path], tmp_path: Path):
    with pytest.raises(ValueError, match=r"model_index\.json is missing or broken"):
        teacher(tmp_path)
    with pytest.raises(ValueError, match="multiples of 2"):
        teacher(folders["epsilon"], width=33)
    for missing in ("stabilityai/sdxl-turbo", tmp_path / "no folder"):
        with pytest.raises(ValueError, match=r"no such folder; a model of the hub .* hf download "):
            teacher(Path(missing))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give the folder of a pipeline"):
        teacher(tmp_path / "model.safetensors")


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_pickles_are_not_read(folders: dict[str, Path], tmp_path: Path, part: str):
    copy = changed(folders["epsilon"], tmp_path / "other", "model_index.json")
    weights = copy / f"{part}.safetensors"
    torch.save(load_tensors(weights)[0], weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"holds no \.safetensors file; .* pickles"):
        teacher(copy)


def evaluated(folder: Path, x: torch.Tensor) -> list[torch.Tensor]:
    """The encoded prompts of a folder, what its network says of `x` under the first, and a picture of `x`."""
    found = teacher(folder)
    cond = found.encode(PROMPTS)
    now = level(599.0)
    with torch.no_grad():
        said = found.backbone.predictor({k: v[:1] for k, v in cond.items()})(x, now, now)
    return [*cond.values(), *found.encode([""]).values(), *said, found.backbone.decode(x)]


@pytest.mark.parametrize("only", ["all", "unet", "text_encoder_2"])
def test_a_folder_with_the_fp16_variant_alone_is_the_same_teacher(
    folders: dict[str, Path], tmp_path: Path, only: str
):
    """As diffusers writes it; some on the hub have it of some parts only."""
    whole, variant = folders["sdxl"], tmp_path / "variant"
    tiny.opened(whole, "sdxl").save_pretrained(variant, variant="fp16")
    parts = {path.parent.name for path in variant.rglob("*.fp16.safetensors")}
    assert parts == {"unet", "vae", "text_encoder", "text_encoder_2"}
    for part in parts - {only} if only != "all" else ():
        for path in (variant / part).glob("*.safetensors"):
            path.rename(path.with_name(path.name.replace(".fp16", "")))
    x = torch.randn(1, 4, tiny.SIDE // 2, tiny.SIDE // 2, generator=torch.Generator().manual_seed(2))
    pairs = zip(evaluated(whole, x), evaluated(variant, x), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_weights_of_16_bits_are_computed_with_in_32(folders: dict[str, Path], tmp_path: Path):
    pipeline = tiny.opened(folders["epsilon"], "epsilon")
    pipeline.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    found = teacher(tmp_path)
    assert {v.dtype for v in found.encode(PROMPTS).values()} == {torch.float32}
    ours, theirs = found.backbone.network.state_dict(), pipeline.unet.state_dict()
    assert all(torch.equal(ours[k], v.float()) and ours[k].dtype == torch.float32 for k, v in theirs.items())


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["model-00001-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors"], None),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["model.bf16.safetensors"], "bf16"),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16"),
    ],
)
def test_plain_weights_come_before_a_variant(tmp_path: Path, names: list[str], variant: str | None):
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant


def test_a_run_goes_on_with_the_inputs_it_had_alone(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    prompts, others = tmp_path / "prompts.txt", tmp_path / "others.txt"
    prompts.write_text("a cat\na dog\n")
    others.write_text("a cat\na cow\n")
    other = changed(folders["epsilon"], tmp_path / "other", "model_index.json")
    weights = other / "unet/diffusion_pytorch_model.safetensors"
    save_tensors(weights, {k: 1.01 * v for k, v in load_tensors(weights)[0].items()}, {})
    usual = {
        "diffusers": folders["epsilon"], "prompts": prompts, "negative": "hats", "out": tmp_path / "out",
        "steps": 2, "batch": 2, "rank": 2, "skip": 200, "trajectories": 2, "validation-prompts": 1,
    }  # fmt: skip

    def run(**changes: Any) -> tuple[int, str]:
        given = {**usual, **changes}
        status = main(["train", *(str(part) for k, v in given.items() for part in (f"--{k}", v))])
        return status, capsys.readouterr().err

    assert run()[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    for changes, said in (
        ({"prompts": others}, "holds a run with other prompts; "),
        ({"negative": "a hat"}, "holds a run with another negative prompt; "),
        ({"diffusers": other}, "holds a run with another model; "),
        ({"width": 64, "prompts": others}, "with other prompts and another size; "),
    ):
        status, told = run(**changes)
        assert status == 2 and said in told and str(tmp_path / "out") in told, told
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    prompts.write_bytes("a cat\r\n\r\na dog".encode("utf-16"))  # the same prompts
    assert run()[0] == 0
