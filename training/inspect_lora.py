"""`tcd inspect`: what a LoRA file is."""

from __future__ import annotations

import argparse
from pathlib import Path

from .formats import open_lora
from .lora_report import lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="LoRA file (.safetensors)")
    parser.add_argument("--layers", action="store_true", help="list every layer with its rank and alpha")
    parser.add_argument("--metadata", action="store_true", help="show the file's metadata")


def run(args: argparse.Namespace) -> int:
    file = open_lora(args.file)
    for label, text in lines(file):
        print(f"{label + ':':<16}{text}")
    if args.layers:
        print()
        for x in file.layers:
            alpha = "no alpha" if x.alpha is None else f"alpha {x.alpha:g}"
            print(f"{x.part:<5}{x.name}  rank {x.rank}  {alpha}")
    if args.metadata:
        print()
        for name, value in sorted(file.metadata.items()):
            print(f"{name} = {value}")
    return 0
