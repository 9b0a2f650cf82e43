"""The `tcd` command: a table of subcommands, each imported when it is called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comfyui_tcd import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A command `steps N` whose outcome a test sets; the only one that may be imported."""
    outcome: dict[str, Any] = {"returns": 0, "raises": None}

    def run(args: Any) -> int:
        outcome["args"] = args
        if outcome["raises"]:
            raise outcome["raises"]
        return outcome["returns"]

    module = ModuleType("comfyui_tcd.fake")
    module.add_arguments = lambda parser: parser.add_argument("n", type=int)  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = {"steps": cli.Command("fake", "take N steps"), "other": cli.Command("missing", "not importable")}
    monkeypatch.setattr(cli, "COMMANDS", table)
    return outcome


def test_a_subcommand_gets_its_arguments_and_gives_the_status(steps: dict[str, Any]):
    steps["returns"] = 3
    assert cli.main(["steps", "4"]) == 3
    assert steps["args"].n == 4


def test_help_lists_every_command_without_importing_it(
    steps: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "take N steps" in shown and "not importable" in shown


@pytest.mark.parametrize("arguments", [["--help"], ["4", "--unknown"]])
def test_help_and_mistakes_name_the_subcommand(
    steps: dict[str, Any], capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    with pytest.raises(SystemExit):
        cli.main(["steps", *arguments])
    shown = capsys.readouterr()
    assert "tcd" in shown.out + shown.err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("steps 0: at least 1"),
        FileNotFoundError("no file x"),
        OSError("full"),
        MemoryError("short"),
    ],
)
def test_a_users_error_is_one_line(
    steps: dict[str, Any], capsys: pytest.CaptureFixture[str], error: Exception
):
    steps["raises"] = error
    assert cli.main(["steps", "4"]) == 2
    assert capsys.readouterr().err == f"tcd: error: {error}\n"


@pytest.mark.parametrize("arguments", [["--traceback", "steps", "4"], ["steps", "4", "--traceback"]])
def test_traceback_shows_it_on_either_side(steps: dict[str, Any], arguments: list[str]):
    steps["raises"] = ValueError("wrong")
    with pytest.raises(ValueError, match="wrong"):
        cli.main(arguments)
    assert steps["args"].traceback is True


def test_our_own_errors_keep_their_traceback(steps: dict[str, Any]):
    steps["raises"] = AssertionError("a bug")
    with pytest.raises(AssertionError):
        cli.main(["steps", "4"])


def test_interrupting_ends_with_130(steps: dict[str, Any]):
    steps["raises"] = KeyboardInterrupt()
    assert cli.main(["steps", "4"]) == 130


def test_the_command_starts_without_torch():
    code = f"""
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
spec = ModuleSpec("comfyui_tcd", None, is_package=True)
spec.submodule_search_locations = [{str(ROOT)!r}]
sys.modules[spec.name] = module_from_spec(spec)
from comfyui_tcd import cli
try:
    cli.main(["--help"])
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_has_a_module_with_arguments_and_run():
    for name, command in cli.COMMANDS.items():
        tree = ast.parse((ROOT / command.module.replace(".", "/")).with_suffix(".py").read_text("utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {"add_arguments", "run"} <= defined, name
