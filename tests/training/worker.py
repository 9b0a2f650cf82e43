"""Runs that are killed, or find the disk full, in processes of their own.

Reads `["SCENE", "FOLDER"]` line by line, and answers each with what it saw, or `{"error": ...}`, as a line of
JSON. Imports once and forks for each run, because importing takes longer than the run.
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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft  # noqa: F401  # pyright: ignore[reportUnusedImport]  (here once, not in each run)
import torch
import torch.distributed as dist

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import conftest  # noqa: E402, F401  # pyright: ignore[reportUnusedImport]  (names the pack)
from tiny import Stop, prompts, run_tinier, settings, stop_at, tinier, uncond  # noqa: E402

from comfyui_tcd.training.checkpoint import load_tensors, save_tensors  # noqa: E402
from comfyui_tcd.training.config import DistillConfig  # noqa: E402
from comfyui_tcd.training.distill import CHECKPOINT, LORA  # noqa: E402
from comfyui_tcd.training.inputs import check_inputs  # noqa: E402
from comfyui_tcd.training.memory import plans  # noqa: E402
from comfyui_tcd.training.processes import Crew  # noqa: E402
from comfyui_tcd.training.run import needs, train  # noqa: E402

KILLS = 20


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
    """SIGKILL at random moments: before the first checkpoint, while one is written, between two."""
    config = settings(steps=60, save_every=1, batch=2, target="ema", student="tcfs")
    began = time.monotonic()
    finished(fork(partial(run_tinier, config, folder / "whole")))
    step = (time.monotonic() - began) / config.steps
    kills, steps = 0, [0]
    chance = random.Random(0)
    while kills < KILLS:
        pid = fork(partial(run_tinier, config, folder / "killed"))
        saved(folder / "killed" / CHECKPOINT, chance.randint(0, 3), pid)
        time.sleep(step * chance.random())
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            break  # it was faster
        kills += 1
        steps.append(step_of(folder / "killed"))
        loras = folder / "killed" / LORA
        assert not loras.exists() or load_tensors(loras)
    finished(fork(partial(run_tinier, config, folder / "killed")))
    return {"kills": kills, "steps": steps}


def published(path: Path) -> None:
    """A LoRA over the last one, again and again, as a node puts it into the loras folder."""
    while True:
        version = int(load_tensors(path)[1]["version"]) + 1 if path.exists() else 0
        tensors = {f"layer {i}": torch.full((2**19,), float(version)) for i in range(4)}
        save_tensors(path, tensors, {"version": str(version)})


def publish(folder: Path) -> dict[str, Any]:
    """SIGKILL at random moments while a LoRA is saved: the versions that it is found in, and what else."""
    path, versions = folder / LORA, [0]
    chance = random.Random(0)
    for _ in range(KILLS):
        pid = fork(partial(published, path))
        saved(path, chance.randint(1, 3), pid)
        time.sleep(0.02 * chance.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tensors, metadata = load_tensors(path)
        versions.append(int(metadata["version"]))
        assert len(tensors) == 4 and all(bool((v == versions[-1]).all()) for v in tensors.values())
    names = [p.name for p in folder.iterdir()]
    listed = [name for name in names if name.endswith(".safetensors")]
    return {"versions": versions, "listed": listed, "cut": len(names) - len(listed)}


def limited(config: DistillConfig, folder: Path, begin: int, limit: int, answer: int) -> None:
    """A run of `begin` steps, then on where files may have `limit` bytes; tells how it ended."""
    if begin:
        with suppress(Stop):
            run_tinier(config, folder, on_step=stop_at(begin))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        run_tinier(config, folder)
    except BaseException as error:
        result = [type(error).__name__, str(error)]
    else:
        result = ["nothing", ""]
    left = [str(p) for p in folder.rglob("*.tmp")]
    os.write(answer, json.dumps([*result, step_of(folder), left]).encode())


def full(folder: Path) -> dict[str, Any]:
    """No file may grow beyond a limit: less than the checkpoint or the shard need."""
    config = settings(steps=4, save_every=2)
    finished(fork(partial(run_tinier, config, folder / "whole")))
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
        finished(fork(partial(run_tinier, config, folder / name)))
    return seen


def member(config: DistillConfig, folder: Path, rank: int, count: int, meeting: Path, lost: int) -> None:
    """One process of a run. At step `lost` the last one is gone without a word."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    backbone = tinier()
    calls = 0

    def before(_x: object) -> None:
        nonlocal calls
        calls += 1
        if rank == count - 1 and calls == lost:
            os._exit(0)

    backbone.before = before
    try:
        run_tinier(config, folder, backbone, crew=Crew(rank, count))
    except ConnectionError as error:
        assert lost and "another process of this run has ended" in str(error)
    dist.destroy_process_group()


def together(config: DistillConfig, folder: Path, count: int, lost: int = 0) -> None:
    """A run by `count` processes; only the first has the run's folder."""
    meeting = folder.with_name(f"{folder.name}-{count}-{lost}.meeting")
    folders = [folder, *(folder.with_name(f"elsewhere-{folder.name}-{i}") for i in range(1, count))]
    pids = [
        fork(partial(member, config, where, rank, count, meeting, lost)) for rank, where in enumerate(folders)
    ]
    for pid in pids:
        finished(pid)
    assert not any(any(where.rglob("*")) for where in folders[1:]), "only the first process writes"


