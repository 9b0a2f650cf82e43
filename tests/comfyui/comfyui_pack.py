"""The pack as a user has it in custom_nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = (".*", "tests", "docs", "benchmarks", "dist", "build", "*.egg-info")


def copy_pack(target: Path) -> Path:
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*NOT_SHIPPED, "__pycache__"))
    return target
