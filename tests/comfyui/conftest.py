"""A worker in ComfyUI's interpreter, started once: `inside("function of comfyui_inside", **arguments)`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import pytest
from comfyui_pack import copy_pack
from comfyui_worker import receive, send


class Host(Protocol):
    path: Path
    python: Path


Inside = Callable[..., Any]


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_pack(tmp_path_factory.mktemp("custom nodes") / "ComfyUI TCD-pack v1.0")


@pytest.fixture(scope="session")
def inside(host: Host, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    worker = Path(__file__).with_name("comfyui_worker.py")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [host.python, worker, host.path, pack],
            cwd=host.path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdin and process.stdout
        answers = process.stdout

        def answer() -> Any:
            message = receive(answers)
            assert message is not None, f"the worker died:\n{log.read_text()[-3000:]}"
            result, error = message
            if error:
                raise RuntimeError(error)
            return result

        def call(function: str, **arguments: Any) -> Any:
            send(process.stdin, [function, arguments])  # pyright: ignore[reportArgumentType]
            return answer()

        assert answer() is True, f"ComfyUI could not load the pack:\n{log.read_text()[-3000:]}"
        yield call
        process.stdin.close()
