"""For the tests with models of full size: is there room on this machine?"""

from __future__ import annotations

import math
from pathlib import Path

import pytest


def free_memory() -> float:
    """GB; infinite where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return math.inf
    return int(lines["MemAvailable"].split()[0]) / 1e6


def skip_below(needed: float, what: str) -> None:
    """`needed` in GB."""
    free = free_memory()
    if free < needed:
        pytest.skip(f"{what} wants {needed:g} GB of memory, {free:.1f} are free")
