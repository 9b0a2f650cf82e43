"""Gradients that the pack gives the host's fused operators, and the host told that it trains."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
OPERATORS = [
    f"{stem}{half}{count}"
    for stem in ("apply_rope", "rms_rope")
    for half in ("", "_split_half")
    for count in ("", "1")
] + ["adaln", "rms_adaln"]
ROUNDING = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    home = tmp_path_factory.mktemp("home")
    with start(host.path, host.python, pack, home / "log.txt", "gradients_inside.py", home) as call:
        yield call


@pytest.fixture(scope="module")
def here(inside: Inside) -> list[str]:
    """Operators that this host's package has."""
    return inside("operators")["here"]


def test_every_operator_gets_its_gradient_once(inside: Inside):
    found = inside("operators")
    assert sorted(found["known"]) == sorted(OPERATORS)
    assert set(found["given"]) <= set(found["here"]) and found["again"] == ()


@pytest.mark.parametrize("name", OPERATORS)
def test_the_formula_is_the_slope_of_the_packages(inside: Inside, here: list[str], name: str):
    if name not in here:
        pytest.skip("this ComfyUI has no such operator")
    assert all(inside("finite_differences", name=name))


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("name", OPERATORS)
def test_the_operator_has_the_gradient_of_plain_pytorch(
    inside: Inside, here: list[str], name: str, dtype: str
):
    if name not in here:
        pytest.skip("this ComfyUI has no such operator")
    found = inside("registered", name=name, dtype=dtype)
    assert all(found["forward"]) and found["ours"]
    for ours, eager in zip(found["ours"], found["eager"], strict=True):
        assert torch.isfinite(ours).all() and ours.shape == eager.shape
        assert float((ours - eager).norm()) <= ROUNDING[dtype] * float(eager.norm()) + 1e-7


@pytest.mark.parametrize("at", [0, 25, 40])
@pytest.mark.parametrize("how", ["error", "interrupt"])
def test_the_host_is_told_that_it_trains(inside: Inside, how: str, at: int):
    """In every evaluation, and never after the run, whether it ends, fails or is cancelled."""
    before, *seen, after = inside("told", kind="epsilon", name=f"told {how} {at}", break_at=how, at=at)
    told = before is not None
    assert len(seen) >= max(at - 1, 1) and set(seen) == {True if told else None}
    assert before == after == (False if told else None)
