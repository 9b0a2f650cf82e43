"""Where training keeps its files: run folders and LoRAs, all below ComfyUI's output folder."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

RESERVED = r"(?!(?:CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9]) *(?:\.|$))"
"""Not what Windows takes for a device, whatever comes after a dot."""
NAME = re.compile(RESERVED + r"[A-Z0-9](?:[A-Z0-9 ._-]{0,62}[A-Z0-9_-])?", re.IGNORECASE | re.ASCII)
"""A plain file name on every system: a letter or digit first, no dot or space last, no device of Windows."""
RUNS, DATASETS = "tcd_training", "tcd_datasets"


def run_folder(name: str) -> Path:
    """Find the folder of a run in the output folder. ValueError for a name that is no plain file name."""
    check_name(name, "run_name")
    return Path(folder_paths.get_output_directory()) / RUNS / name


def check_name(name: str, what: str) -> None:
    """Check that files can be called so on every system. ValueError names the input `what`."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: use up to 64 letters, digits, spaces, dots, dashes and underscores, a "
            "letter or digit first and no dot or space last; not CON, PRN, AUX, NUL, COM1 or LPT1, which "
            "Windows keeps for devices"
        )


def loras_folder() -> Path:
    """Of LoRAs that were made here, which ComfyUI lists with the others."""
    return Path(folder_paths.get_output_directory()) / "loras"


def inside_input(name: str, what: str) -> Path:
    """A file or folder below the input folder. ValueError, naming the input `what`, for any other place."""
    root = Path(folder_paths.get_input_directory()).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise ValueError(f"{what} {name!r}: there is no such file or folder in ComfyUI's input folder")
    return path
