"""Files that are whole or absent: atomic safetensors, no pickles."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SCRATCH = ".tmp"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `path` so that a reader, or a resume after a crash, sees the old file or the new one and nothing
    between.
    """
    path = Path(path)
    need = sum(v.numel() * v.element_size() for v in tensors.values()) / 2**20
    with writing(path, f"{need:.1f} MiB"), scratch_for(path) as scratch:
        save_file(_apart(tensors), str(scratch), dict(metadata))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, each with memory of its own: safetensors refuses views of one another."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = value.detach().contiguous().cpu()
        memory = value.untyped_storage().data_ptr()
        out[name] = value.clone() if memory in seen else value
        seen.add(memory)
    return out


def write_text(path: Path, text: str) -> None:
    """A text file, whole or as it was."""
    with writing(path), scratch_for(path) as scratch:
        scratch.write_text(text, "utf-8")


@contextmanager
def writing(path: Path, need: str = "space") -> Generator[None, None, None]:
    """Whatever stops the writing of `path`, a full disk above all, as an OSError that names the file and the
    way out.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # the second is how safetensors reports the first
        cause = getattr(error, "strerror", None) or str(error)
        raise OSError(
            getattr(error, "errno", None),
            f"{path}: could not be written ({cause}); free {need} or choose another folder. "
            "What was written before is whole",
        ) from error


@contextmanager
def scratch_for(path: Path) -> Generator[Path, None, None]:
    """A file beside `path` to write, which takes its place once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        yield scratch
        with scratch.open("r+b") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sweep(folder: Path, name: str = "") -> None:
    """Remove what a killed process left half written in `folder` (of the file `name` alone, if it is given),
    where no other process may be writing.
    """
    for left in folder.glob(f".{glob.escape(name)}*{SCRATCH}"):
        left.unlink(missing_ok=True)


def load_tensors(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; a cut or foreign file is a ValueError that names
    it.
    """
    with opened(path, device) as file:
        # Copies: a tensor on a mapped file keeps Windows from replacing or removing that file.
        tensors = {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a safetensors file's tensors and nothing else of it; errors as of `load_tensors`."""
    with opened(path) as file:
        return {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118


@contextmanager
def opened(path: Path, device: str | torch.device = "cpu") -> Generator[Any, None, None]:
    """Open a safetensors file; a cut or foreign one is a ValueError that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), "pt", device=str(device)) as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}); copy or make it again") from error


def check_folder(folder: Path, what: str) -> None:
    """Check that `folder` is one, or can be made. ValueError names the file that is in its way."""
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise ValueError(f"{what} {folder}: {place} is there already and is no folder; choose another name")
