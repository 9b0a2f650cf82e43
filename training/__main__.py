"""`python -m comfyui_tcd.training`: the same as `tcd train`, with the same exit statuses."""

import argparse
import sys

from .cli import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m comfyui_tcd.training")
parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
add_arguments(parser)
args = parser.parse_args()
try:
    status = run(args)
except KeyboardInterrupt:
    sys.stderr.write("tcd: interrupted\n")
    status = 130
except (ValueError, OSError, MemoryError) as error:  # what a user can set right
    if args.traceback:
        raise
    sys.stderr.write(f"tcd: error: {error}\n")
    status = 2
raise SystemExit(status)
