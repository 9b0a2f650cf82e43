"""SD 1.5 with its text encoder, and SDXL's UNet, whole, random weights, through TCD_Distill: a few steps at a
small size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comfyui_oracle import relative
from comfyui_worker import start
from distill_standins import RUN
from machine_memory import skip_below

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
Inside = Callable[..., Any]


class Case(NamedTuple):
    needs: float  # GB of free memory: the weights, twice while a LoRA is on them, ComfyUI, and room to work
    sizes: list[int]  # parameters of the UNet and of the text encoder
    layers: int
    side: int  # of a validation picture
    given: dict[str, Any]


CASES = {
    # hosts give the text encoder one or two more parameters, that are not used
    "SD 1.5": Case(
        12,
        [859_520_964, 123_060_480],
        278,
        64,
        {"prompts": "a cat\na dog", "steps": 3, "batch": 2, "preset": "sd15"},
    ),
    # without a VAE, so that a latent is a picture
    "SDXL": Case(19, [2_567_463_684], 788, 8, {"steps": 2, "batch": 1, "rank": 64, "preset": "sdxl"}),
}
GIB = 2**30
BESIDE = 0.5
"""GiB that a plan does not count: what a forward pass takes, on a CPU mostly for the convolutions' own copies
of weights.
"""


@pytest.fixture(scope="module", params=CASES)
def architecture(request: pytest.FixtureRequest) -> str:
    skip_below(CASES[request.param].needs, f"training {request.param} in full")
    return request.param


@pytest.fixture(scope="module")
def inside(
    host: Any, pack: Path, architecture: str, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Inside]:
    """A worker for one model, whose memory is free again after it, and in which what is freed goes back to
    the system (glibc), so that it is not measured.
    """
    home = tmp_path_factory.mktemp("home")
    more = Path("--base-directory"), home
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
        with start(host.path, host.python, pack, home / "log.txt", "full_size_distill.py", *more) as call:
            yield lambda function, **given: call(function, architecture=architecture, **given)


def test_a_whole_model_is_distilled_in_the_node(inside: Inside, architecture: str):
    case = CASES[architecture]
    assert all(found >= size for found, size in zip(inside("sizes"), case.sizes, strict=True))
    given = {**RUN, "run_name": "full", "width": 64, "height": 64, **case.given}
    settings = "trajectories = 1\nskip = 250\nvalidation_prompts = 1\naccumulation = 1"
    found = inside("distilled", **given, settings=settings)
    assert found["changed"] == [] and torch.equal(found["plain"], found["again"])
    assert len(found["losses"]) == case.given["steps"] and all(loss > 0 for loss in found["losses"])
    assert found["patched by core"] == found["layers"] == case.layers  # no key without a weight
    assert relative(found["core"], found["student"]) < 1e-4 < relative(found["plain"], found["student"])
    assert found["image"].shape[1:] == (case.side, 4 * case.side, 3)  # 1, 2 and 4 steps, and the teacher
    said = re.fullmatch(r"batch \d x 1, everything kept, ([0-9.]+) GiB for training", found["plan"])
    assert said, found["plan"]
    assert found["taken"] <= (float(said[1]) + BESIDE) * GIB
