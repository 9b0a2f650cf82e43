"""What the sampler costs beside core's euler_ancestral, in one run inside ComfyUI on the CPU.

    python benchmarks/sampling.py --comfyui PATH [--python PYTHON]

Prints milliseconds of one CPU a step of both and their ratio: with the network taken out, which leaves the
sampler itself, and with a tiny one, through all of ComfyUI. The last column is the ratio of a run that plans
its steps first, as the first one with other sigmas or another gamma does.
"""

# ruff: noqa: T201

from __future__ import annotations

from inside_comfyui import arguments, worker

RUNS = [  # (shape of the latent, with a network, steps, repeats)
    ((1, 4, 64, 64), False, 4, 150),
    ((1, 4, 64, 64), False, 20, 60),
    ((4, 4, 64, 64), False, 4, 60),
    ((1, 4, 128, 128), False, 4, 60),
    ((1, 4, 128, 128), False, 20, 30),
    ((4, 4, 128, 128), False, 4, 30),
    ((1, 4, 32, 32), True, 4, 9),
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    print("| latent | network | steps | tcd_sss, ms a step | euler_ancestral, ms a step | ratio | first |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with worker(options) as inside:
        for shape, network, steps, repeats in RUNS:
            row = inside("overhead", shape=list(shape), network=network, steps=steps, repeats=repeats)
            ours, theirs, first = (row[name] * 1e3 for name in ("tcd_sss", "euler_ancestral", "first run"))
            cells = [" x ".join(map(str, shape)), "a tiny UNet" if network else "none", str(steps)]
            cells += [f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}", f"{first / theirs:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
