"""What the ComfyUI under test has, read from its source: tests of what it lacks are not generated."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HOST: pytest.StashKey[Path | None] = pytest.StashKey()
"""The checkout of the tests marked `comfyui`, in the stash of pytest's config; None without one."""


def model_classes(config: pytest.Config, names: list[str]) -> list[str]:
    """Return those of `names` that are classes of the host's models; all of them without a host."""
    host = config.stash[HOST]
    if host is None:
        return names
    text = (host / "comfy/supported_models.py").read_text("utf-8")
    classes = set(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
    return [name for name in names if name in classes]


def has_fused_operators(config: pytest.Config) -> bool:
    """Say whether the host computes with the package comfy_kitchen; True without a host."""
    host = config.stash[HOST]
    return host is None or (host / "comfy/quant_ops.py").is_file()
