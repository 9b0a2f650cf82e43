"""What a file is that should be a LoRA: said before anything reads it, and when it turns out to be none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from .lora_bases import whole_model

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


_MODEL = "it is a diffusion model; put it into models/diffusion_models, for Load Diffusion Model"
# What a file may be by its keys, and what takes it. The first row that fits counts.
_CONTENTS = (
    (
        r"\.on_input$|\bia3_",
        "it is an IA3 adapter, which ComfyUI does not have; merge it where it was trained and save the model",
    ),
    (
        r"\.processor\.(qkv|proj)_lora\d*\.",
        "it is a Flux LoRA with XLabs' keys; convert it with diffusers: load_lora_weights, save_lora_weights",
    ),
    (
        r"\b(boft_R|oft_R|vera_lambda|randlora)",
        "it is a {kind} adapter in peft's form, which ComfyUI does not read; merge it with peft's "
        "merge_and_unload and save the model",
    ),
    (
        r"^bundle_emb\.|^(emb_params|string_to_param|clip_[lgh]|t5xxl|llama)$",
        "it is a textual inversion embedding; put it into models/embeddings and write embedding:NAME into a "
        "prompt",
    ),
    (
        r"^model\.diffusion_model\.",
        "it is a whole checkpoint; put it into models/checkpoints, for Load Checkpoint",
    ),
    (
        r"^(control_model|controlnet|zero_convs|input_hint_block)",
        "it is a ControlNet; put it into models/controlnet",
    ),
    (r"^(ip_adapter|image_proj)", "it is an IP-Adapter; put it into models/ipadapter"),
    (r"^(first_stage_model\.|decoder\.)", "it is a VAE; put it into models/vae"),
    (
        r"^(320|640|768|1024|1280)\.\d+\.",
        "it is a hypernetwork; put it into models/hypernetworks, for Load Hypernetwork",
    ),
    (
        r"^(text_model|transformer\.text_model|cond_stage_model)\.",
        "it is a text encoder; put it into models/text_encoders",
    ),
    (r"^(input_blocks|down_blocks|double_blocks|joint_blocks|diffusion_model)[._]", _MODEL),
)


def what_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Say what a safetensors file without LoRA keys is, by its tensors, and what to do with it."""
    if not tensors:
        return "it holds no tensors at all"
    name = whole_model({key: tensor.shape for key, tensor in tensors.items()})
    for pattern, what in _CONTENTS:
        found = next((m for key in tensors if (m := re.search(pattern, key))), None)
        if found and not (name and what == _MODEL):
            return what.format(kind=found[0].split("_")[0].upper())
    if name:
        return f"{_MODEL} ({name})"
    return f"it holds {len(tensors)} tensors such as {next(iter(tensors))!r}"
