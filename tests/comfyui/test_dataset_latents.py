"""TCD_DatasetFromLatents: plain lists on every host, and the host's own data set nodes where it has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve
from comfyui_worker import start
from distill_standins import RUN
from safetensors.torch import load_file

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
Inside = Callable[..., Any]
Graph = dict[str, Any]
SCALE = 0.18215
"""By which Stable Diffusion 1.5 multiplies the latents of its VAE."""
OWN_SINCE = (0, 8)
"""No release of the host from this one on may be without data set nodes of its own."""
PROVIDER = """
import torch

class Pictures:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "STRING"), "make", "tests"
    OUTPUT_IS_LIST = (True, True)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def make(self):
        sizes = enumerate((32, 48, 32, 32), 1)
        pictures = [torch.linspace(0, 1, 96 * w).reshape(1, 32, w, 3) ** i for i, w in sizes]
        return (pictures, ["a cat", "a dog", "a very long story " * 30, "a house"])

class Latents:
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT", "CONDITIONING"), "make", "tests"
    OUTPUT_IS_LIST = (True, True)
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",)}}
    def make(self, clip):
        texts = "a cat", "a dog"
        latents = [{"samples": torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4) ** (i + 1)} for i in range(2)]
        return (latents, [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts])

NODE_CLASS_MAPPINGS = {"TestPictures": Pictures, "TestLatents": Latents}
"""


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    home = tmp_path_factory.mktemp("lists")
    with start(host.path, host.python, pack, home / "log.txt", "distill_inside.py", home) as call:
        yield call


@pytest.fixture(scope="module")
def server(host: Any, standins: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("data sets")
    copy_pack(home / "custom_nodes/trajectory-consistency")
    (home / "custom_nodes/provider").mkdir()
    (home / "custom_nodes/provider/__init__.py").write_text(PROVIDER)
    (home / "models").symlink_to(standins, target_is_directory=True)
    with serve(host, home) as found:
        yield found


def latent(value: float, *shape: int) -> dict[str, Any]:
    return {"samples": torch.full(shape or (1, 4, 4, 4), float(value))}


def prompt(value: float, tokens: int = 77) -> list[Any]:
    """An entry of a CONDITIONING."""
    return [torch.full((1, tokens, 8), float(value)), {"pooled_output": torch.full((1, 8), float(value))}]


def test_lists_are_paired_and_prompts_stay_as_they_are(inside: Inside):
    """As Make Training Dataset gives them, with texts of unlike lengths."""
    given = {"latents": [latent(1), latent(2)], "conditioning": [[prompt(3)], [prompt(4, 154)]]}
    found = inside("of_latents", **given)
    assert found["shape"] == [4, 4, 4] and found["report"] == "2 latents of 4x4x4, 0 left out"
    assert found["latents"].flatten(1).mean(1).tolist() == [1, 2]
    assert [(x.shape[1], float(x.mean())) for x, _ in found["prompts"]] == [(77, 3), (154, 4)]
    assert [float(more["pooled_output"].mean()) for _, more in found["prompts"]] == [3, 4]


def test_batches_are_taken_apart(inside: Inside):
    """As Resolution Bucket gives them: a batch for each size, with as many prompts."""
    latents = [{"samples": torch.arange(3.0).reshape(3, 1, 1, 1).repeat(1, 4, 4, 4)}, latent(9, 1, 4, 4, 6)]
    prompts = [[prompt(5), prompt(6), prompt(7)], [prompt(8)]]
    found = inside("of_latents", latents=latents, conditioning=prompts, faulty="skip")
    assert found["latents"].flatten(1).mean(1).tolist() == [0, 1, 2]
    assert [float(x.mean()) for x, _ in found["prompts"]] == [5, 6, 7]
    assert found["report"] == ("3 latents of 4x4x4, 1 left out\nlatent 4: its size is 4x4x6, of most 4x4x4")


def test_one_prompt_serves_all(inside: Inside):
    found = inside("of_latents", latents=[latent(1, 2, 4, 4, 4)], conditioning=[[prompt(3)]])
    assert len(found["latents"]) == len(found["prompts"]) == 2


@pytest.mark.parametrize(
    ("latents", "conditioning", "says"),
    [
        ([], [], "latents: there is none"),
        ([latent(1)] * 3, [[prompt(3)]] * 2, "conditioning: 2 for 3 latents"),
        ([latent(1)] * 2, [[prompt(3)], [prompt(4), prompt(5)]], "conditioning 2: 2 prompts for 1 pictures"),
        ([latent(1), latent(1, 1, 4, 4, 6)], [[prompt(3)]] * 2, "latent 2: its size is 4x4x6, of most 4x4x4"),
        ([latent(1), latent(torch.nan)], [[prompt(3)]] * 2, "latent 2: not all of its numbers are finite"),
        ([latent(torch.inf)], [[prompt(3)]], "1 of 1 cannot be used"),
        ([{**latent(1), "noise_mask": torch.ones(1)}], [[prompt(3)]], "latent 1: it has a noise mask"),
    ],
)
def test_what_cannot_be_used_is_named(inside: Inside, latents: Any, conditioning: Any, says: str):
    with pytest.raises(RuntimeError, match=re.escape(says)):
        inside("of_latents", latents=latents, conditioning=conditioning)


def test_nothing_is_left_of_bad_ones_alone(inside: Inside):
    with pytest.raises(RuntimeError, match="2 of 2 cannot be used"):
        inside("of_latents", latents=[latent(torch.nan)] * 2, conditioning=[[prompt(1)]] * 2, faulty="skip")


def test_another_models_latents_are_refused_before_the_run(inside: Inside):
    for shape in ((1, 16, 8, 8), (1, 4, 1, 8, 8)):
        with pytest.raises(RuntimeError, match="4 channels and 2 dimensions"):
            inside("distilled_from", latents=[latent(1, *shape)], conditioning=[[prompt(1)]], name="other")


def distilled(dataset: list[Any], name: str) -> Graph:
    given: Graph = {**RUN, "run_name": name, "steps": 2, "width": 32, "height": 32}
    settings = "trajectories = 1\nvalidation_prompts = 1\nvalidate_every = 2\nskip = 200"
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors"),
        "distill": node(
            "TCD_Distill", model=["load", 0], clip=["load", 1], dataset=dataset, settings=settings, **given
        ),
    }


def from_lists(source: str, name: str) -> Graph:
    lists = {"latents": [source, 0], "conditioning": [source, 1]}
    return {
        "data": node("TCD_DatasetFromLatents", **lists, faulty="skip"),
        **distilled(["data", 0], name),
    }


def learnt_from(server: Server, name: str) -> dict[str, torch.Tensor]:
    assert (server.output / f"loras/{name}.safetensors").is_file()
    return load_file(server.output / "tcd_training" / name / "data.safetensors")


def test_lists_of_any_node_are_distilled_from_at_once(server: Server):
    """Once, not once for each latent."""
    lists = node("TestLatents", clip=["load", 1])
    with server.texts() as texts:
        outputs = server.run({"lists": lists, **from_lists("lists", "of any node")})
    assert texts["data"] == "2 latents of 4x4x4, 0 left out"
    assert len(outputs["distill"]["images"]) == 1
    expected = torch.stack([torch.linspace(-2, 2, 64).reshape(4, 4, 4) ** (i + 1) for i in range(2)])
    assert torch.allclose(learnt_from(server, "of any node")["latents"], expected * SCALE)


def test_the_hosts_own_data_sets_are_distilled_from(server: Server, host: Any):
    """Made and saved by its nodes, loaded by them, as a list and in buckets."""
    if "LoadTrainingDataset" not in server.call("/object_info"):
        version = re.findall(r"\d+", (host.path / "comfyui_version.py").read_text("utf-8"))
        assert tuple(map(int, version[:2])) < OWN_SINCE, "this ComfyUI should have data sets of its own"
        return
    lists = {"latents": ["make", 0], "conditioning": ["make", 1]}
    server.run(
        {
            "load": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.safetensors"),
            "pictures": node("TestPictures"),
            "make": node(
                "MakeTrainingDataset", images=["pictures", 0], texts=["pictures", 1], vae=["load", 2],
                clip=["load", 1],
            ),
            "save": node("SaveTrainingDataset", **lists, folder_name="mine", shard_size=3),
        }
    )  # fmt: skip
    files = sorted(server.output.parent.rglob("mine/shard_*.pkl"))
    assert len(files) == 2
    shards = [torch.load(file, weights_only=True) for file in files]
    saved = [latent["samples"] for shard in shards for latent in shard["latents"]]
    texts = [entry for shard in shards for ((entry, _),) in shard["conditioning"]]
    kept = [i for i, samples in enumerate(saved) if samples.shape == saved[0].shape]
    assert kept == [0, 2, 3] and texts[2].shape[1] > texts[0].shape[1]

    loaded = {"own": node("LoadTrainingDataset", folder_name="mine")}
    with server.texts() as said:
        server.run({**loaded, **from_lists("own", "of its own")})
    assert said["data"].startswith("3 latents of 4x4x4, 1 left out\nlatent 2: its size is 4x4x6")
    data = learnt_from(server, "of its own")
    assert torch.allclose(data["latents"], torch.cat([saved[i] for i in kept]) * SCALE, atol=1e-6)
    for row, i in enumerate(kept):  # a prompt is as the host encoded it; behind a short one there is room
        tokens = texts[i].shape[1]
        assert data["cond.c_crossattn.shape"][row].tolist() == [1, *texts[i].shape[1:]]
        assert torch.equal(data["cond.c_crossattn"][row, :tokens], texts[i][0])

    lists = {"latents": ["own", 0], "conditioning": ["own", 1]}
    bucket = {"bucket": node("ResolutionBucket", **lists)}
    server.run({**loaded, **bucket, **from_lists("bucket", "of buckets")})
    assert torch.equal(learnt_from(server, "of buckets")["latents"], data["latents"])
