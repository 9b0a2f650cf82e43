"""A run inside ComfyUI equals diffusers' TCDScheduler around the same network, with the same noise.

Numbers such as B1 are those of docs/known-defects.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui_oracle import TOLERANCE, compare, exact

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
KINDS = list(TOLERANCE)


# B1, B7: another grid, another schedule or prediction type than the model's
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 13, 20, 33, 50])
def test_every_number_of_steps(inside: Inside, kind: str, steps: int):
    assert compare(inside, kind, steps, 0.3, 1.0) < TOLERANCE[kind]


# B2, B3: gamma measured from the current timestep, or ignored
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.1, 0.2, 0.5, 0.7, 0.9, 0.99, 1.0])
def test_every_gamma(inside: Inside, kind: str, gamma: float):
    assert compare(inside, kind, 4, gamma, 1.0) < TOLERANCE[kind]


# B8, B20: img2img with sigmas twice, or from timestep 999
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.1, 0.2, 0.29, 0.3, 0.5, 0.57, 0.7, 0.9, 0.99])
def test_every_denoise(inside: Inside, kind: str, strength: float):
    assert compare(inside, kind, 4, 0.3, strength) < TOLERANCE[kind]


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0"])
def test_what_remains_is_the_rounding_of_diffusers_own_table(inside: Inside, kind: str):
    error = compare(inside, kind, 21, 1.0, 0.5, exact, torch.float64)
    assert error < 2e-5 and (kind != "x0" or error < compare(inside, kind, 21, 1.0, 0.5) / 4)
