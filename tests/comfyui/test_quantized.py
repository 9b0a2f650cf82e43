"""Checkpoints with quantized weights under TCD Distill: no format ends ComfyUI's process.

The worker is a process of this file alone: if it dies, each test here says so, and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_worker import start

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]


@pytest.fixture(scope="module", params=["dynamic", "static"])
def inside(
    request: pytest.FixtureRequest,
    host: Any,
    pack: Path,
    standins: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Generator[Inside]:
    home = tmp_path_factory.mktemp("home")
    more = (home, standins, Path(request.param))
    with start(host.path, host.python, pack, home / "log.txt", "dynamic_inside.py", *more) as call:
        yield call


def test_every_quantized_format_is_trained_or_refused_by_name(inside: Inside, standins: Path):
    names = inside("quantized", models=str(standins))
    assert "scaled_fp8" in names
    for name in names:
        found = inside("trained_quantized", name=name)
        wrapped = found["kinds"] - {"Parameter"}
        assert found["same"], name
        assert ("quantized" in found["said"]) is bool(wrapped), (name, found["said"])
        if wrapped:
            assert all(text in found["said"] for text in (*wrapped, "bf16")), found["said"]
        else:
            assert found["said"] == "", name
