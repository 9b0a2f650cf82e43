"""Graphs of the other packs, rewritten, run in a real server: they make what our nodes make."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_pack import copy_pack
from comfyui_server import Server, node, serve
from migrate_graphs import BASE, Part, api, dfl, jetthu, lcm_before, licyk, licyk_select, ui
from test_server import PROVIDER
from workflow_files import faults, to_api

from comfyui_tcd.migrate.command import migrate

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
OLD_NODE = """
import torch
from comfy import model_sampling, samplers
from comfy_extras.nodes_model_advanced import ModelSamplingDiscreteDistilled

class Distilled(ModelSamplingDiscreteDistilled, model_sampling.EPS):
    pass

def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, smallest=0.0):
    # Without noise a step of TCD is one of Euler; the last one goes to timestep 0, and is not scaled.
    a = 1 / (1 + smallest ** 2)
    for sigma, following in zip(sigmas, sigmas[1:]):
        clean = model(x, sigma * x.new_ones([len(x)]), **extra_args)
        noise = (x - clean) / sigma
        x = clean + following * noise if following > 0 else a ** 0.5 * clean + (1 - a) ** 0.5 * noise
    return x

class Old:
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "SAMPLER", "SIGMAS"), "patch", "tests"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "steps": ("INT",), "scheduler": (["simple"],),
                             "denoise": ("FLOAT",), "eta": ("FLOAT",)}}
    def patch(self, model, steps, scheduler, denoise, eta):
        assert eta == 0 and denoise == 1, "only without noise, whose seed the old node did not set"
        config = model.model.model_config
        whole, sampling = model_sampling.ModelSamplingDiscrete(config), Distilled(config)
        patched = model.clone()
        patched.add_object_patch("model_sampling", sampling)
        sampler = samplers.KSAMPLER(sample, {"smallest": float(whole.sigmas[0])})
        return patched, sampler, samplers.calculate_sigmas(sampling, scheduler, steps).cpu()

NODE_CLASS_MAPPINGS = {"TCDModelSamplingDiscrete": Old}
"""
"""What JettHu's node does where eta is 0: its model, its sigmas, and steps that add no noise."""


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("migrated")
    copy_pack(home / "custom_nodes/trajectory-consistency")
    (home / "custom_nodes/old.py").write_text(OLD_NODE)
    (home / "custom_nodes/provider.py").write_text(PROVIDER.format(tests=str(Path(__file__).parent)))
    with serve(host, home) as found:
        yield found


def expected(gamma: float, end: str, scheduler: str = "") -> dict[str, Any]:
    """The picture by our own nodes; `scheduler`: of the host, instead of ours."""
    graph = api(BASE)
    parts = {"positive": ["2", 0], "negative": ["3", 0], "latent_image": ["1", 3], "model": ["1", 0]}
    common = {"cfg": 1.0, **parts}
    settings = {"gamma": gamma, "end": end}
    if scheduler:
        sigmas = {"model": ["1", 0], "scheduler": scheduler, "steps": 4, "denoise": 1.0}
        graph["6"] = {"class_type": "BasicScheduler", "inputs": sigmas}
        graph["7"] = {"class_type": "TCD_Sampler", "inputs": settings}
        inputs = {**common, "add_noise": True, "noise_seed": 7, "sampler": ["7", 0], "sigmas": ["6", 0]}
        graph["5"] = {"class_type": "SamplerCustom", "inputs": inputs}
    else:
        inputs = {**common, **settings, "seed": 7, "steps": 4, "denoise": 1.0}
        graph["5"] = {"class_type": "TCD_KSampler", "inputs": inputs}
    return graph


@pytest.mark.parametrize(
    ("parts", "same"),
    [
        (jetthu(4, "simple", 1.0, 0.5), expected(0.5, "official")),
        (dfl("SamplerTCD EulerA", 4, 0.5), expected(0.5, "clean")),
        (dfl("SamplerTCD", 4, 0.2), expected(0.2, "clean")),
        (licyk("tcd"), expected(0.3, "clean", "ddim_uniform")),
        (licyk("tcd_euler_a", advanced=True), expected(0.3, "clean", "ddim_uniform")),
        (licyk_select(), expected(0.3, "clean")),
    ],
)
def test_they_run_and_make_the_same(server: Server, parts: dict[int, Part], same: dict[str, Any]):
    info = server.call("/object_info")
    by_api, by_ui = api(parts), ui(parts)
    migrate(by_api)
    migrate(by_ui)
    assert faults(by_ui, info) == []
    graphs = {"api": by_api, "ui": to_api(by_ui, info), "ours": same}
    for name, graph in graphs.items():
        graph["4"]["inputs"]["filename_prefix"] = name  # or the host would not save what it has saved
    (first,), (second,), (ours,) = map(server.latents, graphs.values())
    assert torch.equal(first, ours) and torch.equal(second, ours) and float(ours.std()) > 0.1


@pytest.mark.parametrize("sampling", ["lcm", "v_prediction"])
def test_what_the_old_node_undid_has_no_effect(server: Server, sampling: str):
    """The graph with ModelSamplingDiscrete before JettHu's node, and what the migration makes of it."""
    info = server.call("/object_info")
    old, by_api, by_ui, left = (form(lcm_before(0.0, sampling)) for form in (api, api, ui, api))
    assert not any(remark.by_hand for graph in (by_api, by_ui, left) for remark in migrate(graph))
    for entry in left.values():
        if entry["class_type"] in ("TCD_Scheduler", "SamplerCustom"):
            entry["inputs"]["model"] = ["8", 0]
    graphs = {"old": old, "api": by_api, "ui": to_api(by_ui, info), "left": left}
    for name, graph in graphs.items():
        graph["4"]["inputs"]["filename_prefix"] = f"{sampling} {name}"
        # JettHu's node took every model for one that predicts noise, which the embedded one does not.
        graph |= {
            "1": node("TestModel", kind="epsilon"),
            "2": node("TestText", seed=1),
            "3": node("TestText", seed=1),
        }
        graph["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
        graph["5"]["inputs"]["latent_image"] = ["empty", 0]
    (before,), (first,), (second,), (other,) = map(server.latents, graphs.values())
    assert torch.equal(first, second) and float(before.std()) > 0.1
    torch.testing.assert_close(first, before, rtol=1e-4, atol=1e-4)
    if sampling != "lcm":  # which changes little where it is sampled rightly
        assert float((other - before).abs().max()) > 0.01  # with the node left before ours
