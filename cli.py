"""The `tcd` command. A subcommand's module is imported only when that subcommand is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, NamedTuple


class Command(NamedTuple):
    module: str  # inside the pack; offers add_arguments(parser) and run(args) -> exit status
    help: str


COMMANDS: dict[str, Command] = {
    "demo": Command("embedded.demo", "distil a small model before your eyes and compare it with its teacher"),
    "sample": Command("embedded.sample", "pictures of the small model for a prompt, in seconds"),
    "train": Command("training.cli", "distil a TCD LoRA"),
    "inspect": Command("training.inspect_lora", "what a LoRA file is: model, format, rank, settings"),
    "convert": Command("training.convert_lora", "a LoRA file in another key format"),
    "migrate-workflow": Command("migrate.command", "a graph made with another TCD pack, for this one"),
    "reproduce": Command("embedded.reproduce", "the paper's tables and figure on the small model; hours"),
    "embedded": Command("embedded.commands", "make the small model's weights again"),
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            print(f"tcd {version('trajectory-consistency')}")
        except PackageNotFoundError:
            parser.exit(2, 'tcd: error: not installed; run: python -m pip install -e "."\n')
        parser.exit()


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """All subcommands by name and help line; the chosen one with its arguments and its `run`."""
    parser = argparse.ArgumentParser(prog="tcd", description="Trajectory Consistency Distillation.")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    # Without a default, or the subcommand's would overwrite what was given before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help, parents=[common])
        if name == chosen:
            module: ModuleType = import_module(f".{command.module}", __package__)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 wrong input, 130 interrupted, else what the subcommand returns."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((a for a in arguments if not a.startswith("-")), None)  # no option before it takes a value
    try:
        args = _parser(chosen).parse_args(arguments)
        return args.run(args)
    except KeyboardInterrupt:
        print("tcd: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, MemoryError) as error:  # what a user can set right
        if "--traceback" in arguments:
            raise
        print(f"tcd: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
