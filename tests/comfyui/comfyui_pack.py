"""The pack as a user has it in custom_nodes, and ComfyUI_IPAdapter_plus beside it where that is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = (".*", "tests", "docs", "benchmarks", "dist", "build", "*.egg-info")


def _left_out(folder: str, names: list[str]) -> set[str]:
    patterns = NOT_SHIPPED if Path(folder) == ROOT else ()  # web/docs is shipped
    return shutil.ignore_patterns(*patterns, "__pycache__")(folder, names)


def copy_pack(target: Path) -> Path:
    shutil.copytree(ROOT, target, ignore=_left_out)
    return target


NO_IP_ADAPTER = "ComfyUI_IPAdapter_plus is not installed; set IPADAPTER_PLUS to its folder"


def ip_adapter_plus(host: Any) -> Path | None:
    """In the folder IPADAPTER_PLUS, or else in the host's custom_nodes."""
    given = os.environ.get("IPADAPTER_PLUS")
    places = [Path(given)] if given else (host.path / "custom_nodes").glob("*[iI][pP][aA]dapter*[pP]lus*")
    return next((path for path in places if (path / "IPAdapterPlus.py").is_file()), None)


def copy_ip_adapter(host: Any, custom_nodes: Path) -> None:
    """AssertionError if it is not found."""
    found = ip_adapter_plus(host)
    assert found, NO_IP_ADAPTER
    skip = shutil.ignore_patterns(".git", "__pycache__", "models", "examples")
    shutil.copytree(found, custom_nodes / "comfyui_ipadapter_plus", ignore=skip)
