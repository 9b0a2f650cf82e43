"""What the sampler costs beside core's euler_ancestral, in one run inside ComfyUI on the CPU.

    python benchmarks/sampling.py --comfyui PATH [--python PYTHON]

Prints milliseconds a step of both and their ratio: with the network taken out, which leaves the sampler
itself, and with a tiny one, through all of ComfyUI.
"""

# ruff: noqa: T201

from __future__ import annotations

from inside_comfyui import arguments, worker

RUNS = [  # (side of the latent, with a network, steps, repeats)
    (64, False, 4, 60),
    (64, False, 20, 30),
    (128, False, 4, 60),
    (128, False, 20, 30),
    (32, True, 4, 8),
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    print("| latent | network | steps | tcd_sss, ms a step | euler_ancestral, ms a step | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with worker(options) as inside:
        for side, network, steps, repeats in RUNS:
            row = inside("overhead", side=side, network=network, steps=steps, repeats=repeats)
            ours, theirs = row["tcd_sss"] * 1e3, row["euler_ancestral"] * 1e3
            cells = [f"4 x {side} x {side}", "a tiny UNet" if network else "none", str(steps)]
            cells += [f"{ours:.3f}", f"{theirs:.3f}", f"{ours / theirs:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