def crew(folder: Path) -> dict[str, Any]:
    """The same run alone, by two, by one and then two, and by two of which one is lost on the way."""
    config = settings(
        target="ema", student="tcfs", trajectories=3, accumulation=2, batch=2, learning_rate=1e-4
    )
    finished(fork(partial(run_tinier, config, folder / "alone")))
    together(config, folder / "two", 2)

    def cut() -> None:
        with suppress(Stop):
            run_tinier(config, folder / "changed", on_step=stop_at(3))

    finished(fork(cut))
    together(config, folder / "changed", 2)
    together(config, folder / "lost", 2, lost=22)
    step = step_of(folder / "lost")
    finished(fork(partial(run_tinier, config, folder / "lost")))
    return {"lost at": step}


def short(folder: Path, rank: int, meeting: Path, full: int, answer: int, options: dict[str, Any]) -> None:
    """One process of two, that runs out of memory at its `full`th forward; tells its plans and its end."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    backbone, told = tinier(), list[str]()
    calls = 0

    def count(_x: object) -> None:
        nonlocal calls
        calls += torch.is_grad_enabled()
        if full and calls >= full:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    backbone.before = count
    free = options["free"][rank]
    config = settings(**options["changes"])
    end = "done"
    try:
        train(
            config, backbone, prompts(3), uncond(), folder, crew=Crew(rank, 2), validate=False, quiet=True,
            free=lambda _device: free, on_plan=told.append,
        )  # fmt: skip
    except (MemoryError, ConnectionError) as error:
        end = f"{type(error).__name__}: {error}"
    dist.destroy_process_group()
    os.write(answer, json.dumps([told, end]).encode())


def both(folder: Path, *full: int, **options: Any) -> list[Any]:
    """What two processes tell, of which each has so much memory `free`, or runs out of it."""
    meeting = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.meeting")
    pipes = [os.pipe() for _ in full]
    pids = [
        fork(partial(short, folder, rank, meeting, at, pipes[rank][1], options))
        for rank, at in enumerate(full)
    ]
    for pid in pids:
        finished(pid)
    return [json.loads(os.read(read, 1 << 16)) for read, _ in pipes]


def memory(folder: Path) -> dict[str, Any]:
    """Two processes with unlike free memory; with too little in one; and one that runs out of it."""
    config = settings()
    able = plans(needs(config, tinier(), prompts(3)), config, 2)
    least = able[-1].need
    seen: dict[str, Any] = {"plans": [str(plan) for plan in able]}
    seen["unlike"] = both(folder / "unlike", 0, 0, free=[2**40, able[1].need], changes={})
    seen["one unknown"] = both(folder / "unknown", 0, 0, free=[able[1].need, None], changes={})
    seen["too little"] = both(folder / "little", 0, 0, free=[least - 1, 2**40], changes={})
    for name, full in (("first", (5, 0)), ("second", (0, 5))):
        seen[name] = both(folder / name, *full, free=[None, None], changes={})
        seen[f"{name} step"] = step_of(folder / name)
        after = {"checkpointing": "blocks"}
        seen[f"{name} again"] = both(folder / name, 0, 0, free=[None, None], changes=after)
    return seen


def told(given: list[dict[str, str]], folders: list[Path], rank: int, meeting: Path, answer: int) -> None:
    """One process of two that checks its inputs as `tcd train` does; tells how that ended."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    end, mine = "", Crew(rank, 2)
    try:
        mine.agree(given[rank])
        check_inputs(folders[rank], given[rank], mine)
    except ValueError as error:
        end = f"ValueError: {error}"
    dist.destroy_process_group()
    os.write(answer, end.encode())
    os.close(answer)


def inputs(folder: Path) -> dict[str, Any]:
    """A run by two, of half the steps and then of all; and what two processes say of inputs that are not
    those of that run, or not alike.
    """
    config = settings(decay="constant", batch=2, learning_rate=1e-4, save_every=2)
    finished(fork(partial(run_tinier, config, folder / "alone")))
    together(replace(config, steps=3), folder / "on", 2)
    together(config, folder / "on", 2, lost=10**6)
    (folder / "on/inputs.json").write_text(json.dumps({"model": "m", "prompts": "p"}))
    cases = {"same": ("p", "p"), "changed": ("q", "q"), "unlike": ("p", "q")}
    seen: dict[str, Any] = {}
    for name, prompts_of in cases.items():
        given = [{"model": "m", "prompts": text} for text in prompts_of]
        folders = [folder / "on", folder / "elsewhere"]
        meeting, pipes = folder / f"{name}.meeting", [os.pipe() for _ in given]
        pids = [fork(partial(told, given, folders, i, meeting, pipes[i][1])) for i in range(2)]
        for pid in pids:
            finished(pid)
        for _, write in pipes:
            os.close(write)
        seen[name] = [os.read(read, 1 << 16).decode() for read, _ in pipes]
    return seen


SCENES = {"inputs": inputs, "memory": memory, "kill": kill, "publish": publish, "full": full, "crew": crew}


def main() -> None:
    torch.set_num_threads(1)  # a process of several threads must not fork
    for line in sys.stdin:
        scene, folder = json.loads(line)
        try:
            seen = SCENES[scene](Path(folder))
        except Exception:
            seen = {"error": traceback.format_exc()}
        sys.stdout.write(json.dumps(seen) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
