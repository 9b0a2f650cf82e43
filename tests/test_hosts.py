"""benchmarks/hosts.py counts what pytest says and keeps what is measured; every page names the same hosts."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import hosts  # noqa: E402

SOME = """
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2
def test_left_out(): pytest.skip("no such thing here")
@pytest.fixture
def broken(): raise OSError("nothing there")
def test_never_begun(broken): pass
def test_slow():
    import time
    time.sleep({seconds})
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a ComfyUI as the tests ask for."""
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    return tmp_path


@pytest.mark.parametrize(("seconds", "passed", "failed"), [(0, 2, 2), (60, 1, 3)])
def test_what_pytest_says_is_counted(checkout: Path, seconds: int, passed: int, failed: int):
    file = checkout / "test_some.py"
    file.write_text(SOME.format(seconds=seconds))
    (checkout / "pytest.ini").write_text("[pytest]\n")
    (checkout / "conftest.py").write_text('def pytest_addoption(parser): parser.addoption("--comfyui")\n')
    cell = hosts.measure(checkout, [file], "abc", 0.25 if seconds else 5)
    assert (cell.passed, cell.failed, cell.skipped, cell.commit) == (passed, failed, 1, "abc")
    assert f"{cell}" == f"{passed}, {failed} failed, 1 skipped"
    text = "\n".join(cell.faults)
    assert re.search(r"^FAILED \S+::test_bad - assert 1 == 2$", text, re.MULTILINE)
    assert re.search(r"^ERROR \S+::test_never_begun - OSError: nothing there$", text, re.MULTILINE)
    assert re.search(r"^SKIPPED \[1\] \S+: no such thing here$", text, re.MULTILINE)
    assert ("not done after 0.25 minutes" in cell.faults) == bool(seconds)


def test_a_measured_cell_is_kept_while_the_code_is_the_same(checkout: Path):
    row = next(iter(hosts.CAPABILITIES))
    done = {"0.33.0": {row: hosts.Cell("abc", 3, 0, 0, 1, [])}}
    cells = [(checkout, name) for name in hosts.CAPABILITIES]
    assert [cell for cell in hosts.wanted([checkout], [], done, "abc") if cell[1] != hosts.OTHERS] == cells[
        1:
    ]
    for other in ("abd", ""):
        assert list(hosts.wanted([checkout], [row], done, other)) == cells[:1]


def test_the_page_is_written_from_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(hosts, "RESULTS", tmp_path / "hosts.json")
    monkeypatch.setattr(hosts, "PAGE", tmp_path / "hosts.md")
    hosts.PAGE.write_text("# Hosts\n")
    results = {"0.8.0": {"Compare": hosts.Cell("abc", 5, 1, 0, 9, ["FAILED test_x - no"])}}
    for _ in range(2):  # written again, it has one table
        hosts.save(results)
    assert hosts.load() == results
    text = hosts.PAGE.read_text("utf-8")
    assert text.startswith("# Hosts\n") and text.count("## Results") == 1
    (row,) = [line for line in text.splitlines() if line.startswith("| Compare")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["-", "-", "5, 1 failed", "-", "-"]
    assert "- 0.8.0, Compare: FAILED test_x - no" in text


def test_the_page_that_is_there_is_the_files():
    text = hosts.PAGE.read_text("utf-8")
    assert text.partition(hosts.HEADING)[2] == hosts.written(hosts.load()), "run: python benchmarks/hosts.py"
    assert set(json.loads(hosts.RESULTS.read_text("utf-8"))) <= set(hosts.TESTED)


def test_each_test_file_is_in_one_row():
    rows = [path for row in (*hosts.CAPABILITIES, hosts.OTHERS) for path in hosts.files_of(row)]
    assert len(rows) == len(set(rows)) and set(rows) == set(hosts.TESTS.glob("test_*.py"))


def test_every_page_names_the_tested_hosts():
    floor = hosts.TESTED[-1]
    says = f"{', '.join(hosts.TESTED[:-1])} and {floor}"
    for page in ("README.md", "docs/get-started.md"):
        text = " ".join((ROOT / page).read_text("utf-8").split())
        assert f"ComfyUI {floor} or newer; tested with {says}" in text, page
    assert f"for ComfyUI {floor} and newer" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    comfy: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["comfy"]
    assert comfy["requires-comfyui"] == f">={floor}"
    numbers = [tuple(map(int, re.findall(r"\d+", version))) for version in hosts.TESTED]
    assert numbers == sorted(numbers, reverse=True)
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))["jobs"]
    assert {f"v{version}" for version in hosts.TESTED} >= set(jobs["page"]["strategy"]["matrix"]["comfyui"])
