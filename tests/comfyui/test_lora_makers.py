"""Adapters that peft and LyCORIS make: the host's weights with them are those that their makers merge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from lora_files import write
from lora_makers import Made, configs, made
from torch import Tensor

from comfyui_tcd.training.formats import convert, open_lora
from comfyui_tcd.training.unet_layers import SD15, all_layers

sys.path.append(str(Path(__file__).parents[1] / "lora"))
from test_oracles import network

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
BASE = "SD 1.5"
LDM = {row.diffusers: row.ldm for row in all_layers(SD15)}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with start(host.path, host.python, pack, log, "lora_inside.py", loras) as call:
        yield call


def at_host(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the host's keys instead of diffusers'."""
    found: dict[str, Tensor] = {}
    for key, weight in weights.items():
        name, _, kind = key.rpartition(".")
        if name in LDM:
            found[f"diffusion_model.{LDM[name]}.{kind}"] = weight
    return found


def check(found: dict[str, Tensor], maker: Made) -> None:
    before, after = at_host(maker.before), at_host(maker.after)
    assert set(found) == {k for k in before if not torch.equal(before[k], after[k])}
    for key, weight in found.items():
        change = (after[key] - before[key]).norm()
        assert (weight - after[key]).norm() <= 1e-3 * change, key


@pytest.mark.parametrize("kind", list(configs()))
def test_peft(inside: Inside, loras: Path, kind: str):
    maker = made(lambda: network(BASE), configs()[kind], loras / kind)
    name = str(maker.file.relative_to(loras))
    check(inside("merged", base=BASE, name=name, weights=at_host(maker.before)), maker)
    write(loras / "kohya" / f"{kind}.safetensors", convert(open_lora(maker.file), "kohya")[0])
    name = f"kohya/{kind}.safetensors"
    check(inside("merged", base=BASE, name=name, weights=at_host(maker.before)), maker)
    theirs = inside("merged", base=BASE, name=name, weights=at_host(maker.before), core=True)
    if kind != "DoRA":  # which the host divides by another norm
        check(theirs, maker)
