"""What gets installed is what is in the tree, and importing it costs nothing that was not asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import comfyui_tcd

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACK = "comfyui_tcd"
HOST_HAS = {"torch", "numpy", "safetensors", "einops"}  # ComfyUI requires them, so the pack must not
COMMAND_LINE_ONLY = {"tomli"}  # settings files are read by `tcd`, which pip installs


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def package_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_the_package_list_is_the_tree(project: dict[str, Any]):
    # An editable install finds a package that is not listed; a wheel silently leaves it out.
    outside = {"tests", "docs", "benchmarks", "build", "dist"}
    inits = (p.relative_to(ROOT).parent.parts for p in ROOT.rglob("__init__.py") if ".venv" not in p.parts)
    tree = {".".join([PACK, *parts]) for parts in inits if not (parts and parts[0] in outside)}
    assert set(project["tool"]["setuptools"]["packages"]) == tree


def test_the_version_is_said_once(project: dict[str, Any]):
    version = project["project"]["version"]
    (in_code,) = re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text("utf-8"), re.MULTILINE
    )
    assert in_code == version
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1:2] in ([], [version])


def test_requirements_are_the_dependencies_that_the_host_lacks(project: dict[str, Any]):
    """Nothing that ComfyUI installs is asked for again, torch above all (B28 of docs/known-defects.md)."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").split("\n")
    required = sorted(line for line in lines if line and not line.startswith("#"))
    dependencies = project["project"]["dependencies"]
    assert required == sorted(d for d in dependencies if package_name(d) not in HOST_HAS | COMMAND_LINE_ONLY)


def test_every_direct_dependency_has_one_pin(project: dict[str, Any]):
    extras = project["project"]["optional-dependencies"]
    asked = {package_name(d) for d in [*project["project"]["dependencies"], *extras["demo"], *extras["test"]]}
    lines = (ROOT / "constraints.txt").read_text("utf-8").split("\n")
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+(; |$)", pin) for pin in pins)
    assert asked - {project["project"]["name"]} <= {package_name(pin) for pin in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names inside a wheel built from a copy, in a folder whose name is no identifier."""
    copy = tmp_path_factory.mktemp("build") / "ComfyUI-TCD 1"
    skip = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "tests", "runs", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (copy / "out").glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_holds_every_module_and_data_file(wheel: set[str], project: dict[str, Any]):
    expected: set[Path] = set()
    for package in project["tool"]["setuptools"]["packages"]:
        expected.update((ROOT / package.removeprefix(PACK).lstrip(".").replace(".", "/")).glob("*.py"))
    for folder in ("embedded/weights", "embedded/data", "web", "workflows"):
        expected.update(p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    for pattern in ("*.html", "*.json"):
        expected.update((ROOT / "embedded").glob(pattern))
    expected.add(ROOT / "training" / "base_models.json")
    missing = {f"{PACK}/{p.relative_to(ROOT).as_posix()}" for p in expected} - wheel
    assert missing == set()


def test_the_wheel_holds_nothing_else(wheel: set[str]):
    ours = {name for name in wheel if ".dist-info/" not in name}
    folders = {name.split("/")[1] for name in ours if name.count("/") > 1}
    assert all(name.startswith(f"{PACK}/") for name in ours)
    assert folders <= {"embedded", "migrate", "nodes", "samplers", "training", "web", "workflows"}


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (PACK, {"torch", "numpy", "peft", "diffusers", "scipy", "transformers"}),
        (f"{PACK}.samplers", {"peft", "diffusers", "scipy", "transformers"}),
    ],
)
def test_importing_is_cheap(module: str, forbidden: set[str]):
    # Runs the root's __init__ from this tree, installed or not.
    code = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
init, folder = {str(ROOT / "__init__.py")!r}, {str(ROOT)!r}
spec = spec_from_file_location("{PACK}", init, submodule_search_locations=[folder])
sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
import {module}
"""
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "importlib" in imported  # the listing was understood
    assert imported & forbidden == set()


def test_the_tests_test_this_tree():
    assert [Path(p).resolve() for p in comfyui_tcd.__path__] == [ROOT]
