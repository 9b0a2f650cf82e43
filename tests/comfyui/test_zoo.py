"""Every class of models that this ComfyUI knows: sampled, distilled, and its LoRA loaded, as a tiny model.

A class that is new in ComfyUI has no recipe in zoo_models.py and fails here until it gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from host_source import model_classes
from zoo_models import RECIPES, REFUSED, UNSERVED

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
NONE = "none of them"
"""Stands for the models of a test where the host has none of them."""
TRAINED = [name for name in RECIPES if name not in REFUSED]


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    home = tmp_path_factory.mktemp("zoo")
    with start(host.path, host.python, pack, home / "log.txt", "zoo_inside.py", home) as call:
        yield call


@pytest.fixture(scope="module")
def known(inside: Inside) -> list[str]:
    """Names of the classes of this host."""
    return inside("classes")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test the models of its mark `models` that this host has."""
    mark = metafunc.definition.get_closest_marker("models")
    if mark is not None:
        metafunc.parametrize("here", model_classes(metafunc.config, list(mark.args[0])) or [NONE])


def near(a: torch.Tensor, b: torch.Tensor, within: float = 1e-4) -> bool:
    return float((a - b).abs().max()) <= within * max(1.0, float(b.abs().max()))


def test_every_class_of_the_host_is_served_or_says_why_not(known: list[str]):
    assert len(known) > 40
    assert [name for name in known if name not in RECIPES and name not in UNSERVED] == []
    assert not RECIPES.keys() & UNSERVED.keys()


@pytest.mark.models(RECIPES)
def test_sampled(inside: Inside, here: str):
    found = inside("without_noise", name=here)
    assert torch.isfinite(found["noisy"]).all() and float(found["noisy"].std()) > 0
    assert not near(found["noisy"], found["ours"])
    assert near(found["ours"], found["euler"])


@pytest.mark.models(RECIPES)
def test_an_empty_latent_is_of_the_size_that_the_host_samples(inside: Inside, here: str):
    found = inside("empty", name=here)
    assert found["ours"] == found["host"]


@pytest.mark.models(RECIPES)
def test_a_picture_without_a_vae_is_the_hosts_preview(inside: Inside, here: str):
    found = inside("preview", name=here)
    assert found["ours"].shape == found["host"].shape and found["ours"].dtype == torch.uint8
    assert int((found["ours"].int() - found["host"].int()).abs().max()) <= 1


@pytest.mark.models(TRAINED)
def test_distilled(inside: Inside, here: str):
    """From prompts of the lengths that the family's encoder gives. Nothing is left on the model, something is
    learnt, and every loader makes the student of the file.
    """
    found = inside("distilled", name=here)
    assert found["changed"] == [] and torch.equal(found["plain"], found["again"])
    assert all(x > 0 for x in found["losses"]) and float(found["image"].std()) > 0
    assert not torch.equal(found["plain"], found["student"])
    assert found["patched by core"] == found["layers"] > 10
    assert near(found["core"], found["student"]) and near(found["ours"], found["student"])


@pytest.mark.models(REFUSED)
def test_refused(inside: Inside, known: list[str], here: str):
    if here == NONE:
        assert not REFUSED.keys() & set(known)
        return
    with pytest.raises(RuntimeError, match=f"ValueError: .*{REFUSED[here]}"):
        inside("distilled", name=here)


@pytest.mark.models(TRAINED)
def test_a_batch_of_unlike_prompts_is_each_prompt_alone_by_the_host(inside: Inside, here: str):
    found = inside("rows", name=here)
    assert near(found["ours"], found["host"], 1e-5)
    assert not near(found["ours"][0], found["ours"][1], 1e-2)
    assert found["calls"] >= len(set(RECIPES[here].encoded))
