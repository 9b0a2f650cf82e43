"""Adapters that peft and LyCORIS make: the host's weights with them are those that their makers merge."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from lora_arithmetic import bias, merged
from lora_files import write
from lora_makers import Made, configs, made
from torch import Tensor

from comfyui_tcd.training.formats import convert, open_lora
from comfyui_tcd.training.unet_layers import SD15, all_layers

sys.path.append(str(Path(__file__).parents[1] / "lora"))
from test_oracles import network

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),  # peft, of the biases that it writes itself
]
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


ROWS = [row for row in all_layers(SD15) if row.diffusers.startswith("down_blocks.0.")]


def lycoris(kind: str, shape: torch.Size) -> dict[str, Tensor]:
    """Tensors of a layer as LyCORIS names them, for a weight of `shape`."""
    out, inner, rank, kernel = shape[0], shape[1], 2, list(shape[2:])
    ones, r = [1] * len(kernel), torch.randn

    def factors(name: str, rows: int, columns: int, tucker: bool = False) -> dict[str, Tensor]:
        if tucker and kernel:
            return {f"{name}_a": r(rank, rows), f"{name}_b": r(rank, columns)}
        return {f"{name}_a": r(rows, rank), f"{name}_b": r(rank, columns * torch.Size(kernel).numel())}

    core = r(rank, rank, *kernel)
    plain = {"lora_up.weight": r(out, rank, *ones), "lora_down.weight": r(rank, inner, *kernel)}
    scaled = {"alpha": torch.tensor(3.0)}
    made = {
        "LoCon": plain,
        "LoCon, tucker": {**plain, "lora_down.weight": r(rank, inner, *ones), "lora_mid.weight": core}
        if kernel
        else plain,
        "LoHa": factors("hada_w1", out, inner) | factors("hada_w2", out, inner),
        "LoHa, tucker": factors("hada_w1", out, inner, True)
        | factors("hada_w2", out, inner, True)
        | ({"hada_t1": core, "hada_t2": r(core.shape)} if kernel else {}),
        "LoKr": {"lokr_w1": r(4, 4)} | factors("lokr_w2", out // 4, inner // 4),
        "LoKr, tucker": {"lokr_w1": r(4, 4)}
        | factors("lokr_w2", out // 4, inner // 4, True)
        | ({"lokr_t2": core} if kernel else {}),
        "LoKr, both": factors("lokr_w2", out // 4, inner // 4)
        | {"lokr_w1_a": r(4, rank), "lokr_w1_b": r(rank, 4)},
        "LoKr, full": {"lokr_w1": r(4, 4), "lokr_w2": r(out // 4, inner // 4, *kernel)},
        "full": {"diff": r(shape), "diff_b": r(out)},
    }[kind]
    return made | scaled


@pytest.mark.parametrize("dora", ["", "of outputs", "of inputs"])
@pytest.mark.parametrize(
    "kind",
    [*("LoCon", "LoHa", "LoKr"), "LoCon, tucker", "LoHa, tucker", "LoKr, tucker", "LoKr, both", "LoKr, full"],
)
def test_lycoris(inside: Inside, loras: Path, kind: str, dora: str):
    check_lycoris(inside, loras, kind, dora)


def test_lycoris_full_differences_and_norms(inside: Inside, loras: Path):
    check_lycoris(inside, loras, "full", "")


def check_lycoris(inside: Inside, loras: Path, kind: str, dora: str) -> None:
    """Against LyCORIS' documented arithmetic, and the same after a conversion."""
    torch.manual_seed(1)
    before = at_host({k: torch.randn(t.shape) for k, t in network(BASE).state_dict().items()})
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for row in ROWS:
        key = f"diffusion_model.{row.ldm}"
        shape = before[f"{key}.weight"].shape
        if len(shape) > 1:
            parts = lycoris(kind, shape)
            if dora:
                size = (shape[0], 1) if dora == "of outputs" else (1, shape[1])
                parts["dora_scale"] = torch.rand(*size, *[1] * (len(shape) - 2)) + 0.5
        else:
            parts = {"w_norm": torch.randn(shape), "b_norm": torch.randn(shape)}
        base = "lora_unet_" + row.diffusers.replace(".", "_")
        tensors |= {f"{base}.{end}": t for end, t in parts.items()}
        expected[f"{key}.weight"] = merged(parts, before[f"{key}.weight"])
        if {"b_norm", "diff_b"} & set(parts) and f"{key}.bias" in before:
            expected[f"{key}.bias"] = bias(parts, before[f"{key}.bias"])
    file = write(loras / "lycoris.safetensors", tensors)
    write(loras / "converted.safetensors", convert(open_lora(file), "kohya")[0])
    for name in ("lycoris.safetensors", "converted.safetensors"):
        found = inside("merged", base=BASE, name=name, weights=before)
        assert set(found) == set(expected)
        for key, weight in found.items():
            change = (expected[key] - before[key]).norm()
            assert (weight - expected[key]).norm() <= 1e-3 * change, (name, key)
