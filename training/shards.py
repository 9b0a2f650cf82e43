"""Files of a data set: latents of real pictures with their encoded captions, for `pairs.CachedLatents`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .backbone import Cond, concat, digest, size
from .checkpoint import load_tensors, save_tensors, shapes_of

COND = "cond."
SHOWN = 8
"""Tensors that a message lists."""


def shards_in(place: Path) -> list[Path]:
    """List the shards of a folder, or of one file. ValueError where there is none, and for a file that is
    none: to pass over it might be to train on less than was meant. What begins with a dot is the system's.
    """
    if not place.exists():
        raise ValueError(f"{place}: no such folder or file")
    found = sorted(p for p in place.glob("*.safetensors") if p.name[0] != ".") if place.is_dir() else [place]
    if not found:
        raise ValueError(
            f"{place}: holds no .safetensors file; leave the data out to train from prompts alone"
        )
    check_shards(found)
    return found


def check_shards(shards: Sequence[Path]) -> None:
    """Check the names and shapes of all tensors, by the files' headers. ValueError names the file that is no
    shard, or none of this data set.
    """
    if not shards:
        raise ValueError(
            "the data set has no shards; make one with `write_shard`, or leave it out to train data-free"
        )
    first: dict[str, tuple[int, ...]] = {}
    for path in shards:
        shapes = shapes_of(path)
        lengths = {shape[:1] for shape in shapes.values()}
        conds = [name for name in shapes if name.startswith(COND)]
        if "latents" not in shapes or not conds or len(lengths) != 1 or not all(map(any, lengths)):
            listed = ", ".join(f"{name} {list(shape)}" for name, shape in [*shapes.items()][:SHOWN])
            raise ValueError(
                f"{path}: a shard needs `latents` and `{COND}*` of one length above 0, this has {listed}; "
                "move it to another folder"
            )
        rows = {name: shape[1:] for name, shape in shapes.items()}
        first = first or rows
        if rows != first:
            raise ValueError(f"{path}: holds {rows}, but {shards[0]} holds {first}; encode them alike")


def read_shards(shards: Sequence[Path]) -> dict[str, Tensor]:
    """Read a data set as one shard: `latents [N, ...]` and `cond.* [N, ...]`."""
    return concat([load_tensors(path)[0] for path in shards])


def shard_of(latents: Tensor, cond: Cond) -> dict[str, Tensor]:
    """Name the tensors of a shard: `latents [B, ...]`, as the model takes them, and encoded captions."""
    return {"latents": latents} | {COND + k: v for k, v in cond.items()}


def write_shard(path: Path, latents: Tensor, cond: Cond) -> None:
    """Write one shard of a data set: `latents [B, ...]` and encoded captions, batch first. A file that holds
    the same already is left alone.
    """
    if len(latents) != size(cond):
        raise ValueError(f"{path}: {len(latents)} latents but {size(cond)} captions")
    tensors = shard_of(latents, cond)
    if not path.is_file() or digest(load_tensors(path)[0]) != digest(tensors):
        save_tensors(path, tensors, {"count": str(len(latents))})
