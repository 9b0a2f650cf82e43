"""For the benchmarks: a ComfyUI with the pack in it, as the tests have it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "comfyui"))

from comfyui_pack import copy_pack  # noqa: E402
from comfyui_worker import start  # noqa: E402


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, default=Path.home() / "ComfyUI", help="the checkout")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="its interpreter")
    return parser


@contextmanager
def packed() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield copy_pack(Path(folder) / "ComfyUI-TCD")


@contextmanager
def worker(options: argparse.Namespace) -> Generator[Callable[..., Any]]:
    with packed() as pack:
        log = pack.parent / "log.txt"
        with start(options.comfyui.resolve(), options.python, pack, log) as inside:
            yield inside
