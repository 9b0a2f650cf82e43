"""What the pack adds to ComfyUI's start, in time of the processor, and the modules it imports.

    python benchmarks/startup.py --comfyui PATH [--python PYTHON] [--runs N]

Every run is a fresh interpreter that imports ComfyUI, then loads the pack as ComfyUI does, pyproject.toml and
the nodes' lists of inputs included. Exits with 1 if the median is above 50 ms or a heavy package comes in.

Loading makes objects, and at some number of them Python looks through all that there are. Most are the host's
(400,000 in 0.33.0), and which pack's module sets that off is chance. So they are set aside before the pack is
loaded; one more start without that says what they cost.
"""

# ruff: noqa: T201

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from inside_comfyui import arguments, packed

LIMIT_MS = 50
HEAVY = {"peft", "diffusers", "scipy", "transformers", "accelerate", "pandas"}
MARK = "PACK"
LOAD = f"""
import sys
pack, host, aside = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)
import comfy.options
comfy.options.enable_args_parsing()
import asyncio, gc, nodes
import comfy_config.config_parser  # the host reads every pack's pyproject with it
from time import thread_time
if aside == "aside":
    gc.freeze()
objects, began, collecting = len(gc.get_objects()), [], []

def watch(phase, about):
    began.append(thread_time()) if phase == "start" else collecting.append(thread_time() - began.pop())

gc.callbacks.append(watch)
sys.stderr.write("{MARK}\\n")
now = thread_time()
assert asyncio.run(nodes.load_custom_node(pack))
spent = thread_time() - now
sys.stderr.write(f"{MARK}\\n{{spent}} {{sum(collecting)}} {{objects}}\\n")
"""


class Import(NamedTuple):
    name: str
    ms: float  # of itself alone, by the clock on the wall


class Start(NamedTuple):
    """Milliseconds of the processor."""

    ms: float
    collecting: float  # of `ms`
    objects: int  # that Python looks through, before the pack is loaded
    imports: list[Import]


def run(python: Path, host: Path, pack: Path, aside: bool = True) -> Start:
    """Start once; `aside`: without the host's objects in what Python looks through."""
    result = subprocess.run(
        [python, "-X", "importtime", "-c", LOAD, str(pack), str(host), "aside" if aside else "all"],
        cwd=host,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    _, lines, last = result.stderr.split(f"{MARK}\n")
    found: list[Import] = []
    for line in lines.splitlines():
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and parts[0].strip().isdigit():
            found.append(Import(parts[2].strip(), int(parts[0]) / 1000))
    spent, collecting, objects = last.splitlines()[0].split()
    return Start(1000 * float(spent), 1000 * float(collecting), int(objects), found)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how many interpreters to start")
    options = parser.parse_args()
    place = options.python, options.comfyui.resolve()
    with packed() as pack:
        run(*place, pack)  # writes the bytecode, as the first start does
        runs = [run(*place, pack) for _ in range(options.runs)]
        whole = run(*place, pack, aside=False)
        for name, ms in sorted(runs[-1].imports, key=lambda i: -i.ms):
            print(f"{ms:8.2f} ms  {name.replace(str(pack), 'ComfyUI-TCD')}")
    median = statistics.median(start.ms for start in runs)
    heavy = {i.name.split(".")[0] for start in runs for i in start.imports} & HEAVY
    print(f"ours: median {median:.1f} ms of the processor in {options.runs} starts, limit {LIMIT_MS} ms")
    print(
        f"ComfyUI's: looking through its {whole.objects:,} objects, {whole.collecting:.0f} ms of the "
        f"{whole.ms:.0f} ms of a start in which they are not set aside"
    )
    print(f"heavy packages: {', '.join(sorted(heavy)) or 'none'}")
    return 1 if heavy or median > LIMIT_MS else 0


if __name__ == "__main__":
    sys.exit(main())
