"""What the sampler costs beside core's euler_ancestral, in one run inside ComfyUI on the CPU.

    python benchmarks/sampling.py --comfyui PATH [--python PYTHON]

Prints milliseconds a step of both and their ratio: with the network taken out, which leaves the sampler
itself, and with a tiny one, through all of ComfyUI.
"""

# ruff: noqa: T201

from __future__ import annotations

from inside_comfyui import arguments, worker

SIDES = {"SD 1.5, 512 px": 64, "SDXL, 1024 px": 128}


def main() -> None:
    options = arguments(__doc__).parse_args()
    print("| latent | network | steps | tcd_sss, ms a step | euler_ancestral, ms a step | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with worker(options) as inside:
        for network, repeats in ((False, 60), (True, 8)):
            for name, side in SIDES.items():
                for steps in (4, 20):
                    row = inside("overhead", side=side, network=network, steps=steps, repeats=repeats)
                    ours, theirs = row["tcd_sss"] * 1e3, row["euler_ancestral"] * 1e3
                    with_ = "tiny" if network else "none"
                    print(f"| {name} | {with_} | {steps} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
