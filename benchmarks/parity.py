"""Writes docs/parity.md: runs inside ComfyUI against diffusers' TCDScheduler around the same network.

    python benchmarks/parity.py --comfyui PATH [--python PYTHON] [--also PATH PYTHON]

Needs diffusers here, not in ComfyUI's interpreter. Exits with 1 where a tolerance is missed.
"""

# ruff: noqa: T201

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from inside_comfyui import ROOT, arguments, worker

HEADER = """# Parity with diffusers

The result of the sampler in ComfyUI {versions}, compared with a loop of diffusers {diffusers}'s
`TCDScheduler` around the same network, with the same initial noise and the same noise in every step. The
network is a small UNet of ComfyUI's own class with random weights, so that a wrong timestep shows as a wrong
picture; it computes in float64, the samplers in float32. The error is the norm of the difference of the two
latents over the norm of diffusers' one, the largest of all runs of a row; in every run both called the
network at the same timesteps.

Made by `python benchmarks/parity.py --comfyui PATH --also PATH PYTHON` (torch {torch} for diffusers, CPU).

| prediction | steps | gamma | denoise | runs | {columns} | tolerance |
| --- | --- | --- | --- | ---: | {rules} | ---: |
"""
FOOTER = """
Zero terminal SNR has a wider tolerance because ComfyUI's last alphas_cumprod is 4.9e-8 and diffusers' is 0.

`tests/comfyui/test_full_size.py` does the same with the UNets of SD 1.5 and SDXL in full: random weights,
latents of 8x8, 2 and 4 steps, gamma 0 and 0.3, KSampler, and TCD Sampler with SD 1.5. Its bound is 1e-4.

## What is not the same, and why

- **KSampler with `tcd_grid` and a denoise below 1**: KSampler asks for `int(steps / denoise)` steps and keeps
  the last ones, so the timesteps are diffusers' only where `steps / denoise` and `50 denoise` are whole
  numbers (4 steps at 0.5, not at 0.3). It cannot be made exact: 4 steps at 0.29 and at 0.3 are the same
  request to a scheduler, for 13 steps, and diffusers starts them at timesteps 279 and 299. The nodes TCD
  Sampler and TCD Scheduler are exact for every denoise.
- **More than 50 steps**: diffusers refuses them with its default settings. `original_steps` 0 takes them from
  all timesteps, as does `tcd_grid`. KSampler and detailers ask for `int(steps / denoise)` of them, which may
  be more than the model has timesteps (20 steps at a denoise of 0.01): `tcd_grid` then gives times between
  them.
- **ModelSamplingDiscrete with *lcm* before the sampler** (the rows *lcm*) changes nothing: its table has 50
  of the 1000 timesteps, and the pack takes the others from the model's whole schedule.
- **A denoise of 1 with a picture**: ComfyUI starts from `noise + alpha picture`, diffusers from
  `sigma noise + alpha picture`; at timestep 999 sigma is 0.998.
- **An `original_steps` that does not divide 1000**: the first timestep is then below 999, where diffusers
  starts text to image from `noise` and ComfyUI from `sigma noise`.
- **The table of noise levels**: diffusers multiplies its alphas in float32, and its sigma of the first
  timestep is off by 1.3e-5; ComfyUI's is right to 1e-8. A model that predicts x0 makes the most of it, at
  gamma 1: for 21 steps at denoise 0.5 the run in ComfyUI is 7.7e-5 from diffusers, and 7e-6 from the same
  loop with the alphas and everything else in float64. (A float32 network adds its own rounding: there a
  change of 1e-7 in the first noise changes diffusers' own result by 1.1e-4.)
- **Order 2, multistep and flow models** have no counterpart in diffusers. Their tests compare with the closed
  forms and with ComfyUI's euler. Order 2 calls the network between two timesteps, which ComfyUI rounds.
"""
MISSED = "- {}: {}, {} steps, gamma {}, denoise {}: {:.1e}\n"
Run = tuple[int, float, float]
"""Steps, gamma, denoise."""
SWEEPS: dict[tuple[str, str, str], list[Run]] = {
    ("1 to 50", "0.3", "1"): [(n, 0.3, 1.0) for n in range(1, 51)],
    ("4", "0 to 1", "1"): [(4, i / 10, 1.0) for i in range(11)],
    ("4", "0.3", "0.1 to 1"): [(4, 0.3, i / 10) for i in range(1, 11)],
    ("1 to 25", "0 to 1", "0.5"): [(n, n % 11 / 10, 0.5) for n in range(1, 26)],
}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument(
        "--also", nargs=2, type=Path, default=None, help="another ComfyUI, and its interpreter"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md", help="the file to write")
    parser.add_argument("--every", type=int, default=1, help="take every nth run only")
    options = parser.parse_args()
    import diffusers
    from comfyui_oracle import TOLERANCE, compare  # pyright: ignore[reportMissingImports]

    hosts = [(options.comfyui, options.python), *([options.also] if options.also else [])]
    found: dict[str, dict[str, dict[Run, float]]] = {}
    for options.comfyui, options.python in hosts:
        with worker(options) as inside:
            run = partial(compare, inside)
            found[inside("version")] = {kind: errors(partial(run, kind), options.every) for kind in TOLERANCE}
    missed = [
        MISSED.format(version, kind, *run, error)
        for version, kinds in found.items()
        for kind, all_runs in kinds.items()
        for run, error in all_runs.items()
        if error >= TOLERANCE[kind]
    ]
    rows = [
        row(kind, name, [kinds[kind] for kinds in found.values()], tolerance)
        for kind, tolerance in TOLERANCE.items()
        for name in SWEEPS
    ]
    header = HEADER.format(
        versions=" and ".join(found),
        columns=" | ".join(f"largest error, {version}" for version in found),
        rules=" | ".join(["---:"] * len(found)),
        diffusers=diffusers.__version__,
        torch=torch.__version__,
    )
    beyond = ["\nBeyond the tolerance:\n\n", *missed] if missed else []
    options.output.write_text("".join([header, *rows, *beyond, FOOTER]), encoding="utf-8")
    return int(bool(missed))


def errors(compare: Callable[..., float], every: int) -> dict[Run, float]:
    """Of every nth run of each sweep; a run that is in two sweeps is made once."""
    made = dict[Run, float]()
    for run in dict.fromkeys(run for runs in SWEEPS.values() for run in runs[::every]):
        made[run] = compare(*run)
        print(*run, f"{made[run]:.1e}", flush=True)
    return made


def row(kind: str, name: tuple[str, str, str], found: list[dict[Run, float]], tolerance: float) -> str:
    """A row of the table: the largest error of a sweep in each version."""
    of = [[made[run] for run in SWEEPS[name] if run in made] for made in found]
    cells = [kind, *name, str(len(of[0])), *(f"{max(each):.1e}" for each in of), f"{tolerance:.0e}"]
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    sys.exit(main())
