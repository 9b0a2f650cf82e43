"""`python -m comfyui_tcd.training`: the same as `tcd train`."""

import argparse

from .cli import add_arguments, run

parser = argparse.ArgumentParser(prog="python -m comfyui_tcd.training")
add_arguments(parser)
raise SystemExit(run(parser.parse_args()))
