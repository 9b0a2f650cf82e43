"""ComfyUI_IPAdapter_plus in a real server, random weights: what it does to a MODEL holds in TCD_KSampler.

The pack is taken from the host's custom_nodes or from the folder IPADAPTER_PLUS.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
from comfyui_oracle import relative
from comfyui_pack import NO_IP_ADAPTER, copy_ip_adapter, copy_pack, ip_adapter_plus
from comfyui_server import Server, node, serve
from machine_memory import skip_below
from PIL import Image
from workflow_standins import make

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
ADAPTER = "ip-adapter_sd15.safetensors"
VISION = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
# Ways of the host to call the network: with cfg 1 both prompts at once, which it leaves out otherwise; and
# one prompt after the other, as with little memory.
WAYS = """
import comfy.samplers

class Way:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "way": (["both", "one by one"],)}}
    def make(self, model, way):
        model = model.clone()
        model.model_options["disable_cfg1_optimization"] = True
        if way == "one by one":
            model.model_options["sampler_calc_cond_batch_function"] = one_by_one
        return (model,)

def one_by_one(args):
    given = args["model"], args["input"], args["sigma"], args["model_options"]
    def call(conds):
        return comfy.samplers.calc_cond_batch(given[0], conds, *given[1:])
    positive, negative = args["conds"]
    return [call([positive, None])[0], call([None, negative])[1]]

NODE_CLASS_MAPPINGS = {"TestWay": Way}
"""


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    if ip_adapter_plus(host) is None:
        pytest.skip(NO_IP_ADAPTER)
    skip_below(7, "a stand-in of SD 1.5 with CLIP vision")
    home = tmp_path_factory.mktemp("ip adapter")
    copy_pack(home / "custom_nodes/trajectory-consistency")
    copy_ip_adapter(host, home / "custom_nodes")
    (home / "custom_nodes/ways").mkdir()
    (home / "custom_nodes/ways/__init__.py").write_text(WAYS)
    files = f"checkpoints/{CHECKPOINT}", f"ipadapter/{ADAPTER}", f"clip_vision/{VISION}"
    make(host, home / "models", *files)
    (home / "input").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(picture).save(home / "input/example.png")
    with serve(host, home) as found:
        yield found
    for file in files:
        (home / "models" / file).unlink()


class Graph:
    """Runs of one model, by the names of their SaveLatent nodes."""

    def __init__(self) -> None:
        self.nodes = {
            "checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
            "positive": node("CLIPTextEncode", clip=["checkpoint", 1], text="a cat"),
            "negative": node("CLIPTextEncode", clip=["checkpoint", 1], text="blurry"),
            "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "vision": node("CLIPVisionLoader", clip_name=VISION),
            "adapter": node("IPAdapterModelLoader", ipadapter_file=ADAPTER),
            "image": node("LoadImage", image="example.png"),
        }

    def add(self, name: str, class_type: str, **inputs: Any) -> list[Any]:
        self.nodes[name] = node(class_type, **inputs)
        return [name, 0]

    def adapted(self, name: str, weight: float, end_at: float = 1.0) -> list[Any]:
        """MODEL."""
        return self.add(
            name, "IPAdapterAdvanced", model=["checkpoint", 0], ipadapter=["adapter", 0], image=["image", 0],
            clip_vision=["vision", 0], weight=weight, weight_type="linear", combine_embeds="concat",
            start_at=0.0, end_at=end_at, embeds_scaling="V only",
        )  # fmt: skip

    def sampled(self, name: str, model: list[Any], cfg: float, way: str = "") -> None:
        if way:
            model = self.add(f"{name} way", "TestWay", model=model, way=way)
        latent = self.add(
            f"{name} sampler", "TCD_KSampler", model=model, seed=4, steps=2, cfg=cfg, gamma=0.3,
            positive=["positive", 0], negative=["negative", 0], latent_image=["empty", 0], denoise=1.0,
        )  # fmt: skip
        self.add(name, "SaveLatent", samples=latent, filename_prefix=name)


def test_its_weight_and_range_hold(server: Server):
    graph = Graph()
    graph.sampled("a", ["checkpoint", 0], 1.0)
    for name, weight in {"b": 0.0, "c": 0.5, "d": 1.0}.items():
        graph.sampled(name, graph.adapted(f"weight {weight}", weight), 1.0)
    graph.sampled("e", graph.adapted("half", 1.0, end_at=0.3), 1.0)
    plain, zero, half, whole, first_step = server.latents(graph.nodes)
    assert plain.isfinite().all() and float(plain.std()) > 0.1
    assert relative(zero, plain) < 1e-4
    different = [plain, half, whole, first_step]
    for i, a in enumerate(different):
        assert all(relative(a, b) > 1e-3 for b in different[:i])


def test_prompts_alone_and_together_are_the_same(server: Server):
    graph = Graph()
    adapted = graph.adapted("adapted", 1.0)
    graph.sampled("a", adapted, 1.0)
    graph.sampled("b", adapted, 1.0, "both")
    graph.sampled("c", adapted, 2.0)
    graph.sampled("d", adapted, 2.0, "one by one")
    alone, both, guided, one_by_one = server.latents(graph.nodes)
    assert relative(both, alone) < 1e-4
    assert relative(one_by_one, guided) < 1e-4
    assert relative(guided, alone) > 1e-2
