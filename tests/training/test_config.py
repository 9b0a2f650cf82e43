"""What wins among the settings: default < preset < file or text < what the user sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfyui_tcd.training.config import DistillConfig

LAYERS: list[tuple[str, str, dict[str, Any], float]] = [
    # preset, text, given by the user, the least guidance that results
    ("sdxl", "", {}, 3.0),
    ("embedded", "", {}, 1.5),
    ("embedded", "w_min = 2", {}, 2.0),
    ("embedded", "w_min = 2", {"w_min": 1.0}, 1.0),
    ("embedded", "w_min = 2", {"w_min": None}, 2.0),
]


@pytest.mark.parametrize(("preset", "text", "given", "w_min"), LAYERS)
def test_the_later_wins(tmp_path: Path, preset: str, text: str, given: dict[str, Any], w_min: float):
    path = tmp_path / "settings.toml"
    path.write_text(text, "utf-8")
    for config in (
        DistillConfig.resolve(preset, text=text, **given),
        DistillConfig.resolve(preset, path, **given),
    ):
        assert config.w_min == w_min


@pytest.mark.parametrize(
    ("text", "given", "rank", "alpha"),
    [
        ("", {}, 64, 64.0),
        ("", {"rank": 16}, 16, 16.0),
        ("rank = 8", {}, 8, 8.0),
        ("alpha = 4", {"rank": 16}, 16, 4.0),
        ("", {"rank": 16, "alpha": 0.0}, 16, 16.0),  # kohya's network_alpha 0
        ("alpha = 4", {"alpha": 2.0}, 64, 2.0),
    ],
)
def test_alpha_is_the_rank_unless_it_is_given(text: str, given: dict[str, Any], rank: int, alpha: float):
    config = DistillConfig.resolve("sdxl", text=text, **given)
    assert (config.rank, config.alpha) == (rank, alpha)


def test_what_a_preset_cannot_know_follows_what_is_given():
    assert DistillConfig.resolve("sdxl", steps=40).warmup == 10
    assert DistillConfig.resolve("sdxl", steps=40, warmup=0).warmup == 0
    assert DistillConfig.resolve("sdxl", text="warmup = 30", steps=40).warmup == 30
    assert DistillConfig.resolve("sdxl", w_min=9.0).w_max == 9.0
    with pytest.raises(ValueError, match=r"w_max 5\.0 is below w_min 9\.0"):
        DistillConfig.resolve("sdxl", text="w_max = 5", w_min=9.0)
