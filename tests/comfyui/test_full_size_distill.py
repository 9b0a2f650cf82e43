"""A whole SD 1.5 with its text encoder, random weights, through TCD_Distill: a few steps at a small size."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_oracle import relative
from comfyui_worker import start
from distill_standins import RUN
from machine_memory import skip_below

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
Inside = Callable[..., Any]
NEEDS = 12
"""GB of free memory: the weights in float32, twice while a LoRA is on them, ComfyUI, and room to work."""
UNET, TEXT = 859_520_964, 123_060_480
"""Parameters; hosts give the text encoder one or two more, that are not used."""
STEPS = 3
GIB = 2**30
BESIDE = 0.5
"""GiB that a plan does not count: a forward pass takes 0.2 to 0.35 on a CPU, mostly for the convolutions' own
copies of weights, and the writing of a checkpoint 0.06.
"""


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    skip_below(NEEDS, "training SD 1.5 in full")
    home = tmp_path_factory.mktemp("home")
    more = Path("--base-directory"), home
    with start(host.path, host.python, pack, home / "log.txt", "full_size_distill.py", *more) as call:
        yield call


def test_a_whole_sd15_is_distilled_in_the_node(inside: Inside):
    unet, text = inside("sizes")
    assert unet == UNET and text >= TEXT
    given = {**RUN, "prompts": "a cat\na dog", "run_name": "full", "steps": STEPS, "width": 64, "height": 64}
    settings = "trajectories = 1\nskip = 250\nvalidation_prompts = 1"
    found = inside("distilled", **given, settings=settings)
    assert found["changed"] == [] and torch.equal(found["plain"], found["again"])
    assert len(found["losses"]) == STEPS and all(loss > 0 for loss in found["losses"])
    assert found["patched by core"] == found["layers"] > 250  # no key without a weight
    assert relative(found["core"], found["student"]) < 1e-4 < relative(found["plain"], found["student"])
    assert found["image"].shape[1:] == (64, 4 * 64, 3)  # 1, 2 and 4 steps, and the teacher
    said = re.fullmatch(r"batch 2 x 1, everything kept, ([0-9.]+) GiB for training", found["plan"])
    assert said, found["plan"]
    assert found["taken"] <= (float(said[1]) + BESIDE) * GIB
