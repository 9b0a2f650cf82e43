"""Writes training/base_models.json, the layers of base models by which LoRA files are told apart:

    python tests/comfyui/make_base_models.py COMFYUI [COMFYUI'S PYTHON]

From ComfyUI's classes (base_models_inside.py), and from diffusers' where they name layers otherwise. Only
what a LoRA can adapt counts: matrices and convolutions.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE)] * (str(HERE) not in sys.path)

from base_models_inside import MODELS  # noqa: E402

from comfyui_tcd.training.lora_bases import pattern  # noqa: E402

Keys = Mapping[str, tuple[list[int], str]]
TABLE = HERE.parents[1] / "training" / "base_models.json"

# Base model: (class of diffusers, settings other than its defaults). Its layers come beside ComfyUI's.
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Wan 2.1 1.3B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "Wan 2.1 or 2.2 14B": ("WanTransformer3DModel", {}),
    "Wan 2.1 14B image to video": (
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "Wan 2.2 5B": (
        "WanTransformer3DModel",
        {
            "num_attention_heads": 24,
            "ffn_dim": 14336,
            "num_layers": 30,
            "in_channels": 48,
            "out_channels": 48,
        },
    ),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "HunyuanVideo 1.5": ("HunyuanVideo15Transformer3DModel", {}),
    "HunyuanImage 2.1": ("HunyuanImageTransformer2DModel", {}),
    "CogVideoX 2B": ("CogVideoXTransformer3DModel", {}),
    "CogVideoX 5B": ("CogVideoXTransformer3DModel", {"num_attention_heads": 48, "num_layers": 42}),
    "Flux.2 dev": ("Flux2Transformer2DModel", {}),
    "Flux.2 Klein 4B": (
        "Flux2Transformer2DModel",
        {"num_attention_heads": 24, "num_layers": 5, "num_single_layers": 20, "joint_attention_dim": 7680},
    ),
    "Flux.2 Klein 9B": (
        "Flux2Transformer2DModel",
        {"num_attention_heads": 32, "num_layers": 8, "num_single_layers": 24, "joint_attention_dim": 12288},
    ),
    "LongCat-Image": ("LongCatImageTransformer2DModel", {"num_layers": 10, "num_single_layers": 20}),
    "Ovis-Image": ("OvisImageTransformer2DModel", {}),
    "Cosmos 7B": ("CosmosTransformer3DModel", {}),
    "Krea 2": ("Krea2Transformer2DModel", {}),
    "Lumina2": ("Lumina2Transformer2DModel", {}),
    "LTX-2": ("LTX2VideoTransformer3DModel", {}),
    "Mochi": ("MochiTransformer3DModel", {}),
    "Ideogram 4": ("Ideogram4Transformer2DModel", {}),
    "JoyImage": ("JoyImageEditTransformer3DModel", {}),
    "Sana 1.6B": ("SanaTransformer2DModel", {}),
    "CogView4": (
        "CogView4Transformer2DModel",
        {"num_attention_heads": 32, "attention_head_dim": 128, "num_layers": 28},
    ),
    "Qwen-Image 2.1": ("QwenImage21Transformer2DModel", {}),
}
FAMILIES = {"Sana 1.6B": "Sana", "Qwen-Image 2.1": "Qwen-Image"}
"""Of those that ComfyUI does not have, where it is not the name."""


def of_host(comfyui: Path, python: Path) -> dict[str, Keys]:
    """The keys of every base model that this ComfyUI has."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "keys.json"
        command = [python, HERE / "base_models_inside.py", comfyui, out]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(out.read_text("utf-8"))


def of_diffusers(name: str) -> dict[str, list[int]]:
    """The shapes of a base model's layers by diffusers' names."""
    import diffusers
    import torch
    from torch import nn

    kind, settings = DIFFUSERS[name]
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**settings)
    weighted = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {n: list(m.weight.shape) for n, m in network.named_modules() if isinstance(m, weighted)}


def table(shapes: Iterable[tuple[str, list[int]]]) -> dict[str, list[Any]]:
    """{pattern of a layer: [how many blocks have it, its shapes as matrices ...]}"""
    found: dict[str, tuple[int, set[tuple[int, int]]]] = {}
    for key, shape in shapes:
        name, at = pattern(key)
        blocks, matrices = found.get(name, (0, set[tuple[int, int]]()))
        found[name] = max(blocks, at + 1), {*matrices, (shape[0], math.prod(shape[1:]))}
    return {name: [n, *sorted(map(list, matrices))] for name, (n, matrices) in sorted(found.items())}


def rows(host: Mapping[str, Keys]) -> dict[str, Any]:
    """What base_models.json holds."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys([*MODELS, *DIFFUSERS]):
        shapes = [(key, shape) for key, (shape, _) in host.get(name, {}).items()]
        shapes += of_diffusers(name).items() if name in DIFFUSERS else ()
        family = MODELS[name][0] if name in MODELS else FAMILIES.get(name, name)
        made[name] = {"family": family, "layers": table(shapes)}
    return made


def text(made: Mapping[str, Any]) -> str:
    """As JSON with a line per layer."""

    def layers(of: Mapping[str, Any]) -> str:
        return ",\n".join(f"   {json.dumps(key)}: {json.dumps(value)}" for key, value in of.items())

    models = (
        f' {json.dumps(name)}: {{\n  "family": {json.dumps(row["family"])},\n  "layers": {{\n'
        f"{layers(row['layers'])}\n  }}\n }}"
        for name, row in made.items()
    )
    return "{\n" + ",\n".join(models) + "\n}\n"


if __name__ == "__main__":
    comfyui = Path(sys.argv[1]).resolve()
    python = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(sys.executable)
    TABLE.write_text(text(rows(of_host(comfyui, python))), "utf-8")
