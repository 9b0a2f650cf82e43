"""Gradients that the pack gives the host's fused operators, and the host told that it trains."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from host_source import has_fused_operators

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
OPERATORS = [
    f"{stem}{half}{count}"
    for stem in ("apply_rope", "rms_rope")
    for half in ("", "_split_half")
    for count in ("", "1")
] + ["adaln", "rms_adaln"]
NONE = "none"
"""Stands for the operators of a host that has none."""
ROUNDING = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    home = tmp_path_factory.mktemp("home")
    with start(host.path, host.python, pack, home / "log.txt", "gradients_inside.py", home) as call:
        yield call


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Name every operator; without the package, an older host's tests of them would have nothing to test."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", OPERATORS if has_fused_operators(metafunc.config) else [NONE])


def test_every_operator_gets_its_gradient_once(inside: Inside):
    found = inside("operators")
    assert sorted(found["known"]) == sorted(OPERATORS)
    assert set(found["given"]) <= set(found["here"]) and found["again"] == ()


def test_the_formula_is_the_slope_of_the_packages(inside: Inside, name: str):
    if name == NONE:
        assert not inside("operators")["here"]
        return
    assert all(inside("finite_differences", name=name))


@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_the_operator_has_the_gradient_of_plain_pytorch(inside: Inside, name: str, dtype: str):
    if name == NONE:
        assert not inside("operators")["given"]
        return
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
