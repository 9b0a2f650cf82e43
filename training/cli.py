"""`tcd train`: distil a TCD LoRA from the command line."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from . import host_path
from .backbone import Backbone, Cond, fingerprint
from .checkpoint import check_folder
from .config import PRESETS, DistillConfig
from .distill import LORA
from .inputs import check_inputs, inputs_of
from .processes import joined, own_device
from .run import estimate, train
from .shards import read_shards, shards_in
from .text import read_prompts


class Opened(Protocol):
    """A model made ready by one of `MODELS`: its network, and its way to encode prompts."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def preset(self) -> str:
        """The row of settings for a model of its kind."""
        ...

    def encode(self, prompts: list[str]) -> Cond: ...


# Where each kind of model comes from: a module with `open_model(args) -> Opened`, imported only when it is
# asked for.
MODELS = {
    "embedded": ".embedded.opened",
    "comfyui": ".nodes.headless",
    "diffusers": ".training.diffusers_backbone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--embedded",
        action="store_const",
        const="embedded",
        dest="model",
        help="the small model that comes with the pack",
    )
    model.add_argument(
        "--comfyui", type=Path, help="ComfyUI's folder: a checkpoint of any kind that it loads, no server"
    )
    model.add_argument(
        "--diffusers", type=Path, help="folder of a diffusers pipeline: Stable Diffusion 1.5, 2.x or SDXL"
    )
    parser.add_argument("--checkpoint", type=Path, help="with --comfyui: the teacher (.safetensors)")
    parser.add_argument(
        "--weight-dtype",
        choices=("fp8_e4m3fn", "fp8_e5m2"),
        help="with --comfyui: keep the teacher's weights in 8 bits (default: as ComfyUI chooses)",
    )
    size = "of the pictures, in pixels (default: 1024, with --diffusers the model's own)"
    parser.add_argument("--width", type=int, help=size)
    parser.add_argument("--height", type=int, help=size)
    parser.add_argument(
        "--prompts",
        type=Path,
        help="text file, UTF-8 or UTF-16 with its mark, a prompt a line (required but for --embedded)",
    )
    parser.add_argument("--negative", default="", help="the uncond of guidance (default: the empty prompt)")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of latent shards and no other .safetensors, or one such file, as the data.safetensors "
        "of a run of TCD Distill; without it, training is data-free",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="run folder. A stopped run in it goes on, with the same model, prompts, data and settings; with "
        "more --steps a run trains on, if its decay is constant",
    )
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="row of settings to start from (default: of the model)"
    )
    parser.add_argument("--config", type=Path, help="TOML file of settings, over the preset")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings with an estimate, and stop"
    )
    settings = parser.add_argument_group("settings (over preset and file)")
    for f in fields(DistillConfig):
        kind: Any = _flag if isinstance(f.default, bool) else type(f.default)
        settings.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=kind,
            metavar=kind.__name__.strip("_").upper(),
            help=f.metadata["doc"],
        )


def run(args: argparse.Namespace) -> int:
    # What is wrong with the arguments is said before a model is loaded.
    overrides = {f.name: getattr(args, f.name) for f in fields(DistillConfig)}
    choose_model(args)
    usual = args.model if args.model in PRESETS else "sdxl"
    config = DistillConfig.resolve(args.preset or usual, args.config, **overrides)
    check_folder(args.out, "--out")
    texts = texts_of(args)
    shards = None if args.data is None else shards_in(args.data)
    own_device()
    opened: Opened = import_module(MODELS[args.model], __name__.rsplit(".", 2)[0]).open_model(args)
    if args.preset is None:
        config = DistillConfig.resolve(opened.preset, args.config, **overrides)
    prompts = opened.encode(texts)
    if args.dry_run:
        print(config.as_toml(), end="")
        print(f"# {estimate(config, opened.backbone, prompts, pictures=args.data is not None)}")
        return 0
    uncond = opened.encode([args.negative])
    with stoppable(), joined() as crew:
        data = None if shards is None else read_shards(shards)
        teacher, shape = fingerprint(opened.backbone.network), opened.backbone.latent_shape
        inputs = inputs_of(teacher, opened.backbone.schedule, shape, prompts, uncond, data)
        del data  # the run reads them itself
        # Encoded texts may differ by rounding between unlike cards, the texts themselves may not.
        given = {**inputs, "prompts": texts, "negative": args.negative, "settings": config.as_toml()}
        crew.agree({name: json.dumps(value) for name, value in given.items()})
        check_inputs(args.out, inputs, crew)
        outcome = train(
            config,
            opened.backbone,
            prompts,
            uncond,
            args.out,
            shards=shards,
            metadata=opened.metadata,
            crew=crew,
            on_plan=lambda text: print(f"plan: {text}", file=sys.stderr) if crew.first else None,
            on_pairs=Drawing() if crew.first else lambda done, steps: None,
        )
    if not crew.first:
        return 0
    best = "" if outcome.best is None else f", best validation {outcome.best:.4f} at step {outcome.best_step}"
    print(f"done: {outcome.steps} steps, loss {outcome.loss:.5f}{best}: {args.out / LORA}")
    return 0


def choose_model(args: argparse.Namespace) -> None:
    """Set `args.model`, a key of `MODELS`. ValueError for arguments that do not go with it."""
    if args.diffusers is not None:
        args.model = "diffusers"
    if args.comfyui is not None:
        args.model = "comfyui"
        if args.checkpoint is None:
            raise ValueError("--comfyui needs --checkpoint: the file of the teacher")
        host_path.add(args.comfyui)
    elif args.weight_dtype is not None:
        raise ValueError("--weight-dtype needs --comfyui: it is ComfyUI that keeps weights in 8 bits")


def texts_of(args: argparse.Namespace) -> list[str]:
    """Read the prompts. The embedded model may have none, and then draws its own; others need them."""
    if args.prompts is not None:
        return read_prompts(args.prompts, f"--prompts {args.prompts}")
    if args.model != "embedded":
        raise ValueError("--prompts is needed: a text file, a prompt a line")
    return []


class Drawing:
    """Says how far the teacher is with the pairs of the next steps, where that takes long."""

    def __init__(self) -> None:
        self.shown = time.monotonic()

    def __call__(self, done: int, steps: int) -> None:
        now = time.monotonic()
        if now - self.shown >= 10:
            print(f"the teacher draws what comes next: step {done} of {steps}", file=sys.stderr)
            self.shown = now


@contextmanager
def stoppable() -> Generator[None, None, None]:
    """A launcher that ends this process asks for it: as by Ctrl+C, a checkpoint is kept."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} should be true or false")
    return text.lower() == "true"
