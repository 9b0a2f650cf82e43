"""`tcd migrate-workflow`: a graph made with another TCD pack, rewritten for this one."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..training.text import read_text
from .api import is_api, migrate_api
from .remarks import Remark
from .ui import is_ui, migrate_ui


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a graph as saved or exported by ComfyUI (JSON)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write; else NAME-migrated.json beside it"
    )
    where.add_argument("--in-place", action="store_true", help="write over the file itself")


def run(args: argparse.Namespace) -> int:
    """0: done, or nothing to do; 1: something is left to do by hand."""
    text = _read(args.file)
    data = _parse(args.file, text)
    target = _target(args)
    try:
        remarks = migrate(data)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{args.file} holds a graph that is not as ComfyUI saves or exports it ({error!r}). Nothing was "
            "written. Open it in ComfyUI, save it, and run this command on what that made"
        ) from error
    by_hand = sum(remark.by_hand for remark in remarks)
    if data == _parse(args.file, text):
        print(
            f"{args.file}: nothing to change" + f" by this command, {by_hand} to do by hand" * bool(by_hand)
        )
    else:
        _write(target, data, compact="\n" not in text.strip())
        print(f"{target}: written")
    for remark in remarks:
        print(remark, file=sys.stderr if remark.by_hand else sys.stdout)
    return int(by_hand > 0)


def migrate(data: Any) -> list[Remark]:
    """Rewrites the graphs of either format in `data` in place and says what became of what."""
    return [
        remark._replace(graph=where)
        for where, graph in graphs(data)
        for remark in (migrate_ui(graph) if is_ui(graph) else migrate_api(graph))
    ]


def graphs(data: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(where, graph) of every graph in a file: itself, or in what the host sends and keeps.

    That is the body of a POST to /prompt, with the page's graph in its extra_data, an entry of /history or of
    /queue, and the texts of a picture as JSON. A saved graph may hold another, such as the last prompt, in
    its extra; its group nodes, which are there too, are no graphs of their own."""
    if is_ui(data):
        yield where, data
        kept = {k: v for k, v in (data.get("extra") or {}).items() if k != "groupNodes"}
        yield from graphs(kept, f"{where}.extra" if where else "extra") if kept else ()
    elif is_api(data):
        yield where, data
    elif isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from graphs(value, f"{where}.{key}" if where else str(key))


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except ValueError as error:
        raise ValueError(
            f"{error}. A picture with a graph in it: open it in ComfyUI and save the graph as JSON "
            "(Workflow, Export)"
        ) from error


def _parse(file: Path, text: str) -> Any:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from None
    if next(graphs(data), None) is None:
        raise ValueError(
            f"{file} is no graph of ComfyUI and holds none: neither nodes and links, as it saves them, nor "
            "nodes by id with class_type and inputs, as it exports them for the API"
        )
    return data


def _target(args: argparse.Namespace) -> Path:
    """Where to write. ValueError rather than over a file that was not named for it."""
    if args.in_place:
        return args.file
    if args.out is not None:
        if args.out.exists() and args.out.samefile(args.file):
            raise ValueError(f"--out {args.out} is the file itself; say --in-place to write over it")
        return args.out
    target: Path = args.file.with_name(f"{args.file.stem}-migrated.json")
    if target.exists():
        raise ValueError(f"{target} exists; name another file with --out")
    return target


def _write(target: Path, data: Any, compact: bool) -> None:
    """Whole or not at all."""
    text = json.dumps(data, ensure_ascii=False, indent=None if compact else 2)
    partial = target.with_name(target.name + ".tmp")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, target)
