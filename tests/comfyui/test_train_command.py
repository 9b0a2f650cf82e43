"""`tcd train --comfyui PATH --checkpoint FILE` as it is typed: its files, last line and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pack import copy_pack
from machine_memory import skip_below
from safetensors.torch import load_file, save_file
from workflow_standins import make

from comfyui_tcd.training.report import read_log

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
STEPS = 12


class Shell:
    """A folder with a space in its name, from which the command is given."""

    def __init__(self, host: Any, folder: Path, checkpoint: Path) -> None:
        self.host, self.folder = host, folder
        (folder / "my teacher.safetensors").symlink_to(checkpoint)
        (folder / "my prompts.txt").write_text("a cat\n\na dog\n")
        copy_pack(folder / "site packages" / "comfyui_tcd")  # installed, but for the host's environment

    def start(self, out: str, **changes: Any) -> subprocess.Popen[str]:
        given = {
            "comfyui": self.host.path, "checkpoint": "my teacher.safetensors", "prompts": "my prompts.txt",
            "out": out, "preset": "sd15", "width": 32, "height": 32, "steps": STEPS, "batch": 2, "rank": 4,
            "alpha": 4.0, "learning-rate": 1e-3, "skip": 200, "trajectories": 1, "validation-prompts": 1,
            "validate-every": STEPS, **changes,
        }  # fmt: skip
        options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
        place = {"PYTHONPATH": str(self.folder / "site packages"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            [self.host.python, "-m", "comfyui_tcd.cli", "train", *options],
            cwd=self.folder,
            env={**os.environ, **place},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: str, **changes: Any) -> tuple[int, list[str], list[str]]:
        """Exit status, and the lines of both outputs."""
        return ended(self.start(out, **changes))


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    with process:
        out, error = process.communicate(timeout=550)
    return process.returncode, out.splitlines(), error.splitlines()


@pytest.fixture(scope="module")
def shell(host: Any, standins: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("a folder with a space")
    return Shell(host, folder, standins / "checkpoints/tiny-sd15.safetensors")


@pytest.fixture(scope="module")
def whole(shell: Shell) -> Generator[Path]:
    """The folder of a run from start to end."""
    status, out, error = shell.run("the whole run")
    assert status == 0, error[-20:]
    assert out[-1].startswith(f"done: {STEPS} steps, loss ") and "best validation" in out[-1]
    assert out[-1].endswith(str(Path("the whole run") / "lora.safetensors"))
    yield shell.folder / "the whole run"


def test_a_run_leaves_a_lora_and_says_where(whole: Path):
    tensors = load_file(whole / "lora.safetensors")
    assert tensors and all(bool(value.isfinite().all()) for value in tensors.values())
    assert any(bool(value.any()) for name, value in tensors.items() if "lora_up" in name)
    assert [r["step"] for r in read_log(whole / "log.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_an_interrupted_run_says_so_and_goes_on_with_the_same_command(shell: Shell, whole: Path):
    folder = shell.folder / "interrupted"
    process = shell.start("interrupted")
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.is_file() and read_log(log)):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    status, out, error = ended(process)
    assert status == 130, error[-20:]
    assert error[-1] == "tcd: interrupted" and not any(line.startswith("done") for line in out)
    assert 0 < len(read_log(log)) < STEPS and (folder / "checkpoint.safetensors").is_file()
    status, out, error = shell.run("interrupted")
    assert status == 0 and out[-1].startswith(f"done: {STEPS} steps"), error[-20:]
    a, b = load_file(folder / "lora.safetensors"), load_file(whole / "lora.safetensors")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_goes_on_with_the_inputs_it_had_alone(shell: Shell, whole: Path):
    """And with their texts in another encoding: they are the same."""
    (shell.folder / "others.txt").write_text("a cat\na cow\n")
    (shell.folder / "same.txt").write_bytes("a cat\r\na dog\r\n".encode("utf-16"))
    teacher = load_file(shell.folder / "my teacher.safetensors")
    for name, value in teacher.items():
        if name.startswith("model.diffusion_model."):
            value *= 1.01
    save_file(teacher, shell.folder / "other teacher.safetensors")
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    for changes, said in (
        ({"prompts": "others.txt"}, "other prompts"),
        ({"negative": "a cow"}, "another negative prompt"),
        ({"checkpoint": "other teacher.safetensors"}, "another model"),
    ):
        status, _, error = shell.run("the whole run", **changes)
        assert status == 2, error[-20:]
        assert error[-1].startswith(
            f"tcd: error: the whole run: holds a run with {said}; give it what it had"
        )
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
    status, out, error = shell.run("the whole run", prompts="same.txt")
    assert status == 0 and out[-1].startswith(f"done: {STEPS} steps"), error[-20:]


def test_wrong_texts_and_places_are_named_before_the_model_is_loaded(shell: Shell):
    (shell.folder / "windows.txt").write_bytes("a cat\r\nthe girl\u2019s hat".encode("cp1252"))
    for changes, said in (
        (
            {"prompts": "windows.txt"},
            "--prompts windows.txt, line 2: byte 16 (0x92) is not UTF-8; save it as",
        ),
        ({"out": "windows.txt"}, "is there already and is no folder"),
    ):
        status, _, error = shell.run(
            changes.pop("out", "refused"), **changes, checkpoint="missing.safetensors"
        )
        assert status == 2 and said in error[-1], error[-20:]


def test_a_file_that_holds_no_model_is_refused_by_name(shell: Shell):
    save_file({"weight": torch.ones(2)}, shell.folder / "no model.safetensors")
    (shell.folder / "no file.safetensors").write_bytes(b"a text, and not what it is called" * 9)
    for name, said in (
        ("no model.safetensors", "ComfyUI cannot load it"),
        ("no file.safetensors", "ComfyUI cannot load it"),
        ("missing.safetensors", "no such file"),
    ):
        status, _, error = shell.run("refused", checkpoint=name)
        last = "\n".join(error[-8:])
        assert status == 2 and "Traceback" not in last, last
        assert "tcd: error: --checkpoint" in last and name in last and said in last
        assert not (shell.folder / "refused").exists()


def test_a_flow_model_with_its_text_encoders_and_vae(shell: Shell, host: Any, tmp_path: Path):
    """Whose tensors, made in inference mode, what watches the flow model's cannot look at."""
    skip_below(8, "a stand-in of SD3.5 with two text encoders")
    name = "checkpoints/sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
    make(host, tmp_path, name)
    small = {"steps": 1, "batch": 1, "width": 64, "height": 64, "validate-every": 1}
    status, out, error = shell.run("flow", checkpoint=tmp_path / name, **small)
    assert status == 0 and out[-1].startswith("done: 1 steps"), error[-20:]
    assert load_file(shell.folder / "flow" / "lora.safetensors")
    assert (shell.folder / "flow" / "step-000001.png").stat().st_size > 100
