"""`tcd embedded ...`: making the shipped weights again."""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path

import torch

from .classifier import CLASSIFIER, train_classifier
from .model import TEACHER
from .teacher import TeacherConfig, train_teacher
from .vae import FILE, train_vae


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    teacher = what.add_parser("train-teacher", help="train the teacher; a stopped run goes on where it was")
    teacher.add_argument("--out", type=Path, default=TEACHER, help="safetensors file to write")
    teacher.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for f in fields(TeacherConfig):
        kind = type(f.default)
        teacher.add_argument(
            f"--{f.name.replace('_', '-')}", type=kind, default=f.default, help=f"default {f.default}"
        )
    vae = what.add_parser(
        "train-vae", help="train the autoencoder; the teacher and every LoRA then have to be made again"
    )
    vae.add_argument("--out", type=Path, default=FILE)
    vae.add_argument("--steps", type=int, default=2500)
    vae.add_argument("--seed", type=int, default=0)
    judge = what.add_parser("train-classifier", help="train the classifier that judges samples")
    judge.add_argument("--out", type=Path, default=CLASSIFIER)
    judge.add_argument("--steps", type=int, default=2500)
    judge.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    if args.what == "train-teacher":
        config = TeacherConfig(**{f.name: getattr(args, f.name) for f in fields(TeacherConfig)})
        train_teacher(config, args.out, device=args.device)
    elif args.what == "train-vae":
        error = train_vae(args.out, steps=args.steps, seed=args.seed)
        print(f"mean error on pictures it has not seen: {error:.1f} of 255 grey levels")
    else:
        for name, value in train_classifier(args.out, steps=args.steps, seed=args.seed).items():
            print(f"{name:24} {100 * value:.1f}% right on pictures it has not seen")
    print(f"{args.out}, {time.monotonic() - began:.0f} s")
    return 0
