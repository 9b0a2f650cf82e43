"""Runs that are killed, or find the disk full, in processes of their own: `python worker.py FOLDER SCENE`.

Imports once and forks for each run, because importing takes longer than the run. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import conftest  # noqa: E402, F401  (names the pack)
from tiny import Stop, run, settings, stop_at  # noqa: E402

from comfyui_tcd.training.checkpoint import load_tensors  # noqa: E402
from comfyui_tcd.training.config import DistillConfig  # noqa: E402
from comfyui_tcd.training.distill import CHECKPOINT, LORA  # noqa: E402


def fork(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        action()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finished(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert status == 0, "a run that should end has failed"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, all of which has to be readable; 0 without one."""
    if not (folder / CHECKPOINT).exists():
        return 0
    tensors, metadata = load_tensors(folder / CHECKPOINT)
    assert all(bool(v.isfinite().all()) for v in tensors.values())
    return json.loads(metadata["progress"])["step"]


def saved(path: Path, times: int, pid: int) -> None:
    """Wait until a file has been replaced so often, or its writer has ended."""
    last = None
    for _ in range(times):
        while (now := path.stat().st_ino if path.exists() else None) in (None, last):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.001)
        last = now


def kill(folder: Path) -> dict[str, Any]:
    """SIGKILL at random moments, until the run has got through."""
    config = settings(steps=30, save_every=1, batch=2, target="ema", student="tcfs")
    began = time.monotonic()
    finished(fork(partial(run, config, folder / "whole")))
    step = (time.monotonic() - began) / config.steps
    kills, steps = 0, [0]
    chance = random.Random(0)
    while kills < 6:
        pid = fork(partial(run, config, folder / "killed"))
        saved(folder / "killed" / CHECKPOINT, chance.randint(1, 3), pid)
        time.sleep(step * chance.random())
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break  # it was faster
        kills += 1
        steps.append(step_of(folder / "killed"))
        loras = folder / "killed" / LORA
        assert not loras.exists() or load_tensors(loras)
    finished(fork(partial(run, config, folder / "killed")))
    return {"kills": kills, "steps": steps}


def limited(config: DistillConfig, folder: Path, begin: int, limit: int, answer: int) -> None:
    """A run of `begin` steps, then on where files may have `limit` bytes; tells how it ended."""
    if begin:
        with suppress(Stop):
            run(config, folder, on_step=stop_at(begin))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run(config, folder)
    except BaseException as error:
        result = [type(error).__name__, str(error)]
    else:
        result = ["nothing", ""]
    left = [str(p) for p in folder.rglob("*.tmp")]
    os.write(answer, json.dumps([*result, step_of(folder), left]).encode())


def full(folder: Path) -> dict[str, Any]:
    """No file may grow beyond a limit: less than the checkpoint or the shard need."""
    config = settings(steps=4, save_every=2)
    finished(fork(partial(run, config, folder / "whole")))
    size = (folder / "whole" / CHECKPOINT).stat().st_size
    settings_file = (folder / "whole" / "config.toml").stat().st_size
    seen: dict[str, Any] = {}
    for name, begin, limit in (("checkpoint", 2, size // 2), ("pairs", 0, settings_file + 500)):
        read, write = os.pipe()
        pid = fork(partial(limited, config, folder / name, begin, limit, write))
        os.close(write)
        with os.fdopen(read) as told:
            seen[name] = json.loads(told.read())
        finished(pid)
        finished(fork(partial(run, config, folder / name)))
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process of several threads must not fork
    sys.stdout.write(json.dumps({"kill": kill, "full": full}[sys.argv[2]](Path(sys.argv[1]))))
