"""Writes docs/parity.md: runs inside ComfyUI against diffusers' TCDScheduler around the same network.

    python benchmarks/parity.py --comfyui PATH [--python PYTHON]

Needs diffusers here, not in ComfyUI's interpreter. Exits with 1 where a tolerance is missed.
"""

# ruff: noqa: T201

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from inside_comfyui import ROOT, arguments, worker

HEADER = """# Parity with diffusers

The result of the sampler in ComfyUI {version}, compared with a loop of diffusers {diffusers}'s `TCDScheduler`
around the same network, with the same initial noise and the same noise in every step. The network is a small
UNet of ComfyUI's own class with random weights, so that a wrong timestep shows as a wrong picture. The error
is the norm of the difference of the two latents over the norm of diffusers' one, the largest of all runs of
a row; in every run both called the network at the same timesteps.

Made by `python benchmarks/parity.py --comfyui PATH` (torch {torch}, CPU).

| prediction | steps | gamma | denoise | runs | largest error | tolerance |
| --- | --- | --- | --- | ---: | ---: | ---: |
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
  all timesteps, as does `tcd_grid`.
- **A denoise of 1 with a picture**: ComfyUI starts from `noise + alpha picture`, diffusers from
  `sigma noise + alpha picture`; at timestep 999 sigma is 0.998.
- **An `original_steps` that does not divide 1000**: the first timestep is then below 999, where diffusers
  starts text to image from `noise` and ComfyUI from `sigma noise`.
- **Rounding in a model that predicts x0**: it grows over the steps at gamma 1. For 21 steps at denoise 0.5
  the run in ComfyUI is 1.1e-4, and diffusers' own in float32 6.3e-5, from the same loop in float64.
- **Order 2, multistep and flow models** have no counterpart in diffusers. Their tests compare with the closed
  forms and with ComfyUI's euler. Order 2 calls the network between two timesteps, which ComfyUI rounds.
"""
MISSED = "- {}, {} steps, gamma {}, denoise {}: {:.1e}\n"
STEPS = range(1, 51)
GAMMAS = [i / 10 for i in range(11)]
STRENGTHS = [i / 10 for i in range(1, 11)]


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "parity.md", help="the file to write")
    parser.add_argument("--every", type=int, default=1, help="take every nth run only")
    options = parser.parse_args()
    import diffusers
    from comfyui_oracle import TOLERANCE, compare

    missed, rows = list[str](), list[str]()
    with worker(options) as inside:
        for kind, tolerance in TOLERANCE.items():
            sweeps: dict[tuple[str, str, str], Iterable[tuple[int, float, float]]] = {
                ("1 to 50", "0.3", "1"): [(n, 0.3, 1.0) for n in STEPS],
                ("4", "0 to 1", "1"): [(4, gamma, 1.0) for gamma in GAMMAS],
                ("4", "0.3", "0.1 to 1"): [(4, 0.3, s) for s in STRENGTHS],
                ("1 to 25", "0 to 1", "0.5"): [(n, n % 11 / 10, 0.5) for n in range(1, 26)],
            }
            for names, runs in sweeps.items():
                errors = {run: compare(inside, kind, *run) for run in list(runs)[:: options.every]}
                missed += [MISSED.format(kind, *run, e) for run, e in errors.items() if e >= tolerance]
                worst = max(errors.values())
                cells = [kind, *names, str(len(errors)), f"{worst:.1e}", f"{tolerance:.0e}"]
                rows.append(f"| {' | '.join(cells)} |\n")
                print(rows[-1], end="", flush=True)
        version = inside("version")
    header = HEADER.format(version=version, diffusers=diffusers.__version__, torch=torch.__version__)
    beyond = ["\nBeyond the tolerance:\n\n", *missed] if missed else []
    options.output.write_text("".join([header, *rows, *beyond, FOOTER]), encoding="utf-8")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
