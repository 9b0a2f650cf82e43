"""The nodes as a host describes them, recorded: what names, inputs and texts the help is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).resolve().parent / "nodes.json"
PREFIX = "TCD_"
LINKED = "link"
"""Kind of an input without a widget."""
WIDGETS = {"INT": "int", "FLOAT": "float", "STRING": "string", "COMBO": "combo", "BOOLEAN": "boolean"}
KEPT = ("default", "min", "max", "tooltip")
HOSTS_OWN = ("folder", "lora_name", "prompts_file", "reference_sampler", "reference_scheduler")
"""Lists that hold the host's files and samplers."""

Json = dict[str, Any]


def recorded() -> Json:
    return json.loads(RECORD.read_text("utf-8"))


def trim(info: Json) -> Json:
    """Of `/object_info` our nodes, each with what the help needs; the same in every release of the host."""
    return {name: _node(info[name]) for name in sorted(info) if name.startswith(PREFIX)}


def _node(node: Json) -> Json:
    inputs = {
        name: _input(name, given, group == "optional")
        for group in ("required", "optional")
        for name, given in node["input"].get(group, {}).items()
    }
    tips = node.get("output_tooltips") or [None] * len(node["output"])
    outputs = [
        {"name": name, "type": kind, "tooltip": tip or ""}
        for name, kind, tip in zip(node["output_name"], node["output"], tips, strict=True)
    ]
    return {
        "display_name": node["display_name"],
        "category": node["category"],
        "description": node["description"],
        "inputs": inputs,
        "outputs": outputs,
    }


def _input(name: str, given: list[Any], optional: bool) -> Json:
    options: Json = given[1] if len(given) > 1 else {}
    offered = given[0] if isinstance(given[0], list) else options.get("options")
    declared = "COMBO" if offered is not None else str(given[0])
    kind = WIDGETS.get(declared, LINKED)
    found: Json = {"kind": kind, "type": declared}
    found["name"] = options.get("display_name") or name
    found.update({key: options[key] for key in KEPT if options.get(key) is not None})
    if offered is not None and name not in HOSTS_OWN:
        found["options"] = offered
    if kind == "combo" and name in HOSTS_OWN:
        found.pop("default", None)
    return {**found, "optional": optional, "advanced": bool(options.get("advanced"))}
