"""What the registry asks of pyproject.toml and the files beside it, as far as no network is needed."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from help_nodes import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,98}")
VERSION = r"\d+\.\d+\.\d+"
KEYS = {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_the_project_is_what_the_registry_takes(pyproject: dict[str, Any]):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert NAME.fullmatch(project["name"]) and "comfyui" not in project["name"].lower()
    assert re.fullmatch(VERSION, project["version"]) and project["description"]
    assert (ROOT / project["license-files"][0]).is_file()
    assert set(comfy) <= KEYS and comfy["PublisherId"] and comfy["DisplayName"]
    assert re.fullmatch(rf">={VERSION}", comfy["requires-comfyui"])
    assert all(comfy.get(name, "https://").startswith("https://") for name in ("Icon", "Banner"))


def test_the_action_that_gets_the_secret_is_one_commit():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8")
    (action,) = re.findall(r"uses: (\S+)", text)
    assert re.fullmatch(r"Comfy-Org/publish-node-action@[0-9a-f]{40}", action)


def test_requirements_are_peft_from_a_floor_without_a_cap():
    (line,) = (ROOT / "requirements.txt").read_text("utf-8").split()
    assert re.fullmatch(r"peft>=[\d.]+", line)


def test_the_zip_leaves_out_what_no_user_runs():
    left_out = (ROOT / ".comfyignore").read_text("utf-8").split()
    assert {"tests/", "benchmarks/", ".ci/", ".github/"} <= set(left_out)
    needed = (
        "__init__.py",
        "nodes/",
        "samplers/",
        "training/",
        "embedded/",
        "web/",
        "locales/",
        "workflows/",
    )
    assert set(left_out) & {*needed, "docs/", "pyproject.toml", "node_list.json", "requirements.txt"} == set()
    assert all((ROOT / name).exists() for name in left_out)


@pytest.mark.parametrize(("name", "ratio", "most"), [("icon", 1, 400), ("banner", 21 / 9, 3000)])
def test_the_pictures_have_their_sizes(name: str, ratio: float, most: int):
    svg = ElementTree.parse(ROOT / "assets" / f"{name}.svg").getroot()
    width, height = int(svg.attrib["width"]), int(svg.attrib["height"])
    assert width / height == pytest.approx(ratio) and width <= most
    assert svg.attrib["viewBox"] == f"0 0 {width} {height}"
