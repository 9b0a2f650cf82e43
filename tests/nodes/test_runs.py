"""Names of runs and LoRAs: files on every system."""

from __future__ import annotations

import ntpath
import sys
from importlib import import_module
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def runs(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder_paths = ModuleType("folder_paths")
    folder_paths.get_output_directory = lambda: str(tmp_path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths)
    monkeypatch.delitem(sys.modules, "comfyui_tcd.nodes.runs", raising=False)
    return import_module("comfyui_tcd.nodes.runs")


def reserved(name: str) -> bool:
    """Whether Windows keeps the name, as Python's own list says."""
    known = getattr(ntpath, "isreserved", None)  # since 3.13
    return known(name) if known else PureWindowsPath(name).is_reserved()


DEVICES = ["CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in range(1, 10))]
FORMS = ["{}", "{}.txt", "{}.tar.gz", "{} .a", "{}-1", "{}1x", "x{}", "{} 2", "{}s.b", "a.{}", "a {}"]


@pytest.mark.parametrize("form", FORMS)
def test_what_windows_keeps_for_devices_is_refused(runs: Any, tmp_path: Path, form: str):
    for device in DEVICES:
        for name in (form.format(device), form.format(device.lower()), form.format(device.title())):
            if reserved(name):
                with pytest.raises(ValueError, match="which Windows keeps for devices") as error:
                    runs.run_folder(name)
                assert str(error.value).startswith(f"run_name {name!r}: ")
            else:
                assert runs.run_folder(name) == tmp_path / "tcd_training" / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a.",
        "a ",
        " a",
        ".a",
        "a/b",
        "a\\b",
        "C:",
        *(f"a{c}b" for c in '<>:"|?*\n\t\0'),
        "a" * 65,
    ],
)
def test_names_that_some_system_cannot_have_are_refused(runs: Any, name: str):
    with pytest.raises(ValueError, match="use up to 64 letters, digits"):
        runs.check_name(name, "name")
