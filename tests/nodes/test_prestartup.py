"""The script that ComfyUI runs before it imports anything, on a stand-in for its comfy.samplers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

SCRIPT = str(Path(__file__).resolve().parents[2] / "prestartup_script.py")
SAMPLERS = """
from comfy import sampling as k_diffusion_sampling
class SchedulerHandler:
    def __init__(self, handler, use_ms=True):
        self.handler = handler
SAMPLER_NAMES, SCHEDULER_NAMES, SCHEDULER_HANDLERS = ["euler"], ["simple"], {"simple": SchedulerHandler(None)}
"""
RUN = """
import sys
from runpy import run_path
before = list(sys.meta_path)
for _ in range(2):
    run_path({script!r}, run_name="prestartup_script")
assert not {{"torch", "numpy", "comfy"}} & set(sys.modules)
sys.path.insert(0, {host!r})
import comfy.other
import comfy.samplers
from comfy import sampling
{more}
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    package = tmp_path / "comfy"
    package.mkdir()
    for name, source in (("__init__", ""), ("sampling", ""), ("other", ""), ("samplers", SAMPLERS)):
        (package / f"{name}.py").write_text(source)
    return tmp_path


def run(host: Path, more: str) -> str:
    code = RUN.format(script=SCRIPT, host=str(host), more=more)
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stderr


def test_the_names_are_in_the_lists_when_these_are_made(host: Path):
    """Though the pack is there twice; and nothing of the script is left in the way."""
    run(
        host,
        """
assert comfy.samplers.SAMPLER_NAMES == ["euler", "tcd_sss"], comfy.samplers.SAMPLER_NAMES
assert comfy.samplers.SCHEDULER_NAMES == ["simple", "tcd_grid"] == list(comfy.samplers.SCHEDULER_HANDLERS)
assert sys.meta_path == before
for function in (sampling.sample_tcd_sss, comfy.samplers.SCHEDULER_HANDLERS["tcd_grid"].handler):
    try:
        function(1, 2, key=3)
    except ValueError as error:
        assert "could not be loaded" in str(error)
    else:
        raise AssertionError
import importlib
importlib.reload(comfy.samplers)
assert comfy.samplers.SAMPLER_NAMES == ["euler"]
""",
    )


@pytest.mark.parametrize("wrong", ["SAMPLER_NAMES = 7", "del SCHEDULER_HANDLERS", "del k_diffusion_sampling"])
def test_a_host_that_it_does_not_know_starts_all_the_same(host: Path, wrong: str):
    (host / "comfy/samplers.py").write_text(f"{SAMPLERS}\n{wrong}\nlast = 1\n")
    assert "not in the lists yet" in run(host, "assert comfy.samplers.last == 1")


def test_an_error_of_the_host_itself_stays_as_it_is(host: Path):
    (host / "comfy/samplers.py").write_text("raise RuntimeError('the host is broken')")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(host, "")
    assert "the host is broken" in error.value.stderr


def test_the_names_are_the_samplers_own(nodes: Any):
    script, sss = run_path(SCRIPT), nodes.tcd_sss
    assert (script["SAMPLER"], script["SCHEDULER"], script["PACK"]) == (sss.SAMPLER, sss.SCHEDULER, sss.PACK)
    assert getattr(script["not_loaded"], sss.MARK) == sss.PACK


def test_the_pack_puts_its_functions_behind_the_names(nodes: Any, caplog: pytest.LogCaptureFixture):
    nodes.samplers.k_diffusion_sampling = nodes.k_diffusion
    run_path(SCRIPT)["add"](nodes.samplers)
    nodes.tcd_sss.register()
    assert nodes.samplers.SAMPLER_NAMES == ["euler", "tcd_sss"]
    assert nodes.k_diffusion.sample_tcd_sss is nodes.tcd_sss.sample_tcd_sss
    assert nodes.samplers.SCHEDULER_HANDLERS["tcd_grid"].handler is nodes.host.scheduler_handler
    assert caplog.messages == []
