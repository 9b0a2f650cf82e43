"""What a run was made from: asked of every resume, by `tcd train` as by TCD Distill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import prompts, uncond

from comfyui_tcd.cli import main
from comfyui_tcd.embedded.model import EmbeddedModel
from comfyui_tcd.samplers import FlowSchedule
from comfyui_tcd.training.checkpoint import load_tensors, save_tensors
from comfyui_tcd.training.distill import CHECKPOINT, LORA
from comfyui_tcd.training.inputs import INPUTS, check_inputs, inputs_of
from comfyui_tcd.training.report import read_log
from comfyui_tcd.training.shards import shard_of, write_shard

DATA = {"latents": torch.ones(2, 4, 4, 4), "cond.context": torch.ones(2, 3, 32)}


def made(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"teacher": "a hash", "latent_shape": (4, 4, 4), "schedule": FlowSchedule(1.0)}
    usual |= {"prompts": prompts(3), "uncond": uncond()}
    return inputs_of(**{**usual, **changes})


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ({}, {"teacher": "other"}, "another model"),
        ({}, {"prompts": prompts(2)}, "other prompts"),
        ({}, {"prompts": prompts(3, seed=5)}, "other prompts"),
        ({}, {"uncond": prompts(1, seed=5)}, "another negative prompt"),
        ({}, {"latent_shape": (4, 4, 8)}, "another size"),
        ({}, {"schedule": FlowSchedule(6.0)}, "another noise schedule"),
        ({}, {"data": DATA}, "another dataset"),
        ({"data": DATA}, {}, "another dataset"),
        ({"data": DATA}, {"data": {**DATA, "latents": torch.zeros(2, 4, 4, 4)}}, "another dataset"),
        ({}, {"teacher": "other", "data": DATA}, "another model and another dataset"),
    ],
)
def test_what_has_changed_since_the_checkpoint_is_named(
    tmp_path: Path, first: dict[str, Any], then: dict[str, Any], said: str
):
    check_inputs(tmp_path, made(**first))
    check_inputs(tmp_path, made(**then))  # there is nothing yet that could go on
    check_inputs(tmp_path, made(**first))
    save_tensors(tmp_path / CHECKPOINT, {"a": torch.ones(1)}, {})
    check_inputs(tmp_path, made(**first))
    before = (tmp_path / INPUTS).read_bytes()
    with pytest.raises(ValueError, match=f"holds a run with {said}; give it what it had") as error:
        check_inputs(tmp_path, made(**then))
    assert str(error.value).startswith(str(tmp_path)) and (tmp_path / INPUTS).read_bytes() == before


@pytest.mark.parametrize("text", ["", "[1]", "{", "\0"])
def test_a_damaged_list_of_inputs_is_named(tmp_path: Path, text: str):
    save_tensors(tmp_path / CHECKPOINT, {"a": torch.ones(1)}, {})
    check_inputs(tmp_path, made())
    (tmp_path / INPUTS).write_text(text)
    with pytest.raises(ValueError, match=f"{INPUTS}: damaged"):
        check_inputs(tmp_path, made())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With prompts, two data sets, and a run of the embedded model from each."""
    folder = tmp_path_factory.mktemp("runs of the command")
    (folder / "prompts.txt").write_text("red hair, glasses\nhat\n")
    (folder / "others.txt").write_text("red hair, glasses\nglasses\n")
    model = EmbeddedModel.load()
    for i, name in enumerate(("data", "more")):
        latents = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(i))
        write_shard(folder / name / "shard.safetensors", latents, model.encode(["hat"] * 4))
    assert run(folder, "free") == 0 and run(folder, "real", data="data") == 0
    return folder


def run(folder: Path, out: str | Path, **changes: Any) -> int:
    given: dict[str, Any] = {
        "out": folder / out, "prompts": "prompts.txt", "negative": "hat", "steps": 2, "batch": 2, "rank": 2,
        "skip": 200, "trajectories": 2, "validation-prompts": 1, "decay": "constant", "warmup": 0, **changes,
    }  # fmt: skip
    for name in {"prompts", "data"} & given.keys():
        given[name] = folder / given[name]
    return main(["train", "--embedded", *(str(part) for k, v in given.items() for part in (f"--{k}", v))])


