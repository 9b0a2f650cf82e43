"""Makes a host that is no installed package importable: a ComfyUI folder, for training without its server."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def add(folder: Path) -> None:
    """Put ComfyUI on the path, and on the CPU without an accelerator. ValueError if it is not there.

    To be called before anything of it is imported: it chooses its device when it is.
    """
    folder = folder.resolve()
    if not (folder / "comfy" / "cli_args.py").is_file():
        raise ValueError(f"--comfyui {folder}: no ComfyUI here; give the folder that holds its main.py")
    sys.path.insert(0, str(folder))
    try:
        args: Any = import_module("comfy.cli_args").args
    except ImportError as error:
        raise ValueError(
            f"--comfyui {folder}: it lacks {error.name}; run this command with the Python that runs ComfyUI"
        ) from error
    devices = (torch.cuda, torch.mps, torch.xpu)
    args.cpu = not any(device.is_available() for device in devices)
