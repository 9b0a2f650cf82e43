"""A worker in ComfyUI's interpreter, started once: `inside("function of comfyui_inside", **arguments)`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import pytest
from comfyui_pack import copy_pack
from comfyui_worker import start
from distill_standins import make


class Host(Protocol):
    path: Path
    python: Path


Inside = Callable[..., Any]


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_pack(tmp_path_factory.mktemp("custom nodes") / "ComfyUI TCD-pack v1.0")


@pytest.fixture(scope="session")
def inside(host: Host, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    with start(host.path, host.python, pack, tmp_path_factory.mktemp("worker") / "log.txt") as call:
        yield call


@pytest.fixture(scope="session")
def standins(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder of small files to distil; see distill_standins.py."""
    folder = tmp_path_factory.mktemp("models")
    make(host, folder)
    return folder
