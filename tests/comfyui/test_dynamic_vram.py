"""Dynamic VRAM, the default of ComfyUI 0.26 and newer on NVIDIA cards: nothing asks for a start option, and
everything gives what it gives without.

Each run is made twice, in a host with dynamic VRAM and in one without, through the host's own loaders. A host
that has no such thing runs both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from safetensors.torch import load_file, save_file
from test_splus_host import write_student

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
KINDS = ["sd15", "flow", "bf16", "fp8"]


@pytest.fixture(scope="module")
def has(host: Any) -> bool:
    """Whether this host knows dynamic VRAM."""
    return "class ModelPatcherDynamic" in (host.path / "comfy/model_patcher.py").read_text("utf-8")


@pytest.fixture(scope="module")
def hosts(
    host: Any, pack: Path, standins: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[Inside, Inside]]:
    """(with dynamic VRAM, without)."""
    flow = load_file(standins / "diffusion_models/tiny-flow.safetensors")
    narrow = {name: value.bfloat16() for name, value in flow.items()}
    save_file(narrow, standins / "diffusion_models/tiny-flow-bf16.safetensors")
    with ExitStack() as stack:
        found: list[Inside] = []
        for how in ("dynamic", "static"):
            home = tmp_path_factory.mktemp(f"a {how} home")
            more = (home, standins, Path(how))
            log = home / "log.txt"
            found.append(
                stack.enter_context(start(host.path, host.python, pack, log, "dynamic_inside.py", *more))
            )
        yield found[0], found[1]


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "with other nodes' patches"])
@pytest.mark.parametrize("kind", KINDS)
def test_distillation_is_that_of_a_static_model(
    hosts: tuple[Inside, Inside], has: bool, kind: str, plain: bool
):
    name = f"{kind} {'plain' if plain else 'dressed'}"
    found, static = (run("trained", kind=kind, name=name, plain=plain) for run in hosts)
    assert found["error"] == "" == static["error"]
    assert found["dynamic"] is has and static["dynamic"] is False
    assert found["lora"].keys() == static["lora"].keys() and len(static["lora"]) > 10
    assert all(torch.equal(found["lora"][k], v) for k, v in static["lora"].items())
    assert found["losses"] == static["losses"] and found["dtypes"] == static["dtypes"]
    assert found["changed"] == [] and torch.equal(found["plain"], found["again"])
    # The file is wider than fp8, and what narrows it for the card does not run on a CPU.
    assert torch.equal(found["plain"], static["plain"]) or not plain or kind == "fp8"
    assert found["student is dynamic"] is has
    # With dynamic VRAM a large layer's patches are computed on the card only: not in this simulation.
    assert not torch.equal(static["student"], static["plain"])


def test_the_copy_is_counted_and_freed(hosts: tuple[Inside, Inside], has: bool):
    dynamic, static = hosts
    found, without = (run("trained", kind="flow", name="freed") for run in hosts)
    assert found["copies"] == has and found["alive"] == 0 and found["listed"] <= 1
    assert ("second copy of the weights" in found["plan"][0]) is has
    assert without["copies"] == 0 and "second copy" not in without["plan"][0]
    for stop, words in (("error", "the card fell out"), ("interrupt", "InterruptProcessing")):
        broken = dynamic("trained", kind="flow", name=f"freed {stop}", stop=stop, steps=6)
        assert words in broken["error"]
        assert broken["copies"] == has and broken["alive"] == 0 and broken["changed"] == []
        assert torch.equal(broken["plain"], broken["again"])
    goes_on = dynamic("trained", kind="flow", name="freed interrupt", steps=6)
    unbroken = static("trained", kind="flow", name="unbroken", steps=6)
    assert goes_on["losses"] == unbroken["losses"]
    assert all(torch.equal(goes_on["lora"][k], v) for k, v in unbroken["lora"].items())


def test_a_loader_that_cannot_be_repeated_is_named(hosts: tuple[Inside, Inside], has: bool):
    said = hosts[0]("refused_without_a_way_to_read_it_again")
    assert ("Load Diffusion Model" in said) is has and "--" not in said
    said = hosts[0]("refused_with_something_in_the_layers")
    assert ("bypass" in said) is has


@pytest.mark.parametrize("kind", ["sd15", "flow"])
def test_a_lora_is_loaded_as_core_loads_it(hosts: tuple[Inside, Inside], has: bool, kind: str):
    path = hosts[1]("trained", kind=kind, name=f"to load {kind}")["path"]
    found, static = (run("with_lora", kind=kind, path=path) for run in hosts)
    assert found["dynamic"] is has
    assert found["layers"]["ours"] == found["layers"]["core"] == static["layers"]["ours"]
    assert found["lines"] == static["lines"] and torch.equal(found["ours"], found["core"])


def test_a_student_with_an_embedding_of_s_samples(hosts: tuple[Inside, Inside], has: bool, tmp_path: Path):
    layers = hosts[1]("linear_layers", kind="sd15")
    path = write_student(tmp_path / "splus.safetensors", layers["layers"], layers["width"])
    plain = write_student(tmp_path / "plain.safetensors", layers["layers"], layers["width"], target=False)
    found, without = (hosts[0]("with_lora", kind="sd15", path=p) for p in (path, plain))
    assert found["dynamic"] is has
    assert not torch.allclose(found["ours"], without["ours"], rtol=1e-2)
    assert torch.equal(found["core"], without["core"])  # core knows no embedding of s


def test_the_embedded_model_and_compare_give_the_same_images(hosts: tuple[Inside, Inside]):
    images = [run("embedded") for run in hosts]
    assert torch.equal(*images) and float(images[0].std()) > 0.05
    for kind in ("sd15", "flow"):
        cells = [run("compared", kind=kind) for run in hosts]
        assert torch.equal(*cells) and len(cells[0]) == 5
