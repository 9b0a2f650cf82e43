"""The shipped teacher is a Stable Diffusion UNet: ComfyUI's own class loads its file and says the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from comfyui_tcd.embedded.avatars import draw_labels
from comfyui_tcd.embedded.model import LATENT, TEACHER, EmbeddedModel
from comfyui_tcd.training.checkpoint import save_tensors

pytestmark = pytest.mark.comfyui
SCRIPT = Path(__file__).with_name("embedded_in_host.py")


def test_the_file_loads_into_comfyuis_unet_and_predicts_the_same(host: Any, tmp_path: Path):
    model = EmbeddedModel.load()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, *LATENT, generator=generator)
    t = torch.tensor([0.0, 19.0, 259.0, 499.0, 759.0, 999.0])
    cond = model.encode_labels(draw_labels(6, np.random.default_rng(0)))
    save_tensors(
        tmp_path / "in.safetensors", {"x": x, "t": t, "context": cond["context"], "y": cond["pooled"]}, {}
    )
    config = json.dumps(model.config.comfy())
    command = [
        str(host.python), str(SCRIPT), str(host.path), str(TEACHER), config,
        str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=host.path)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(str(tmp_path / "out.safetensors"))["out"]
    with torch.no_grad():
        ours = model.unet(x, t, cond["context"], cond["pooled"])
    assert ((theirs - ours).norm() / ours.norm()).item() < 1e-4
