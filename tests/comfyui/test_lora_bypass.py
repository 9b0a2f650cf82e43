"""TCD LoRA Loader with bypass: the same result as merged, without a change of any weight."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from lora_files import adapters, kohya, write
from torch import Tensor

from comfyui_tcd.training.splus import PREFIX
from comfyui_tcd.training.unet_layers import SD15, SDXL

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
SMALL = {
    "SD 1.5": replace(SD15, width=32, context=24),
    "SDXL": replace(SDXL, width=32, context=24, vector=48),
}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for base, unet in SMALL.items():
        name = base.replace(" ", "")
        write(folder / f"{name}.safetensors", kohya(adapters(unet, rank=4)))
        attention = {key: -2 * t for key, t in kohya(adapters(unet, rank=2, only=r"attn|conv1")).items()}
        write(
            folder / f"{name} other.safetensors",
            {k: abs(t) if t.ndim == 0 else t for k, t in attention.items()},
        )
    write(folder / "Flux.safetensors", flux())
    return folder


def flux() -> dict[str, Tensor]:
    """By diffusers' names: to_q, to_k and to_v are parts of one weight of the host."""
    generator, found = torch.Generator().manual_seed(9), {}
    for block, names in (
        (
            "transformer_blocks",
            ("attn.to_q", "attn.to_v", "attn.add_k_proj", "attn.to_out.0", "norm1.linear"),
        ),
        ("single_transformer_blocks", ("attn.to_k", "proj_mlp")),
    ):
        for name in names:
            rows = {"norm1.linear": 384, "proj_mlp": 256}.get(name, 64)
            key = f"transformer.{block}.1.{name}"
            found[f"{key}.lora_A.weight"] = torch.randn(3, 64, generator=generator) / 8
            found[f"{key}.lora_B.weight"] = torch.randn(rows, 3, generator=generator)
    return found


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with start(host.path, host.python, pack, log, "bypass_inside.py", loras) as call:
        yield call


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).norm() / two.norm())


@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL", "Flux"])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_it_gives_what_merging_gives(inside: Inside, kind: str, strength: float):
    done = inside("both_ways", kind=kind, names=[f"{kind.replace(' ', '')}.safetensors"], strength=strength)
    assert apart(done["plain"], done["merged"]) > 0.03
    assert apart(done["beside"], done["merged"]) < 1e-5
    assert done["merged changed"] > 0 == done["beside changed"] and done["beside patches"] == []
    assert torch.equal(done["beside again"], done["plain"]) and torch.equal(done["after"], done["plain"])
    layers = next(line for line in done["beside report"] if line.startswith("bypass: "))
    assert layers.endswith(" layers run beside the model's weights")
    assert not any(line.startswith("bypass") for line in done["merged report"])


def test_two_loras_add_up(inside: Inside):
    done = inside("both_ways", kind="SD 1.5", names=["SD1.5.safetensors", "SD1.5 other.safetensors"])
    alone = inside("both_ways", kind="SD 1.5", names=["SD1.5 other.safetensors"])
    assert apart(done["merged"], alone["merged"]) > 0.03
    assert apart(done["beside"], done["merged"]) < 1e-5 and torch.equal(done["after"], done["plain"])


def test_weights_of_eight_bits_lose_nothing(inside: Inside, loras: Path):
    tensors = {k: t * 0.01 if "lora_up" in k else t for k, t in kohya(adapters(SMALL["SD 1.5"])).items()}
    write(loras / "faint.safetensors", tensors)
    done = inside("both_ways", kind="SD 1.5", names=["faint.safetensors"], narrow=True)
    wanted = apart(done["plain"], done["true"])
    assert apart(done["beside"], done["true"]) < 1e-3 * wanted
    assert apart(done["merged"], done["true"]) > 0.1 * wanted, "then merging is good enough"
    assert done["beside changed"] == 0


def test_what_is_no_plain_lora_is_merged_as_before(inside: Inside, loras: Path):
    unet = SMALL["SD 1.5"]
    tensors = kohya(adapters(unet, only=r"down_blocks\.0\.attentions\.0.*attn1"))
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    odd = {
        f"{base}.dora_scale": torch.rand(32, 1) + 0.5,
        "lora_unet_time_embedding_linear_2.diff": torch.randn(128, 128) / 40,
        "lora_unet_time_embedding_linear_2.diff_b": torch.randn(128) / 10,
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_k.lokr_w1": torch.randn(4, 4) / 4,
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_k.lokr_w2": torch.randn(8, 8) / 8,
    }
    write(loras / "odd.safetensors", tensors | odd)
    done = inside("both_ways", kind="SD 1.5", names=["odd.safetensors"])
    assert apart(done["plain"], done["merged"]) > 0.003 and apart(done["beside"], done["merged"]) < 1e-5
    assert (
        "bypass: 3 layers run beside the model's weights; 4 that cannot are merged" in done["beside report"]
    )
    assert len(done["beside patches"]) == 4


def test_clones_come_and_go(inside: Inside):
    done = inside("life", name="SD1.5.safetensors", other="SD1.5 other.safetensors")
    assert apart(done["one"], done["plain"]) > 0.03 and apart(done["two"], done["one"]) > 0.03
    for when in ("one again", "a clone is gone", "by a clone", "one after it", "another was detached"):
        assert torch.equal(done[when], done["one"]), when
    assert torch.equal(done["detached"], done["plain"])
    assert all("in the model already" in report for report in done["twice"])


def test_it_is_what_the_host_s_own_bypass_does(inside: Inside):
    theirs = inside("by_core", kind="SD 1.5", name="SD1.5.safetensors")
    if theirs is not None:  # since 0.26
        done = inside("both_ways", kind="SD 1.5", names=["SD1.5.safetensors"])
        assert apart(done["beside"], theirs) < 1e-5


def test_a_student_that_is_told_s_is_told_it(inside: Inside, loras: Path):
    generator = torch.Generator().manual_seed(4)
    shapes = {
        "net.0.weight": (128, 256),
        "net.0.bias": (128,),
        "net.2.weight": (128, 128),
        "net.2.bias": (128,),
    }
    embedding = {PREFIX + k: torch.randn(s, generator=generator) for k, s in shapes.items()}
    write(loras / "splus.safetensors", kohya(adapters(SMALL["SD 1.5"], every=9)) | embedding)
    done = inside("both_ways", kind="SD 1.5", names=["splus.safetensors"])
    assert apart(done["beside"], done["merged"]) < 1e-5
    write(loras / "plain.safetensors", kohya(adapters(SMALL["SD 1.5"], every=9)))
    assert (
        apart(done["beside"], inside("both_ways", kind="SD 1.5", names=["plain.safetensors"])["beside"])
        > 1e-3
    )


def test_a_gradient_passes(inside: Inside):
    assert inside("gradient", name="SD1.5.safetensors") > 0
