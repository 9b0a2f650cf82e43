"""The base model's name for LoRAs of every model of ComfyUI, with every naming of keys that it takes."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from functools import cache
from typing import Any

import pytest
import torch
from base_models_inside import MODELS
from make_base_models import DIFFUSERS, TABLE, Keys, of_diffusers, of_host, rows

from comfyui_tcd.training.lora_bases import base_models, base_names, family
from comfyui_tcd.training.lora_layer import Layer

pytestmark = pytest.mark.comfyui
SUBSETS = {
    "all": r"",
    "attention": r"attn|attention|qkv|to_[qkv]\b",
    "mlp": r"mlp|[._]ff|feed_forward|linear[12]",
    "double blocks": r"double|joint|(?<!single_)transformer_blocks|refiner",
    "first blocks": r"(blocks|layers)[._][0-3][._]",
}
STYLE = re.compile(
    r"^((base_model\.model|diffusion_model|transformer|unet)\.|lora_\w*?unet_|lycoris_|lora_transformer_)*"
)
OLDER = {"Lumina2"}
"""Whose sizes an older ComfyUI reads from another setting."""


@pytest.fixture(scope="module")
def corpus(host: Any) -> dict[str, Keys]:
    found = of_host(host.path, host.python)
    assert {"Flux", "SD3 medium", "Wan 2.1 or 2.2 14B", "HunyuanVideo", "HiDream"} <= set(found)
    return found if len(found) == len(MODELS) else {n: keys for n, keys in found.items() if n not in OLDER}


def layer(key: str, shape: list[int]) -> Layer:
    factors = torch.empty(1, math.prod(shape[1:]), device="meta"), torch.empty(shape[0], 1, device="meta")
    roles: dict[str, torch.Tensor] = dict(zip(["down", "up"], factors, strict=True))
    return Layer("unet", key, False, "diffusers", key, roles, None, tuple(f"{key}.{role}" for role in roles))


@cache
def diffusers_layers(name: str) -> dict[str, list[int]]:
    found = of_diffusers(name) if name in DIFFUSERS else {}
    return {key.replace(".", "_"): shape for key, shape in found.items()}


def has(name: str, keys: Keys, key: str, shape: list[int]) -> bool:
    """Whether a base model has a layer, by ComfyUI's names or by diffusers'."""
    if key in keys:
        return keys[key][0] == shape
    return diffusers_layers(name).get(STYLE.sub("", key).replace(".", "_")) == shape


def test_the_table_is_what_the_host_s_classes_have(corpus: dict[str, Keys]):
    made, table = rows(corpus), json.loads(TABLE.read_text("utf-8"))
    if len(corpus) == len(MODELS):
        assert made == table, (
            "run tests/comfyui/make_base_models.py with this ComfyUI and commit what it writes"
        )
    for name in corpus:
        there = table[name]["layers"]
        assert {key: row for key, row in made[name]["layers"].items() if there.get(key) != row} == {}, name


@pytest.mark.parametrize("subset", SUBSETS)
def test_loras_of_every_model_are_named_rightly(corpus: dict[str, Keys], subset: str):
    """The right model is named, and beside it none but those that have the very same layers."""
    named = 0
    for name, keys in corpus.items():
        styles: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            if re.search(SUBSETS[subset], key):
                styles[STYLE.match(key)[0]].append(key)  # pyright: ignore[reportOptionalSubscript]
        for style, chosen in styles.items():
            if len(chosen) < 4:
                continue
            found = base_names([layer(key, keys[key][0]) for key in chosen], {})
            if not found:
                assert subset == "first blocks", f"{name}, {style}: unknown"
                continue
            named += 1
            assert {name, family(name)} & set(found), f"{name}, {style}: {found}"
            for other in found:
                kinds = [k for k in base_models() if other in (k, family(k)) and k in corpus]
                alike = [k for k in kinds if all(has(k, corpus[k], key, keys[key][0]) for key in chosen)]
                assert alike or not kinds, f"{name}, {style}: not {other}, which has other layers"
    assert named > 2 * len(corpus) or subset != "all"
