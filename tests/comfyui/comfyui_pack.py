"""The pack as a user has it in custom_nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = (".*", "tests", "docs", "benchmarks", "dist", "build", "*.egg-info")


def _left_out(folder: str, names: list[str]) -> set[str]:
    patterns = NOT_SHIPPED if Path(folder) == ROOT else ()  # web/docs is shipped
    return shutil.ignore_patterns(*patterns, "__pycache__")(folder, names)


def copy_pack(target: Path) -> Path:
    shutil.copytree(ROOT, target, ignore=_left_out)
    return target
