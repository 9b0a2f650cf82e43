"""The real server: graphs through its API, the pack in custom_nodes beside another with a `tcd`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve
from test_registration import IDS, OTHER

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
PROVIDER = """
import sys
sys.path.append({tests!r})
import comfyui_inside as inside

class Model:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"kind": (list(inside.TYPES),)}}}}
    def make(self, kind):
        return (inside.base(kind).clone(),)

class Text:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"seed": ("INT", {{"default": 1}})}}}}
    def make(self, seed):
        return (inside.text(seed),)

NODE_CLASS_MAPPINGS = {{"TestModel": Model, "TestText": Text}}
"""


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("a ComfyUI-home")
    packs = home / "custom_nodes"
    copy_pack(packs / "ComfyUI TCD-pack v1.0")
    tests = str(Path(__file__).parent)
    sources = {"a other": OTHER.format(name="tcd"), "provider": PROVIDER.format(tests=tests)}
    for name, source in sources.items():
        (packs / name).mkdir()
        (packs / name / "__init__.py").write_text(source)
    with serve(host, home) as found:
        yield found


def graph(kind: str = "epsilon", steps: int = 4, size: int = 64) -> dict[str, Any]:
    parts = {"model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0]}
    settings = {"gamma": 0.6, "gamma_end": -1.0, "order": "1", "end": "official"}
    names = {"sampler_name": "tcd_sss", "scheduler": "tcd_grid"}
    common = {"steps": steps, "cfg": 1.5, "denoise": 1.0}
    return {
        "m": node("TestModel", kind=kind),
        "p": node("TestText", seed=1),
        "n": node("TestText", seed=2),
        "l": node("EmptyLatentImage", width=size, height=size, batch_size=2),
        "set": node("TCD_Settings", model=["m", 0], **settings),
        "sampler": node("TCD_Sampler", noise_device="cpu", **settings),
        "sigmas": node("TCD_Scheduler", model=["m", 0], steps=steps, denoise=1.0, original_steps=50),
        "tcd": node("TCD_KSampler", seed=7, gamma=0.6, **common, **parts),
        "k": node("KSampler", seed=7, **common, **names, **{**parts, "model": ["set", 0]}),
        "c": node(
            "SamplerCustom", add_noise=True, noise_seed=7, cfg=1.5, sampler=["sampler", 0],
            sigmas=["sigmas", 0], **parts,
        ),
        "noise": node("RandomNoise", noise_seed=7),
        "guider": node("CFGGuider", model=["m", 0], positive=["p", 0], negative=["n", 0], cfg=1.5),
        "advanced": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["sampler", 0],
            sigmas=["sigmas", 0], latent_image=["l", 0],
        ),
        "save a": node("SaveLatent", samples=["tcd", 0], filename_prefix="a"),
        "save b": node("SaveLatent", samples=["k", 0], filename_prefix="b"),
        "save c": node("SaveLatent", samples=["c", 0], filename_prefix="c"),
        "save d": node("SaveLatent", samples=["tcd", 1], filename_prefix="d"),
        "save e": node("SaveLatent", samples=["c", 1], filename_prefix="e"),
        "save f": node("SaveLatent", samples=["advanced", 0], filename_prefix="f"),
        "save g": node("SaveLatent", samples=["advanced", 1], filename_prefix="g"),
    }  # fmt: skip


def test_it_starts_and_lists_us(server: Server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log and "Cannot import" not in log, log[-3000:]
    info = server.call("/object_info")
    assert set(info) >= IDS
    inputs = info["KSampler"]["input"]["required"]
    assert "tcd_sss" in inputs["sampler_name"][0] and "tcd" in inputs["sampler_name"][0]
    assert "tcd_grid" in inputs["scheduler"][0]
    select = info["KSamplerSelect"]["input"]["required"]["sampler_name"]
    assert "tcd_sss" in json.dumps(select)


@pytest.mark.parametrize("kind", ["epsilon", "v+zsnr", "flow"])
def test_node_ksampler_and_custom_sampler_agree(server: Server, kind: str):
    ours, by_name, custom, x0, custom_x0, advanced, advanced_x0 = server.latents(graph(kind))
    assert ours.shape == (2, 4, 8, 8) and bool(ours.isfinite().all()) and float(ours.std()) > 0.1
    assert all(torch.equal(ours, other) for other in (by_name, custom, advanced))
    assert torch.equal(x0, custom_x0) and torch.equal(x0, advanced_x0)


def test_the_server_makes_what_the_worker_makes(server: Server, inside: Callable[..., Any]):
    ours, *_ = server.latents(graph("v"))
    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    again = inside("tcd_ksampler", kind="v", latent=latent, seed=7, steps=4, cfg=1.5, gamma=0.6)["latent"]
    assert torch.allclose(ours, again, rtol=1e-4, atol=1e-5)


def test_cancel_stops_the_run_and_the_next_one_works(server: Server):
    long = graph(steps=50, size=512)
    for name in ("k", "c", "advanced", "save b", "save c", "save e", "save f", "save g"):
        del long[name]
    prompt = server.queue(long)
    for _ in range(400):
        if server.call("/queue")["queue_running"]:
            break
        time.sleep(0.05)
    time.sleep(1)
    server.call("/interrupt", {})
    done = server.wait(prompt)
    kinds = [message[0] for message in done["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_success" not in kinds
    assert server.latents(graph())[0].isfinite().all()
