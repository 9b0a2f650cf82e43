"""What a file is that should be a LoRA: said before anything reads it, and when it turns out to be none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

LONGEST_HEADER = 100_000_000  # that safetensors allows
_MAGIC = (
    (b"PK\x03\x04", "a zip archive, as PyTorch's pickles are (.pt, .ckpt, .bin)"),
    (b"\x80", "a Python pickle (.pt, .ckpt, .bin)"),
    (b"version https://git-lfs", "a git-lfs pointer: the weights themselves were not downloaded"),
    (b"GGUF", "a GGUF model"),
    (b"<", "a web page, saved instead of the weights"),
    (b"{", "a JSON text"),
)


def check_content(path: Path) -> None:
    """Refuse what is no safetensors file before anything reads it as one, and a cut one with its sizes."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: a folder, not a LoRA file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        length = int.from_bytes(head[:8], "little")
        # A safetensors file starts with the length of its header, then the header's "{".
        if len(head) < 9 or head[8:9] != b"{" or length > LONGEST_HEADER:
            what = next((what for magic, what in _MAGIC if head.startswith(magic)), "no safetensors file")
            raise ValueError(f"{path}: {what if size else 'empty'}; only safetensors files are read")
        if 8 + length > size:
            raise ValueError(f"{path}: cut within its header ({size} bytes); copy or download it again")
        file.seek(8)
        header = file.read(length)
    try:
        entries = cast("dict[str, Any]", json.loads(header))
        end = max((v["data_offsets"][1] for k, v in entries.items() if k != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: a safetensors file with a damaged header; download it again") from error
    if 8 + length + end > size:
        need, have = (8 + length + end) / 2**20, size / 2**20
        raise ValueError(f"{path}: cut, {have:.1f} of {need:.1f} MiB; copy or download it again")


_CONTENTS = (
    (r"^model\.diffusion_model\.", "it is a whole checkpoint, for the checkpoint loader"),
    (r"^(control_model|controlnet|zero_convs|input_hint_block)", "it is a ControlNet"),
    (r"^(ip_adapter|image_proj)", "it is an IP-Adapter"),
    (r"^(first_stage_model\.|decoder\.)", "it is a VAE"),
    (
        r"^(input_blocks|down_blocks|double_blocks|joint_blocks|diffusion_model)[._]",
        "it is a diffusion model",
    ),
    (r"^(text_model|transformer\.text_model|cond_stage_model)\.", "it is a text encoder"),
    (r"^(emb_params|string_to_param|clip_[lg]$)", "it is a textual inversion embedding"),
)


def what_tensors(keys: Iterable[str]) -> str:
    """What a safetensors file without LoRA keys is, by the names of its tensors."""
    tensors = list(keys)
    if not tensors:
        return "it holds no tensors at all"
    for pattern, what in _CONTENTS:
        if any(re.search(pattern, key) for key in tensors):
            return what
    return f"it holds {len(tensors)} tensors such as {tensors[0]!r}"
