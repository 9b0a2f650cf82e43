"""Two processes by torchrun, started as a user starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import assert_near_run

from comfyui_tcd.cli import main
from comfyui_tcd.training.checkpoint import load_tensors
from comfyui_tcd.training.distill import CHECKPOINT, LORA
from comfyui_tcd.training.report import read_log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun's meeting point needs libuv there"),
]
ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
APART = """
import os
import sys
from pathlib import Path
home = Path(os.environ["RANK"])
home.mkdir()
os.chdir(home)
Path("pid").write_text(str(os.getpid()))
from comfyui_tcd.cli import main
sys.exit(main())
"""
"""`tcd`, each process in a folder of its own, as on machines that share none."""


def arguments(out: Path) -> list[str]:
    given = {
        "out": out, "steps": STEPS, "batch": 4, "accumulation": 2, "rank": 4, "learning-rate": 1e-4,
        "skip": 200, "trajectories": 3, "consecutive": 3, "warmup": 0, "validation-prompts": 1,
        "validate-every": STEPS,
    }  # fmt: skip
    options = [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    return ["train", "--embedded", *options]


def launched(tmp_path: Path, *command: str) -> subprocess.Popen[str]:
    """Of a pack that is installed, whichever this one is."""
    site = tmp_path / "site packages"
    site.mkdir()
    (site / "comfyui_tcd").symlink_to(ROOT, target_is_directory=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, *command],
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    with process:
        out, error = process.communicate(timeout=500)
    return process.returncode, [line for line in out.splitlines() if line], error


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert main(arguments(folder)) == 0
    return folder


def test_two_processes_of_torchrun_make_the_lora_of_one(tmp_path: Path, alone: Path):
    folder = tmp_path / "two of them"
    status, out, error = ended(launched(tmp_path, "-m", "comfyui_tcd.cli", *arguments(folder)))
    assert status == 0, error[-3000:]
    assert [line.split(",")[0] for line in out] == [f"done: {STEPS} steps"], "the first alone says it"
    assert_near_run(alone, folder)
    tensors, about = load_tensors(folder / LORA)
    assert tensors.keys() == load_tensors(alone / LORA)[0].keys() and about["ss_output_name"] == "two of them"


def test_two_processes_refuse_what_was_not_the_runs(tmp_path: Path, alone: Path):
    folder = shutil.copytree(alone, tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    command = ["-m", "comfyui_tcd.cli", *arguments(folder), "--negative", "hat"]
    status, out, error = ended(launched(tmp_path, *command))
    assert status != 0 and not out
    assert f"tcd: error: {folder}: holds a run with another negative prompt; " in error, error[-3000:]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_lost_process_ends_the_job_which_one_alone_goes_on_with(tmp_path: Path, alone: Path):
    (tmp_path / "apart.py").write_text(APART)
    process = launched(tmp_path, "apart.py", *arguments(Path("run")))
    first, second = tmp_path / "0", tmp_path / "1"
    while process.poll() is None and not read_log(first / "run/log.jsonl"):
        time.sleep(0.01)
    os.kill(int((second / "pid").read_text()), signal.SIGKILL)
    status, out, error = ended(process)
    assert status != 0 and not out
    assert "another process of this run has ended" in error or "tcd: interrupted" in error, error[-3000:]
    done = json.loads(load_tensors(first / "run" / CHECKPOINT)[1]["progress"])["step"]
    assert 0 < done == len(read_log(first / "run/log.jsonl")) < STEPS
    assert [path.name for path in second.iterdir()] == ["pid"], "only the first process writes"
    assert main(arguments(first / "run")) == 0
    assert_near_run(alone, first / "run")
