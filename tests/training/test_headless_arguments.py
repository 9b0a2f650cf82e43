"""`tcd train --comfyui`: what is wrong with the arguments is said before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfyui_tcd.cli import main


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
