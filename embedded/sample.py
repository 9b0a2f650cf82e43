"""`tcd sample`: one prompt to pictures, in seconds."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..training.report import write_png
from .methods import Prompts, sample_student, sample_teacher, with_lora
from .model import WEIGHTS, EmbeddedModel
from .pictures import tile
from .prompts import known_words, parse_all

TCD_LORA = WEIGHTS / "tcd-lora.safetensors"
LCM_LORA = WEIGHTS / "lcm-lora.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"Words that a prompt can hold, separated by commas: {known_words()}"
    parser.add_argument(
        "--prompt", required=True, help='e.g. "happy person, red hair, glasses, night background"'
    )
    parser.add_argument("--steps", type=int, default=4, help="steps (default 4)")
    parser.add_argument(
        "--gamma", type=float, default=0.3, help="0 is deterministic, 1 is LCM's sampler (default 0.3)"
    )
    parser.add_argument("--count", type=int, default=8, help="pictures (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument(
        "--lora", type=Path, default=TCD_LORA, help="LoRA file (default: the shipped TCD LoRA)"
    )
    parser.add_argument(
        "--teacher", action="store_true", help="the teacher by DDIM with guidance instead of a student"
    )
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance of the teacher (default 1.5)")
    parser.add_argument(
        "--out", type=Path, default=Path("sample.png"), help="PNG to write (default sample.png)"
    )
    parser.add_argument("--scale", type=int, default=12, help="screen pixels for each pixel (default 12)")


def run(args: argparse.Namespace) -> int:
    if args.count < 1 or args.scale < 1:
        raise ValueError(f"--count {args.count} and --scale {args.scale} should be at least 1")
    labels = parse_all([args.prompt]).repeat(args.count, axis=0)
    prompts = Prompts.make(labels, args.seed)
    model = EmbeddedModel.load()
    if args.teacher:
        images = sample_teacher(model, prompts, "ddim", args.steps, args.cfg)
    else:
        images = sample_student(with_lora(model, args.lora), prompts, args.steps, args.gamma)
    write_png(args.out, tile(images, min(args.count, 8), args.scale))
    print(f"{args.count} pictures in {args.out}")
    return 0
