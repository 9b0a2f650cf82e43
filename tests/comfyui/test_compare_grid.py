"""TCD_CompareGrid inside ComfyUI: its cells are the sampler's own pictures; cancelling keeps them."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_server import node
from test_server import Server, server  # noqa: F401  # pyright: ignore[reportUnusedImport]

from comfyui_tcd.embedded.sample import TCD_LORA

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
LORA = "compare tcd.safetensors"


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora files")
    shutil.copy(TCD_LORA, folder / LORA)
    return folder


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize(
    "given",
    [
        {"lora": LORA, "lora_strengths": "0.5, 1"},
        {"gammas": "0.3", "orders": "1, 2, multistep", "reference_sampler": "none"},
        {"cfg": 1.5, "denoise": 0.7, "reference_sampler": "dpmpp_2m_sde", "reference_scheduler": "karras"},
    ],
)
def test_every_cell_is_what_the_sampler_makes_of_its_settings(
    inside: Inside, tmp_path: Path, loras: Path, given: dict[str, Any]
):
    found = inside("compare_grid", output=str(tmp_path), loras=str(loras), **given)
    expected = [cell[-1] for cell in found["cells"]]
    if found["reference"] is not None:
        expected.insert(0, found["reference"])
    assert torch.equal(found["images"], torch.cat(expected))
    table = [row for row in rows(found["csv"]) if row["cell"] == "tcd"]
    settings = [(int(r["steps"]), float(r["gamma"]), r["order"], float(r["lora_strength"])) for r in table]
    assert settings == [cell[:4] for cell in found["cells"]]
    assert len({tuple(cell[-1].flatten().tolist()) for cell in found["cells"]}) > len(table) / 2
    assert all(float(row["seconds"]) > 0 and float(row["sharpness"]) > 0 for row in table)
    far = [float(row["distance"]) for row in table if row["distance"]]
    reference = found["reference"]
    assert len(far) == (0 if reference is None else len(table))
    levels = [(x * 255).round() for x in expected]
    if reference is not None:
        computed = [float((x - levels[0]).square().mean().sqrt()) for x in levels[1:]]
        assert far == pytest.approx(computed, abs=1e-3)
    assert [r["recommended"] for r in table].count("yes") == (reference is not None)
    progress = [value for value, _, _ in found["bar"]]
    total = sum(int(row["steps"]) for row in rows(found["csv"]))
    assert (
        progress == sorted(progress)
        and {of for _, of, _ in found["bar"]} == {total}
        and progress[-1] == total
    )
    assert sum(preview for _, _, preview in found["bar"]) == len(rows(found["csv"]))
    (file,) = (tmp_path / "tcd_compare").glob("*.csv")
    assert file.read_text("utf-8") == found["csv"] and file.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "2, 60"}, "original_steps"),
        ({"lora_strengths": "0.5"}, "lora_name is none; choose a LoRA"),
        ({"filename_prefix": "../../elsewhere"}, "(?s)outside"),
    ],
)
def test_mistakes_are_named_before_the_work(
    inside: Inside, tmp_path: Path, given: dict[str, Any], message: str
):
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        inside("compare_grid", output=str(tmp_path), reference_steps=1000, **given)
    assert time.monotonic() - began < 10 and not list(tmp_path.rglob("*.csv"))


def graph(batch: int = 2, **given: Any) -> dict[str, Any]:
    settings = {
        "seed": 3, "steps": "1, 4", "gammas": "0, 0.5", "cfg": 1.0, "denoise": 1.0, "lora_name": LORA,
        "lora_strengths": "1", "reference_sampler": "euler", "reference_scheduler": "normal",
        "reference_steps": 20, "reference_cfg": 3.0,
    }  # fmt: skip
    return {
        "m": node("TCD_EmbeddedModel", lora="none", batch_size=batch),
        "p": node("CLIPTextEncode", clip=["m", 1], text="red hair, glasses"),
        "n": node("CLIPTextEncode", clip=["m", 1], text=""),
        "grid": node(
            "TCD_CompareGrid", model=["m", 0], positive=["p", 0], negative=["n", 0], vae=["m", 2],
            latent_image=["m", 3], **{**settings, **given},
        ),
    }  # fmt: skip


@pytest.fixture
def with_lora(server: Server) -> Server:  # noqa: F811
    folder = server.output.parent / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(TCD_LORA, folder / LORA)
    return server


@pytest.mark.slow
def test_on_a_server(with_lora: Server):
    whole = graph()
    whole["save"] = {
        "class_type": "SaveImage", "inputs": {"images": ["grid", 1], "filename_prefix": "cells"},
    }  # fmt: skip
    done = with_lora.wait(with_lora.queue(whole))
    assert done["status"]["status_str"] == "success", done["status"]
    (shown,) = done["outputs"]["grid"]["images"]
    assert "recommended: " in done["outputs"]["grid"]["text"][0]
    file = with_lora.output / shown["subfolder"] / shown["filename"]
    assert file.is_file() and len(done["outputs"]["save"]["images"]) == 2 * 5
    table = rows(file.with_suffix(".csv").read_text("utf-8"))
    assert [row["cell"] for row in table] == ["reference"] + ["tcd"] * 4
    assert table[1]["lora"] == LORA and not table[0]["lora"]


@pytest.mark.slow
def test_cancel_keeps_the_finished_cells(with_lora: Server):
    """The first cell is one step, the second a thousand on a large batch."""
    long = graph(batch=64, steps="1, 1000", original_steps=0, reference_steps=2, filename_prefix="long/grid")
    prompt = with_lora.queue(long)
    for _ in range(2400):
        if "/1000 [" in with_lora.log.read_text(errors="replace"):
            break
        time.sleep(0.1)
    with_lora.call("/interrupt", {})
    done = with_lora.wait(prompt)
    assert "execution_interrupted" in [message[0] for message in done["status"]["messages"]]
    (file,) = (with_lora.output / "long").glob("*.csv")
    assert [(row["cell"], row["steps"]) for row in rows(file.read_text("utf-8"))] == [
        ("reference", "2"), ("tcd", "1"),
    ]  # fmt: skip
    assert file.with_suffix(".png").is_file()
    again = with_lora.wait(with_lora.queue(graph()))
    assert again["status"]["status_str"] == "success", again["status"]


@pytest.mark.slow
def test_a_mistake_is_refused_at_the_queue(with_lora: Server):
    with pytest.raises(AssertionError, match="steps: 'x'"):
        with_lora.queue(graph(steps="2, x"))
    with pytest.raises(AssertionError, match=r"gammas: gamma 2\.0"):
        with_lora.queue(graph(gammas="2"))
