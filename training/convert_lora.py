"""`tcd convert`: a LoRA file in another key format."""

from __future__ import annotations

import argparse
from pathlib import Path

from .checkpoint import save_tensors
from .formats import FORMATS, convert, open_lora
from .lora_layer import by_output
from .lora_report import key_format
from .lora_settings import has_settings

DORA = (
    "note: this is a DoRA of output channels. peft, LyCORIS and TCD LoRA Loader compute it as it was "
    "trained; ComfyUI's own LoRA loader divides by the norm of the weight alone, which is some percent off"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", type=Path, help="LoRA file of any format (.safetensors)")
    parser.add_argument("target", metavar="OUT", type=Path, help="file to write (.safetensors)")
    listed = "; ".join(f"{name}: {fmt.title}" for name, fmt in FORMATS.items())
    parser.add_argument("--format", choices=list(FORMATS), required=True, help=listed.replace("%", "%%"))
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(args: argparse.Namespace) -> int:
    if args.target.suffix != ".safetensors":
        raise ValueError(
            f"{args.target}: only safetensors are written; name it {args.target.stem}.safetensors"
        )
    if args.target.exists() and not args.force:
        raise ValueError(f"{args.target} exists; choose another name, or --force to overwrite it")
    if not FORMATS[args.format].alpha and has_settings(args.target):
        raise ValueError(
            f"{args.target}: the adapter_config.json in its folder would be taken for its settings, and the "
            "scale, which goes into the weights, would count twice; write it into another folder"
        )
    file = open_lora(args.source)
    tensors, metadata = convert(file, args.format)
    save_tensors(args.target, tensors, metadata)
    if any(by_output(x.tensors["dora_scale"]) for x in file.layers if "dora_scale" in x.tensors):
        print(DORA)
    print(f"{args.target}: {len(file.layers)} layers, {key_format(file)} -> {FORMATS[args.format].title}")
    return 0