@pytest.mark.parametrize(
    ("out", "changes", "said"),
    [
        ("free", {"prompts": "others.txt"}, "holds a run with other prompts; "),
        ("free", {"negative": "glasses"}, "holds a run with another negative prompt; "),
        ("free", {"data": "data"}, "holds a run with another dataset; "),
        ("real", {"data": "more"}, "holds a run with another dataset; "),
        ("real", {}, "holds a run with another dataset; "),
        ("free", {"decay": "cosine", "steps": 3}, "Set decay = constant to train on to steps = 3"),
        ("free", {"seed": 4}, "other settings (seed)"),
    ],
)
def test_the_command_refuses_what_was_not_the_runs(
    home: Path, capsys: pytest.CaptureFixture[str], out: str, changes: dict[str, Any], said: str
):
    usual = {"data": "data"} if out == "real" and changes else {}
    before = {p: p.read_bytes() for p in (home / out).rglob("*") if p.is_file()}
    assert run(home, out, **{**usual, **changes}) == 2
    told = capsys.readouterr().err
    assert said in told and str(home / out) in told
    assert {p: p.read_bytes() for p in (home / out).rglob("*") if p.is_file()} == before


def test_the_command_goes_on_with_what_was_and_trains_on(home: Path):
    for out, usual in (("free", {}), ("real", {"data": "data/shard.safetensors"})):
        longer = shutil.copytree(home / out, home / f"{out} longer").name
        assert run(home, longer, **usual) == 0
        assert run(home, longer, steps=4, **usual) == 0 and run(home, f"{out} whole", steps=4, **usual) == 0
        assert [r["step"] for r in read_log(home / longer / "log.jsonl")] == [1, 2, 3, 4]
        a, b = (load_tensors(home / name / LORA)[0] for name in (longer, f"{out} whole"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        noted = [json.loads((home / name / INPUTS).read_text()) for name in (longer, f"{out} whole")]
        assert noted[0] == noted[1] and ("dataset" in noted[0]) == bool(usual)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"out": "prompts.txt"}, "prompts.txt is there already and is no folder; choose another name"),
        ({"out": "prompts.txt/run"}, "prompts.txt is there already and is no folder"),
        ({"data": "stray"}, "lora.safetensors: a shard needs `latents` and `cond.*`"),
        ({"data": "bare"}, "holds no .safetensors file; leave the data out"),
        ({"data": "absent"}, "absent: no such folder or file"),
        ({"prompts": "absent.txt"}, "absent.txt: cannot be read (No such file"),
        ({"prompts": "empty.txt"}, "empty.txt: no prompts in it"),
        ({"config": "no settings.toml"}, "no settings.toml, line 1: byte 1 (0xff) is not UTF-8"),
    ],
)
def test_a_wrong_argument_is_named_before_the_model_is_loaded(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    said: str,
):
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("prompts.txt", "data"):
        (shutil.copytree if (home / name).is_dir() else shutil.copy)(home / name, tmp_path / name)
    (tmp_path / "bare").mkdir()
    shutil.copytree(home / "data", tmp_path / "stray")
    save_tensors(tmp_path / "stray/lora.safetensors", {"a.lora_up.weight": torch.ones(2, 2)}, {})
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "no settings.toml").write_bytes(b"\xff")
    monkeypatch.setattr(EmbeddedModel, "load", load)
    place = {"out": tmp_path / "out", **{name: tmp_path / value for name, value in given.items()}}
    before = sorted(tmp_path.rglob("*"))
    assert run(tmp_path, **place) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_system_hides_in_a_folder_is_no_data(home: Path, tmp_path: Path):
    data = shutil.copytree(home / "data", tmp_path / "data")
    (data / "._shard.safetensors").write_bytes(b"of macOS, on a disk of another system")
    shutil.copy(home / "prompts.txt", tmp_path)
    assert run(tmp_path, "out", data="data") == 0
    one, other = (json.loads((run / INPUTS).read_text()) for run in (tmp_path / "out", home / "real"))
    assert one["dataset"] == other["dataset"]


def test_a_shard_is_named_as_it_is_read(tmp_path: Path):
    write_shard(tmp_path / "a.safetensors", DATA["latents"], {"context": DATA["cond.context"]})
    held = load_tensors(tmp_path / "a.safetensors")[0]
    named = shard_of(DATA["latents"], {"context": DATA["cond.context"]})
    assert made(data=held) == made(data=named)
