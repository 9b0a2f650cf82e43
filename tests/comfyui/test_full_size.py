"""The UNets of SD 1.5 and SDXL in full, random weights, small latents: the sampler equals diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import product
from typing import Any

import pytest
import torch
from comfyui_oracle import Run, diffusers_run, randn, relative
from comfyui_worker import start
from machine_memory import skip_below

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
Inside = Callable[..., Any]
NEEDS = {"SD 1.5": 5, "SDXL": 9}
"""GB of free memory: the weights in bfloat16, ComfyUI, and room to work."""
SIZE = {"SD 1.5": 859_520_964, "SDXL": 2_567_463_684}
SHAPE = (1, 4, 8, 8)
EMPTY = torch.zeros(SHAPE)


@pytest.fixture(scope="module")
def architecture(request: pytest.FixtureRequest) -> str:
    skip_below(NEEDS[request.param], f"{request.param} in full")
    return request.param


@pytest.fixture(scope="module")
def inside(
    host: Any, pack: Any, architecture: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Inside]:
    """A worker for one model, whose memory is free again after it."""
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with start(host.path, host.python, pack, log, "full_size_inside.py") as call:
        yield lambda function, **given: call(function, architecture=architecture, **given)


def by_diffusers(
    inside: Inside, ours: dict[str, Any], steps: int, gamma: float, strength: float = 1.0
) -> Run:
    return diffusers_run(
        lambda x, t: inside("network", x=x, t=t),
        "epsilon",
        steps,
        gamma,
        ours["noise"],
        ours["noises"],
        strength,
        latent=ours["latent"] if strength < 1 else None,
    )


@pytest.mark.parametrize("architecture", ["SD 1.5"], indirect=True)
def test_the_node_from_a_picture(inside: Inside):
    ours = inside("run", node="TCD_KSampler", latent=randn(2, *SHAPE), steps=2, gamma=0.3, denoise=0.57)
    expected = by_diffusers(inside, ours, 2, 0.3, 0.57)
    assert ours["timesteps"] == expected.timesteps
    assert relative(ours["state"], expected.x) < 1e-4
    assert relative(by_diffusers(inside, ours, 2, 0.0, 0.57).x, expected.x) > 1e-2, "gamma has to matter"


@pytest.mark.parametrize(
    ("architecture", "steps", "gamma"),
    [*product(["SD 1.5"], [2, 4], [0.0, 0.3]), ("SDXL", 2, 0.0), ("SDXL", 4, 0.3)],
    indirect=["architecture"],
)
def test_ksampler_by_name(inside: Inside, architecture: str, steps: int, gamma: float):
    assert inside("size") == SIZE[architecture]
    ours = inside("run", node="KSampler", latent=EMPTY, steps=steps, gamma=gamma)
    expected = by_diffusers(inside, ours, steps, gamma)
    assert ours["timesteps"] == expected.timesteps
    assert relative(ours["state"], expected.x) < 1e-4
    assert float(expected.x.std()) > 0.1
