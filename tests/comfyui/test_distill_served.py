"""TCD Distill in the real server: a Stable Diffusion checkpoint and a flow transformer, queued by a user."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve
from distill_standins import RUN
from PIL import Image
from safetensors.torch import load_file

from comfyui_tcd.training.report import read_log

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
SIDE, STEPS = 32, 5
CALLS = 11
"""Of a model that stops within the training, which makes two a step, after four for its plan and its data."""
KINDS = ("sd15", "flow")
SETTINGS = f"""
trajectories = 1
validation_prompts = 1
validate_every = {STEPS}
skip = 200
"""
PROVIDER = '''
import sys
import time
from comfy.model_management import processing_interrupted
sys.path.append({tests!r})
import distill_models

class Text:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"seed": ("INT", {{"default": 1}})}}}}
    def make(self, seed):
        return (distill_models.text("sd3", seed),)

class Stopping:
    """The model, until it has been called so often: then it breaks, or waits for the user to cancel."""
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        given = {{"model": ("MODEL",), "calls": ("INT", {{"default": 1}}), "how": ("STRING", {{}})}}
        return {{"required": given}}
    def make(self, model, calls, how):
        left = [calls]
        def call(apply_model, given):
            left[0] -= 1
            if left[0] < 0 and how == "breaks":
                raise RuntimeError("the card fell out")
            for _ in range(3000):
                if left[0] >= 0 or processing_interrupted():
                    break
                time.sleep(0.02)
            return apply_model(given["input"], given["timestep"], **given["c"])
        made = model.clone()
        made.set_model_unet_function_wrapper(call)
        return (made,)

NODE_CLASS_MAPPINGS = {{"TestFlowText": Text, "TestStopping": Stopping}}
'''
Graph = dict[str, Any]
Whole = Callable[[str], Graph]


def prepare(home: Path, standins: Path) -> Path:
    """A folder for the server, with the pack, the nodes of `PROVIDER` and the small models."""
    copy_pack(home / "custom_nodes/trajectory-consistency")
    (home / "custom_nodes/provider").mkdir()
    source = PROVIDER.format(tests=str(Path(__file__).parent))
    (home / "custom_nodes/provider/__init__.py").write_text(source)
    (home / "models").symlink_to(standins, target_is_directory=True)
    return home


@pytest.fixture(scope="module")
def server(host: Any, standins: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with serve(host, prepare(tmp_path_factory.mktemp("a home of ComfyUI"), standins)) as found:
        yield found


def loaded(kind: str) -> Graph:
    """A teacher, its VAE, a prompt and the empty one."""
    if kind == "flow":
        return {
            "load": node("UNETLoader", unet_name="tiny-flow.safetensors", weight_dtype="default"),
            "vae": node("VAELoader", vae_name="tiny-flow.safetensors"),
            "prompt": node("TestFlowText", seed=1),
            "empty": node("TestFlowText", seed=2),
        }
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors"),
        "prompt": node("CLIPTextEncode", clip=["load", 1], text="a cat on a sofa"),
        "empty": node("CLIPTextEncode", clip=["load", 1], text=""),
    }


def stopping(how: str) -> Graph:
    return {"stopping": node("TestStopping", model=["load", 0], calls=CALLS, how=how)}


def distilled(kind: str, name: str, model: str = "load", **more: Any) -> Graph:
    """A run of a few steps."""
    given: Graph = {
        "model": [model, 0],
        **RUN,
        "run_name": name,
        "steps": STEPS,
        "width": SIDE,
        "height": SIDE,
        "settings": SETTINGS,
    }
    if kind == "flow":
        given |= {"conditioning": ["prompt", 0], "negative": ["empty", 0]}
    else:
        given |= {"prompts": "a cat\na dog", "clip": ["load", 1]}
    return {**loaded(kind), "distill": node("TCD_Distill", **{**given, **more})}


def sampled(kind: str, model: str) -> Graph:
    """Four steps of a node's MODEL, as a latent and as a picture."""
    vae = ["vae", 0] if kind == "flow" else ["load", 2]
    return {
        "latent": node("EmptySD3LatentImage", width=SIDE, height=SIDE, batch_size=1)
        if kind == "flow"
        else node("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1),
        f"sample {model}": node(
            "TCD_KSampler", model=[model, 0], seed=7, steps=4, cfg=1.0, gamma=0.3, denoise=1.0,
            positive=["prompt", 0], negative=["empty", 0], latent_image=["latent", 0],
        ),
        f"save {model}": node("SaveLatent", samples=[f"sample {model}", 0], filename_prefix="l"),
        f"decode {model}": node("VAEDecode", samples=[f"sample {model}", 0], vae=vae),
        f"show {model}": node("SaveImage", images=[f"decode {model}", 0], filename_prefix="i"),
    }  # fmt: skip


def made(server: Server, outputs: Graph, model: str) -> tuple[torch.Tensor, np.ndarray]:
    """The latent and the picture of `sampled`."""
    latent = load_file(server.saved(outputs[f"save {model}"]["latents"][0]))["latent_tensor"]
    picture = np.asarray(Image.open(server.saved(outputs[f"show {model}"]["images"][0])), np.int16)
    return latent, picture


def folder(server: Server, name: str) -> Path:
    return server.output / "tcd_training" / name


def lora(server: Server, name: str) -> dict[str, torch.Tensor]:
    return load_file(server.output / f"loras/{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(server: Server) -> Whole:
    """What an unbroken run of a kind shows, sampled from in the same prompt as the teacher."""

    @cache
    def run(kind: str) -> Graph:
        sampled_from = {**sampled(kind, "load"), **sampled(kind, "distill")}
        return server.run({**distilled(kind, f"whole {kind}"), **sampled_from})

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_that_comes_out_makes_pictures_in_the_same_prompt(server: Server, whole: Whole, kind: str):
    teacher, student = (made(server, whole(kind), model) for model in ("load", "distill"))
    for latent, picture in (teacher, student):
        assert bool(latent.isfinite().all()) and float(latent.std()) > 0.1
        assert picture.shape == (SIDE, SIDE, 3) and picture.std() > 1
    assert not torch.equal(teacher[0], student[0])
    records = read_log(folder(server, f"whole {kind}") / "log.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    (grid,) = whole(kind)["distill"]["images"]
    assert np.asarray(Image.open(server.saved(grid))).std() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_cores_loaders_make_the_same_picture_of_the_file(server: Server, whole: Whole, kind: str):
    latent, picture = made(server, whole(kind), "distill")
    since = len(server.log.read_text())
    file = f"whole {kind}.safetensors"
    graph = {
        **loaded(kind),
        "only": node("LoraLoaderModelOnly", model=["load", 0], lora_name=file, strength_model=1.0),
        **sampled(kind, "only"),
    }
    models = ["only"]
    if kind != "flow":
        given = {"clip": ["load", 1], "lora_name": file, "strength_model": 1.0, "strength_clip": 1.0}
        graph |= {"core": node("LoraLoader", model=["load", 0], **given), **sampled(kind, "core")}
        models.append("core")
    outputs = server.run(graph)
    for model in models:
        loaded_latent, loaded_picture = made(server, outputs, model)
        assert float((loaded_latent - latent).abs().max()) <= 1e-4 * max(1.0, float(latent.abs().max()))
        assert int(np.abs(loaded_picture - picture).max()) <= 1  # of 255
    assert server.complaints(since) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_is_finished_at_once_when_it_is_queued_again(server: Server, whole: Whole, kind: str):
    whole(kind)
    name = f"whole {kind}"
    before, weights = (folder(server, name) / "log.jsonl").read_bytes(), lora(server, name)
    server.run(distilled(kind, name))  # the host remembers what it showed
    server.call("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)
    left = server.output / f"loras/.{name}.safetensors.7.tmp"
    left.write_bytes(b"of a server that was killed")
    outputs = server.run({**distilled(kind, name), **sampled(kind, "distill")})
    assert not left.exists()
    assert (folder(server, name) / "log.jsonl").read_bytes() == before
    assert same(lora(server, name), weights)
    assert made(server, outputs, "distill")[0].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_run_goes_on_to_the_weights_of_an_unbroken_one(server: Server, whole: Whole, kind: str):
    """The second of its kind in this server, too: the first left nothing on the model."""
    whole(kind)
    name = f"cancelled {kind}"
    prompt = server.queue({**distilled(kind, name, model="stopping"), **stopping("waits")})
    log = folder(server, name) / "log.jsonl"
    for _ in range(3000):
        if log.is_file() and len(read_log(log)) >= 2:
            break
        time.sleep(0.02)
    server.call("/interrupt", {})
    done = server.wait(prompt)
    kinds = [message[0] for message in done["status"]["messages"]]
    assert "execution_interrupted" in kinds and "execution_success" not in kinds
    assert 2 <= len(read_log(log)) < STEPS
    assert server.call("/tcd/distill/distill")["state"] == "stopped"
    assert not (server.output / f"loras/{name}.safetensors").exists()
    assert load_file(folder(server, name) / "lora.safetensors").keys()
    server.run(distilled(kind, name))
    assert same(lora(server, name), lora(server, f"whole {kind}"))
    assert [r["step"] for r in read_log(log)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_training_after_a_prompt_that_failed_in_it(server: Server, whole: Whole, kind: str):
    whole(kind)
    graph = distilled(kind, f"failed {kind}", model="stopping")
    done = server.wait(server.queue({**graph, **stopping("breaks")}))
    assert done["status"]["status_str"] == "error"
    (error,) = (m[1] for m in done["status"]["messages"] if m[0] == "execution_error")
    assert error["node_id"] == "distill" and "the card fell out" in error["exception_message"]
    assert 0 < len(read_log(folder(server, f"failed {kind}") / "log.jsonl")) < STEPS
    told = server.call("/tcd/distill/distill")
    assert told["state"] == "failed" and "the card fell out" in told["message"]
    for name in (f"after {kind}", f"failed {kind}"):  # another run, and the broken one without what broke it
        server.run(distilled(kind, name))
        assert same(lora(server, name), lora(server, f"whole {kind}")), name


def test_the_page_is_told(server: Server):
    name = "told"
    with server.messages() as events:
        server.run(distilled("flow", name))
    told = [data for kind, data in events if kind == "tcd.distill"]
    assert [told[0]["state"], told[-1]["state"]] == ["starting", "done"]
    assert all(data["node"] == "distill" and data["run"] == name for data in told)
    assert told[-1]["step"] == told[-1]["steps"] == STEPS
    assert told[-1]["images"] and len(told[-1]["losses"]) == STEPS
    steps = [data["value"] for kind, data in events if kind == "progress" and data["node"] == "distill"]
    assert steps == sorted(steps) and steps[-1] == STEPS
    assert any(kind == "binary" for kind, _ in events), "the validation picture, as a preview"
    texts = [data for kind, data in events if kind == "binary" and b"distill" in data]
    assert any(f"step {STEPS} of {STEPS}".encode() in text for text in texts)
    assert server.call("/tcd/distill/distill") == told[-1]
    with pytest.raises(AssertionError) as error:
        server.call("/tcd/distill/99")
    assert json.loads(str(error.value)) == {"error": "no run of this node yet"}
