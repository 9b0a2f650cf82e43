"""Whatever the host's own LoRA loader reads, TCD_LoraLoader reads alike: patch by patch, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_worker import start

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[..., Any]]:
    folder = tmp_path_factory.mktemp("worker")
    with start(host.path, host.python, pack, folder / "log.txt", "lora_inside.py", folder) as call:
        yield call


def test_every_key_and_adapter_of_the_host(inside: Callable[..., Any]):
    found = inside("corpus", which="corpus")
    assert set(found["host"]) <= set(found["here"]), "the host reads an adapter that lora_corpus.py lacks"
    assert len(found["files"]) > 20 and min(found["files"].values()) >= 20
    assert not found["wrong"], (len(found["wrong"]), "\n".join(found["wrong"][:40]))


def test_layouts_that_the_host_converts_first(inside: Callable[..., Any]):
    found = inside("corpus", which="converted")
    assert found["files"] == 3 and not found["wrong"]


def test_shapes_are_those_that_the_layer_computes_with(inside: Callable[..., Any]):
    """Not those in which mxfp8 and nvfp4 store them, with padded or packed rows."""
    found = inside("corpus", which="quantized")
    for name in {"mxfp8", "nvfp4", "float8_e4m3fn"} & set(found["formats"]):
        alike, wider = found[name]
        assert alike is None and "is for [64, 32], the weight is [64, 16]" in wider, name


def test_dora_of_the_parts_of_a_fused_weight(inside: Callable[..., Any]):
    found = inside("corpus", which="dora_of_parts")
    expected = found["before"].clone()
    assert len(found["parts"]) == 3
    for first, parts in found["parts"].items():
        magnitude, up, down = (parts[f".{k}"] for k in ("dora_scale", "lora_up.weight", "lora_down.weight"))
        rows = slice(first, first + len(magnitude))
        whole = expected[rows] + up @ down
        whole = magnitude * whole / whole.norm(dim=1, keepdim=True)
        expected[rows] += 0.5 * (whole - expected[rows])  # at strength 0.5
    change = (expected - found["before"]).norm()
    assert change > 1 and (found["after"] - expected).norm() <= 1e-4 * change
