"""Names in the host's lists: ours once, others' untouched, in any order of loading.

B23 is a number of docs/known-defects.md.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pack import copy_pack
from comfyui_worker import start
from test_splus_host import run, write_student

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
IDS = {"TCD_KSampler", "TCD_Sampler", "TCD_Scheduler", "TCD_Settings"}
# As the packs of today do it: unguarded.
OTHER = """
import comfy.samplers
from comfy.k_diffusion import sampling

def sample_{name}(model, x, sigmas, extra_args=None, callback=None, disable=None):
    return x * 0 + 7

sampling.sample_{name} = sample_{name}
if "{name}" not in comfy.samplers.SAMPLER_NAMES:
    comfy.samplers.SAMPLER_NAMES.append("{name}")
NODE_CLASS_MAPPINGS = {{}}
"""


def other_pack(folder: Path, name: str) -> str:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(OTHER.format(name=name))
    return str(folder)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worker") / "log.txt"


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, log: Path) -> Generator[Inside]:
    """A worker of its own: what is loaded here stays loaded."""
    with start(host.path, host.python, pack, log) as call:
        yield call


def test_the_lists_have_us_once(inside: Inside):
    found = inside("registered")
    assert found["samplers"].count("tcd_sss") == found["schedulers"].count("tcd_grid") == 1
    assert found["same lists"] and found["offered"] and set(found["nodes"]) >= IDS


# B23: names of other packs overwritten, lists bound anew, duplicates
def test_before_another_pack_and_twice(inside: Inside, pack: Path, log: Path, tmp_path: Path):
    """Ours is there; then another pack that registers `tcd` loads; then ours again from another folder."""
    other = other_pack(tmp_path / "other", "tcd")
    assert inside("load_pack", folder=other)
    after = inside("registered")
    assert sorted(after["samplers"]) == ["tcd", "tcd_sss"] and after["from"]["tcd"] == other
    again = str(copy_pack(tmp_path / "custom nodes" / "Second-copy of TCD"))
    assert inside("load_pack", folder=again)
    twice = inside("registered")
    assert sorted(twice["samplers"]) == ["tcd", "tcd_sss"] and twice["schedulers"] == ["tcd_grid"]
    assert twice["same lists"] and twice["from"]["tcd"] == other
    assert twice["from"]["tcd_sss"].startswith(again.replace(".", "_x_"))
    assert set(twice["nodes"]) >= IDS
    assert f"installed twice, in {pack} and {again}; the second is used" in log.read_text()


def test_after_another_pack(inside: Inside, tmp_path: Path):
    inside("forget_us")
    before = inside("registered")
    assert "tcd_sss" not in before["samplers"] and not before["offered"] and before["nodes"] == []
    other = other_pack(tmp_path / "other", "tcd")
    assert inside("load_pack", folder=other)
    ours = str(copy_pack(tmp_path / "custom nodes" / "after-another"))
    assert inside("load_pack", folder=ours)
    after = inside("registered")
    assert sorted(after["samplers"]) == ["tcd", "tcd_sss"] and after["schedulers"] == ["tcd_grid"]
    assert after["same lists"] and after["offered"] and set(after["nodes"]) >= IDS
    assert after["from"]["tcd"] == other and after["from"]["tcd_sss"].startswith(ours.replace(".", "_x_"))


def test_what_one_copy_loads_another_samples(inside: Inside, tmp_path: Path):
    """The worker's loader is that of the copy loaded last, its sampler that of the first."""
    found = inside("linear_layers", kind="epsilon")
    file = write_student(tmp_path / f"{tmp_path.name}.safetensors", found["layers"], found["width"])
    assert inside("load_pack", folder=str(copy_pack(tmp_path / "first")))
    before = run(inside, "epsilon", lora=file)
    assert inside("load_pack", folder=str(copy_pack(tmp_path / "second")))
    assert torch.equal(run(inside, "epsilon", lora=file), before)
    assert not torch.equal(run(inside, "epsilon"), before)


def test_a_name_that_is_taken_stays_so_and_our_nodes_work(inside: Inside, tmp_path: Path):
    thief = other_pack(tmp_path / "thief", "tcd_sss")
    inside("load_pack", folder=thief)
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    before = inside("tcd_ksampler", kind="epsilon", latent=latent)["latent"]
    try:
        assert inside("load_pack", folder=str(copy_pack(tmp_path / "third")))
        assert inside("registered")["from"]["tcd_sss"] == thief
        assert torch.equal(inside("tcd_ksampler", kind="epsilon", latent=latent)["latent"], before)
        assert float(before.std()) > 0
    finally:
        inside("forget_us")
        assert inside("load_pack", folder=str(copy_pack(tmp_path / "fourth")))


def test_the_nodes_declare_what_is_promised(inside: Inside):
    info = inside("node_info")
    for name in IDS:
        assert info[name]["category"] == "TCD" and info[name]["description"]
    widgets = info["TCD_KSampler"]["input"]
    assert list(widgets["required"]) == [
        "model", "seed", "steps", "cfg", "gamma", "positive", "negative", "latent_image", "denoise",
    ]  # fmt: skip
    advanced = {"order", "end", "gamma_end", "original_steps", "noise_device"}
    assert set(widgets["optional"]) == advanced
    assert all(options[1]["advanced"] for options in widgets["optional"].values())
    assert info["TCD_KSampler"]["output"] == ["LATENT", "LATENT"]
    assert info["TCD_Sampler"]["output"] == ["SAMPLER"] and info["TCD_Scheduler"]["output"] == ["SIGMAS"]
    assert set(info["TCD_Settings"]["input"]["required"]) == {"model", "gamma"}
    for node in IDS:
        for group in info[node]["input"].values():
            for widget, (kind, options, *_) in group.items():
                assert kind in ("MODEL", "CONDITIONING", "LATENT") or options.get("tooltip"), (node, widget)


def test_advanced_inputs_are_declared_by_the_hosts_own_field_where_it_has_one(inside: Inside):
    found = inside("advanced_inputs")
    assert len(found["inputs"]) > 10
    expected = [True, False] if found["has field"] else [False, True]
    assert [name for name, how in found["inputs"].items() if how != expected] == []


def test_no_node_leaves_its_place_in_the_page(inside: Inside):
    """Newer hosts have fields that move a node out of the list of extensions, or that let it wait."""
    for name, node in inside("node_info").items():
        assert not node.get("essentials_category") and not node.get("has_intermediate_output"), name
