"""The workflow that tests the repository runs what is there, and keeps the screenshots of the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def jobs() -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text("utf-8"))["jobs"]


def test_its_commands_name_targets_and_files_that_exist(jobs: dict[str, Any]):
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    asked = [target for run in runs for target in re.findall(r"^make (\S+)", run)]
    assert asked and set(asked) <= set(targets)
    files = [file for run in runs for file in re.findall(r"[\w./]+\.(?:py|txt)\b", run)]
    ours = [file.removeprefix("pack/") for file in files if not file.startswith("ComfyUI/")]
    assert "tests/comfyui/test_web_page.py" in ours and all((ROOT / file).is_file() for file in ours)


def test_its_options_are_those_of_the_tests(jobs: dict[str, Any]):
    (run,) = [step["run"] for step in jobs["page"]["steps"] if step.get("name") == "Test the page"]
    known = (ROOT / "tests" / "conftest.py").read_text("utf-8")
    options = re.findall(r"--[a-z-]+", run)
    assert options and all(f'"{option}"' in known for option in options)


def test_the_screenshots_are_kept(jobs: dict[str, Any]):
    steps = {step.get("name"): step for step in jobs["page"]["steps"]}
    assert "TCD_SCREENSHOTS" in (ROOT / "tests" / "comfyui" / "test_web_page.py").read_text("utf-8")
    folder = steps["Test the page"]["env"]["TCD_SCREENSHOTS"].removeprefix("${{ github.workspace }}/")
    kept = steps["Keep the screenshots"]
    assert kept["uses"].startswith("actions/upload-artifact@")
    assert kept["with"]["path"] == f"{folder}/*.png" and kept["with"]["if-no-files-found"] == "error"
    varied = jobs["page"]["strategy"]["matrix"]
    assert all(
        f"matrix.{name}" in kept["with"]["name"] for name in varied
    )  # else the second upload is refused
