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
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import conftest  # noqa: E402, F401  (names the pack)
from tiny import Stop, run, settings, stop_at  # noqa: E402

from comfyui_tcd.training.checkpoint import load_tensors  # noqa: E402
from comfyui_tcd.training.distill import CHECKPOINT, LORA  # noqa: E402


def fork(action: Callable[[], None]) -> int:
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


def kill(folder: Path) -> dict[str, Any]:
    """SIGKILL at random moments, until the run has got through."""
    config = settings(steps=30, save_every=1, batch=2, target="ema", student="tcfs")
    began = time.monotonic()
    finished(fork(lambda: None if run(config, folder / "whole") else None))
    whole = time.monotonic() - began
    kills, steps = 0, [0]
    chance = random.Random(0)
    while kills < 6:
        pid = fork(lambda: None if run(config, folder / "killed") else None)
        time.sleep(whole * chance.uniform(0.02, 0.2))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break  # it was faster
        kills += 1
        steps.append(step_of(folder / "killed"))
        loras = folder / "killed" / LORA
        assert not loras.exists() or load_tensors(loras)
    finished(fork(lambda: None if run(config, folder / "killed") else None))
    return {"kills": kills, "steps": steps}


def full(folder: Path) -> dict[str, Any]:
    """No file may grow beyond a limit: less than the checkpoint, the shard, or the log need."""
    config = settings(steps=4, save_every=2)
    finished(fork(lambda: None if run(config, folder / "whole") else None))
    size = (folder / "whole" / CHECKPOINT).stat().st_size
    log = (folder / "whole" / "log.jsonl").stat().st_size
    seen: dict[str, Any] = {}
    for name, begin, limit in (("checkpoint", 2, size // 2), ("pairs", 0, 2000), ("log", 2, log * 3 // 4)):

        def limited(name: str = name, begin: int = begin, limit: int = limit) -> None:
            if begin:
                try:
                    run(config, folder / name, on_step=stop_at(begin))
                except Stop:
                    pass
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                run(config, folder / name)
            except BaseException as error:
                result = [type(error).__name__, str(error)]
            else:
                result = ["nothing", ""]
            left = [str(p) for p in (folder / name).rglob("*.tmp")]
            result = [*result, step_of(folder / name), left]
            read, write = pipe
            os.close(read)
            os.write(write, json.dumps(result).encode())

        pipe = os.pipe()
        pid = fork(limited)
        os.close(pipe[1])
        with os.fdopen(pipe[0]) as told:
            seen[name] = json.loads(told.read())
        finished(pid)
        finished(fork(lambda name=name: None if run(config, folder / name) else None))
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)  # a process of several threads must not fork
    print(json.dumps({"kill": kill, "full": full}[sys.argv[2]](Path(sys.argv[1]))))
