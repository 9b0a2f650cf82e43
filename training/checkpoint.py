"""Files that are whole or absent: atomic safetensors, no pickles."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `path` so that a reader, or a resume after a crash, sees the old file or the new one and nothing between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, str(scratch), dict(metadata))
        with scratch.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise _explained(error, path, tensors) from error
    except SafetensorError as error:  # what a full disk looks like from inside the writer
        raise OSError(f"{path}: could not be written ({error}); free space or choose another folder") from error
    finally:
        scratch.unlink(missing_ok=True)


def _explained(error: OSError, path: Path, tensors: Mapping[str, Tensor]) -> OSError:
    need = sum(v.numel() * v.element_size() for v in tensors.values()) / 2**20
    return OSError(
        error.errno, f"{path}: could not be written ({error.strerror}); {need:.0f} MiB are needed: free space or choose "
        "another folder. What was there before is whole"
    )


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; a cut or foreign file is a ValueError that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or make it again") from error
