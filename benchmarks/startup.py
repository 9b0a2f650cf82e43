"""What the pack adds to ComfyUI's start: the modules it imports, by `python -X importtime` inside the host.

    python benchmarks/startup.py --comfyui PATH [--python PYTHON] [--runs N]

Every run is a fresh interpreter that imports ComfyUI, then loads the pack as ComfyUI does. Exits with 1 if
the median is above 50 ms or a heavy package comes in.
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
pack, host = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)
import comfy.options
comfy.options.enable_args_parsing()
import asyncio, nodes
import comfy_config.config_parser  # the host reads every pack's pyproject with it
sys.stderr.write("{MARK}\\n")
assert asyncio.run(nodes.load_custom_node(pack))
sys.stderr.write("{MARK}\\n")
"""


class Import(NamedTuple):
    name: str
    ms: float  # of itself alone


def run(python: Path, host: Path, pack: Path) -> list[Import]:
    result = subprocess.run(
        [python, "-X", "importtime", "-c", LOAD, str(pack), str(host)],
        cwd=host,
        env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    found: list[Import] = []
    for line in result.stderr.split(f"{MARK}\n")[1].splitlines():
        parts = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and parts[0].strip().isdigit():
            found.append(Import(parts[2].strip(), int(parts[0]) / 1000))
    return found


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how many interpreters to start")
    options = parser.parse_args()
    with packed() as pack:
        run(options.python, options.comfyui.resolve(), pack)  # writes the bytecode, as the first start does
        runs = [run(options.python, options.comfyui.resolve(), pack) for _ in range(options.runs)]
        for name, ms in sorted(runs[-1], key=lambda i: -i.ms):
            print(f"{ms:8.2f} ms  {name.replace(str(pack), 'ComfyUI-TCD')}")
    totals = [sum(i.ms for i in found) for found in runs]
    heavy = {i.name.split(".")[0] for found in runs for i in found} & HEAVY
    print(f"median {statistics.median(totals):.1f} ms of {options.runs} starts, limit {LIMIT_MS} ms")
    print(f"heavy packages: {', '.join(sorted(heavy)) or 'none'}")
    return 1 if heavy or statistics.median(totals) > LIMIT_MS else 0


if __name__ == "__main__":
    sys.exit(main())
