"""The pack under its installed name, the ComfyUI host if there is one, and skips that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path

import pytest
import torch
from host_source import HOST

ROOT = Path(__file__).resolve().parents[1]
NO_HOST = "no ComfyUI found; run: pytest --comfyui=PATH, or set COMFYUI_PATH (and COMFYUI_PYTHON)"


def _name_the_pack() -> None:
    """`comfyui_tcd` is this tree: as installed, else as a bare package that does not run `__init__.py`."""
    installed = find_spec("comfyui_tcd")
    if installed and installed.origin and Path(installed.origin).resolve().parent == ROOT:
        return
    spec = ModuleSpec("comfyui_tcd", None, is_package=True)
    spec.submodule_search_locations = [str(ROOT)]
    sys.modules[spec.name] = module_from_spec(spec)


_name_the_pack()
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(os.cpu_count() or 1)  # containers often report one


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout, the interpreter that runs it, and the page's folder if not the host's own."""

    path: Path
    python: Path
    frontend: Path | None = None


def _host_path(option: str | None) -> Path | None:
    """The checkout asked for, else the one this pack is installed in, else ~/ComfyUI."""
    asked = option or os.environ.get("COMFYUI_PATH")
    if asked:
        path = Path(asked).expanduser().resolve()
        if not _is_host(path):
            raise pytest.UsageError(
                f"{path} is not a ComfyUI checkout: main.py and comfy/ are expected there"
            )
        return path
    candidates = [Path.home() / "ComfyUI"]
    if ROOT.parent.name == "custom_nodes":
        candidates.insert(0, ROOT.parents[1])
    return next(filter(_is_host, candidates), None)


def _is_host(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def _host_python(path: Path) -> Path:
    if asked := os.environ.get("COMFYUI_PYTHON"):
        return Path(asked).expanduser()
    inside = [
        path / ".venv/bin/python",
        path / "venv/bin/python",
        path / ".venv/Scripts/python.exe",
        path / "venv/Scripts/python.exe",
        path.parent / "python_embeded/python.exe",  # spelt so in the portable build
    ]
    return next((p for p in inside if p.exists()), Path(sys.executable))


def _frontend(option: str | None) -> Path | None:
    if option is None:
        return None
    path = Path(option).expanduser().resolve()
    if not (path / "index.html").is_file():
        raise pytest.UsageError(f"{path} is not a page: index.html is expected there")
    return path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--comfyui", metavar="PATH", help="ComfyUI checkout for the tests marked comfyui")
    parser.addoption("--frontend", metavar="PATH", help="static folder of another comfyui-frontend-package")
    parser.addoption("--no-skips", action="store_true", help="a skip fails, except of tests marked comfyui")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HOST] = _host_path(config.getoption("--comfyui"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("comfyui")]
    if marked and config.stash[HOST] is None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=NO_HOST))


@pytest.fixture(scope="session")
def host(pytestconfig: pytest.Config) -> Host:
    """For tests marked `comfyui`."""
    path = pytestconfig.stash[HOST]
    if path is None:
        pytest.skip(NO_HOST)
    python = _host_python(path)
    try:
        probe = subprocess.run(
            [python, "-c", "import torch, aiohttp"], capture_output=True, text=True, timeout=300, check=False
        )
        problem = probe.stderr.strip().rsplit("\n", 1)[-1] if probe.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        pytest.skip(f"{python} cannot run ComfyUI ({problem}); set COMFYUI_PYTHON to one that can")
    return Host(path, python, _frontend(pytestconfig.getoption("--frontend")))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped, which --no-skips forbids: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-skips") and not item.get_closest_marker("comfyui"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.config.getoption("--no-skips"):
        _refuse_skip(report)
    return report
