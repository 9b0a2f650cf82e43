"""Packs that copied the host's lists before ours was loaded, on the real server."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
# As detailers and selectors of other packs do it, at import.
COPIES = """
import logging

import comfy.samplers
import nodes

SAMPLERS = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS = comfy.samplers.KSampler.SCHEDULERS + ["one of their own"]
logging.warning("copied %s TCD", "after" if "TCD_KSampler" in nodes.NODE_CLASS_MAPPINGS else "before")

class Detailer:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("STRING",), "run", "tests", True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (SAMPLERS,), "scheduler": (SCHEDULERS,)}}
    def run(self, **given):
        return {"ui": {"given": [given]}, "result": ("",)}

class Selector:
    RETURN_TYPES, FUNCTION, CATEGORY = (SAMPLERS,), "run", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (SAMPLERS,)}}
    def run(self, sampler_name):
        return (sampler_name,)

class Sink:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("STRING",), "run", "tests", True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (comfy.samplers.KSampler.SAMPLERS,)}}
    def run(self, sampler_name):
        return {"ui": {"given": [sampler_name]}, "result": ("",)}

NODE_CLASS_MAPPINGS = {"CopyDetailer": Detailer, "CopySelector": Selector, "CopySink": Sink}
"""
ORDER = """
import os

listed = os.listdir
os.listdir = lambda path=".": sorted(listed(path))  # the order is the folder's own, which no test can choose
"""


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("copied-lists")
    packs: Path = home / "custom_nodes"
    copy_pack(packs / "TCD")
    for name, source in (("A copies", COPIES), ("A order", "NODE_CLASS_MAPPINGS = {}")):
        (packs / name).mkdir()
        (packs / name / "__init__.py").write_text(source)
    (packs / "A order/prestartup_script.py").write_text(ORDER)
    with serve(host, home) as found:
        yield found


def test_they_offer_our_names_and_take_them(server: Server):
    log = server.log.read_text()
    assert "copied before TCD" in log and "Torch already imported" not in log
    names = {"sampler_name": "tcd_sss", "scheduler": "tcd_grid"}
    shown = server.run({"d": node("CopyDetailer", **names)})
    assert shown["d"]["given"] == [names]


def test_a_selector_with_a_copy_still_fits_the_hosts_lists(server: Server):
    select = node("CopySelector", sampler_name="tcd_sss")
    shown = server.run({"s": select, "k": node("CopySink", sampler_name=["s", 0])})
    assert shown["k"]["given"] == ["tcd_sss"]


def test_ksampler_runs_with_them(server: Server):
    graph = {
        "m": node("TCD_EmbeddedModel", lora="tcd", batch_size=1),
        "p": node("CLIPTextEncode", clip=["m", 1], text="red hair"),
        "k": node(
            "KSampler", model=["m", 0], seed=1, steps=2, cfg=1.0, sampler_name="tcd_sss",
            scheduler="tcd_grid", positive=["p", 0], negative=["p", 0], latent_image=["m", 3], denoise=1.0,
        ),
        "out": node("PreviewImage", images=["v", 0]),
        "v": node("VAEDecode", samples=["k", 0], vae=["m", 2]),
    }  # fmt: skip
    assert server.run(graph)["out"]["images"]
