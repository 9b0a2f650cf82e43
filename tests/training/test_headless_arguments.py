"""`tcd train --comfyui`: what is wrong with the arguments is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comfyui_tcd.cli import main
from comfyui_tcd.embedded.model import EmbeddedModel


def test_a_folder_without_comfyui_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "no host"
    folder.mkdir()
    arguments = ["train", "--comfyui", str(folder), "--checkpoint", "x.safetensors", "--out", str(tmp_path)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "no ComfyUI here" in said and str(folder) in said


def test_a_checkpoint_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--comfyui", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_8_bit_weights_are_comfyuis(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--embedded", "--weight-dtype", "fp8_e4m3fn", "--out", str(tmp_path)]) == 2
    assert "--weight-dtype needs --comfyui" in capsys.readouterr().err


def test_each_process_of_a_launcher_loads_its_model_onto_a_device_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the order of events: that of the devices cannot be had on one."""
    events: list[object] = []

    def load(*_: object) -> None:
        events.append("load")
        raise ValueError("that is all")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", events.append)
    monkeypatch.setattr(EmbeddedModel, "load", load)
    assert main(["train", "--embedded", "--out", str(tmp_path / "run")]) == 2
    assert events == [1, "load"]
