"""Graphs of the other packs, rewritten, run in a real server: they make what our nodes make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from migrate_graphs import BASE, Part, api, dfl, jetthu, licyk, licyk_select, ui
from test_server import Server, server  # noqa: F401  # pyright: ignore[reportUnusedImport]
from workflow_files import faults, to_api

from comfyui_tcd.migrate.command import migrate

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]


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
def test_they_run_and_make_the_same(server: Server, parts: dict[int, Part], same: dict[str, Any]):  # noqa: F811
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
