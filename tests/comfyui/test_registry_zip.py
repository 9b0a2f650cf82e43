"""The files that the registry would publish, unpacked under its name, and what pip would change."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import ROOT
from comfyui_server import Server, serve

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
FOLDER = "trajectory-consistency"


def shipped() -> list[str]:
    """Git's files without those under the folders of .comfyignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    left_out = tuple((ROOT / ".comfyignore").read_text("utf-8").split())
    return [name for name in listed.split("\0") if name and not name.startswith(left_out)]


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("home")
    pack = home / "node.zip"
    with zipfile.ZipFile(pack, "w") as made:
        for name in shipped():
            made.write(ROOT / name, name)
    zipfile.ZipFile(pack).extractall(home / "custom_nodes" / FOLDER)
    with serve(host, home) as found:
        yield found


def test_the_nodes_and_their_help_are_there(server: Server):
    listed = json.loads((ROOT / "node_list.json").read_text("utf-8"))
    assert {name for name in server.call("/object_info") if name.startswith("TCD_")} == set(listed)
    for node in listed:
        with urllib.request.urlopen(f"{server.url}/extensions/{FOLDER}/docs/{node}.md", timeout=60) as answer:
            assert answer.read().startswith(b"# ")
    assert "tcd-embedded-no-download" in server.call("/workflow_templates")[FOLDER]


def test_a_prompt_runs(server: Server):
    text = {"clip": ["m", 1], "text": "happy person, red hair"}
    prompt = {
        "m": {"class_type": "TCD_EmbeddedModel", "inputs": {"lora": "tcd", "batch_size": 1}},
        "p": {"class_type": "CLIPTextEncode", "inputs": text},
        "n": {"class_type": "CLIPTextEncode", "inputs": {**text, "text": ""}},
        "s": {
            "class_type": "TCD_KSampler",
            "inputs": {
                "model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["m", 3],
                "seed": 1, "steps": 4, "cfg": 1.0, "gamma": 0.3, "denoise": 1.0,
            },
        },
        "o": {"class_type": "SaveLatent", "inputs": {"samples": ["s", 0], "filename_prefix": "zip"}},
    }  # fmt: skip
    (latent,) = server.latents(prompt)
    assert bool(latent.isfinite().all()) and float(latent.std()) > 0.1


def test_pip_would_change_nothing_that_is_there(host: Any, tmp_path: Path):
    def pip(*words: str) -> str:
        command = [str(host.python), "-m", "pip", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "dry-run" in " ".join(words):
            pytest.skip(f"pip cannot resolve here: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    there = {p["name"].lower().replace("_", "-") for p in json.loads(pip("list", "--format", "json"))}
    report = tmp_path / "report.json"
    pip("install", "--dry-run", "--quiet", "--report", str(report), "-r", str(ROOT / "requirements.txt"))
    found = json.loads(report.read_text("utf-8"))["install"]
    new = {item["metadata"]["name"].lower().replace("_", "-") for item in found}
    assert new & there == set()
    assert new <= {"peft", "accelerate"} or sys.platform != "linux", new
