"""Beside core's own sampling nodes: what they hand on, ours hand on; what they sample, ours sample."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_oracle import diffusers_run, randn
from comfyui_worker import start

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
SERVED = {"EPS", "V_PREDICTION", "EDM", "CONST", "X0", "COSMOS_RFLOW"}
REFUSED = {
    "IMG_TO_IMG": "maps a picture to another: there is no noise to add back",
    "IMG_TO_IMG_FLOW": "the same along a flow",
    "V_PREDICTION_DDPM": "CogVideoX: its x0 is that of a VP state, the states it is given are not",
}


@pytest.fixture(scope="module")
def core(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with start(host.path, host.python, pack, log, "core_inside.py") as call:
        yield call


MASK = torch.zeros(2, 1, 8, 8)
MASK[..., 2:6] = 1
LATENTS: dict[str, dict[str, Any]] = {
    "an empty picture of another ratio": {
        "samples": torch.zeros(2, 4, 8, 8), "batch_index": [0, 1], "downscale_ratio_spacial": 8,
    },
    "an empty picture that is masked": {
        "samples": torch.zeros(2, 1, 8, 8), "batch_index": [0, 1], "noise_mask": MASK, "another's": "kept",
    },
    "a picture": {
        "samples": randn(2, 2, 4, 8, 8), "batch_index": [0, 1], "noise_mask": MASK,
        "downscale_ratio_spacial": 8,
    },
    "an empty film of another ratio": {
        "samples": torch.zeros(1, 4, 9, 8, 8), "batch_index": [0], "downscale_ratio_spacial": 8,
        "downscale_ratio_temporal": 1,
    },
}  # fmt: skip
SAME = ["SamplerCustom", "SamplerCustomAdvanced", "KSampler"]
NEEDED = {"comfy.sample.fix_empty_latent_channels", "comfy.sample.prepare_noise", "CFGGuider.sample"}


def comparable(run: Any, names: set[str], whole: bool) -> list[Any]:
    """The calls of these functions, argument by argument.

    Unless `whole`, in any order, and without what only a node with a second result asks for, the last x0.
    """
    calls = [(name, dict(given)) for name, given in run["calls"] if name in names]
    if whole:
        return calls
    for _, given in calls:
        given.pop("x0_output_dict", None)
    return sorted(calls, key=lambda call: call[0])


def check(ours: Any, theirs: Any, whole: bool) -> None:
    """The calls of the host that both make are the same; `whole`: there are no others."""
    assert ours["read"] == theirs["read"], "core looks at other entries of a LATENT"
    names = [{name for name, _ in run["calls"]} for run in (ours, theirs)]
    both = names[0] & names[1]
    assert both >= NEEDED and (not whole or names[0] == names[1])
    assert comparable(ours, both, whole) == comparable(theirs, both, whole)
    assert ours["bar"] == theirs["bar"]
    for mine, core in zip(ours["results"], theirs["results"], strict=False):
        assert mine["samples"] == core["samples"]
    # Core leaves the ratio in its second result by oversight.
    assert all(set(mine) == set(theirs["results"][0]) for mine in ours["results"])


@pytest.mark.parametrize("which", SAME)
@pytest.mark.parametrize("latent", LATENTS)
def test_the_sampler_hands_on_what_core_does(core: Inside, latent: str, which: str):
    given = {"latent": LATENTS[latent], "temporal": 4 * ("film" in latent)}
    ours, theirs = (core("handed_on", which=node, **given) for node in ("TCD_KSampler", which))
    check(ours, theirs, whole=which == "SamplerCustom")


@pytest.mark.parametrize("latent", LATENTS)
def test_the_reference_of_compare_is_core(core: Inside, latent: str):
    given = {"latent": LATENTS[latent], "temporal": 4 * ("film" in latent)}
    nodes = "TCD_CompareGrid", "euler in KSampler"
    check(*(core("handed_on", which=node, **given) for node in nodes), whole=True)


def test_nested_latents_are_handed_on(core: Inside):
    ours, *theirs = (core("handed_on_nested", which=node) for node in ("TCD_KSampler", *SAME))
    if ours is None:
        assert theirs == [None] * 3  # this host has none
        return
    for which, run in zip(SAME, theirs, strict=True):
        check(ours, run, whole=which == "SamplerCustom")


def test_every_prediction_of_the_host_is_served_or_refused_on_purpose(core: Inside):
    for name, refused in core("predictions").items():
        assert name in SERVED or name in REFUSED, f"{name} is new: serve it, or refuse it in nodes/host.py"
        assert bool(refused) == (name in REFUSED)
        assert not refused or (refused.startswith("TCD cannot sample") and f"'{name}'" in refused)


def check_sampled(found: dict[str, Any]) -> None:
    sigmas = found["sigmas"]
    assert len(sigmas) == 5 and bool((sigmas.diff() < 0).all()) and sigmas[-1] == 0
    assert float(sigmas[0]) == pytest.approx(found["sigma_max"], rel=1e-5)
    assert found["levels"] < 0.05  # 16,384 numbers
    assert found["end"] < 1e-3
    assert found["euler"] < 1e-4


def test_every_schedule_of_the_host_is_sampled(core: Inside):
    names = core("schedules")
    assert len(names) >= 8
    for name in names:
        found = core("schedule", name=name)
        assert "refused" not in found, name
        check_sampled(found)


def test_what_a_node_of_the_host_makes_of_the_model_is_sampled_or_refused(core: Inside):
    nodes = core("sampling_nodes")
    assert len({name for _, name, _ in nodes}) >= 6 and len(nodes) >= 20
    for module, name, given in nodes:
        found = core("with_node", module=module, name=name, given=given)
        mapping = str(given.get("sampling", "")).startswith("img_to_img")
        assert ("refused" in found) == mapping, (name, given)
        if not mapping:
            check_sampled(found)


@pytest.mark.parametrize("sampling", ["eps", "v_prediction", "lcm", "x0"])
def test_the_official_end_leaves_the_noise_that_diffusers_does(core: Inside, sampling: str):
    """With a network that knows that the picture is 0, for every table that ModelSamplingDiscrete makes."""
    given = {"sampling": sampling, "zsnr": False}
    left = core("with_node", module="nodes_model_advanced", name="ModelSamplingDiscrete", given=given)["left"]
    noises = [randn(100 + i, 1, 4, 64, 64) for i in range(3)]
    theirs = diffusers_run(lambda x, t: torch.zeros_like(x), "x0", 4, 0.3, randn(1, 1, 4, 64, 64), noises).x
    assert left == pytest.approx(float(theirs.std()), rel=0.03)


def test_the_sampler_survives_a_reload_of_k_diffusion(core: Inside):
    assert core("reloaded")
