"""ComfyUI's workflow files (UI format 0.4) in tests: their widgets, their rules, and their API form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
NOTES = ("MarkdownNote", "Note")
"""Of the frontend alone: the server does not know them."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
CONTROL = ("fixed", "increment", "decrement", "randomize")
UPLOAD = "image"
"""What the upload button of LoadImage leaves among the values."""

Info = dict[str, Any]
Json = dict[str, Any]


def read(path: Path) -> Json:
    return json.loads(path.read_text("utf-8"))


def kind(spec: list[Any]) -> str:
    """Type of an input as `/object_info` gives it; a list of values is a COMBO."""
    return spec[0] if isinstance(spec[0], str) else "COMBO"


def options(spec: list[Any]) -> Json:
    return spec[1] if len(spec) > 1 else {}


def inputs(info: Info, node: str) -> Iterator[tuple[str, list[Any]]]:
    """Name and spec of every input, in the frontend's order."""
    for group in ("required", "optional"):
        yield from info[node]["input"].get(group, {}).items()


def is_widget(spec: list[Any]) -> bool:
    return kind(spec) in WIDGETS and not options(spec).get("forceInput")


def choices(spec: list[Any]) -> list[Any] | None:
    if isinstance(spec[0], list):
        return spec[0]
    return options(spec).get("options") if spec[0] == "COMBO" else None


def widgets(info: Info, node: str) -> Iterator[tuple[str, list[Any], int]]:
    """(name, spec, values that the frontend saves after its own) of every widget in the order of the file."""
    for name, spec in inputs(info, node):
        if is_widget(spec):
            seed = kind(spec) == "INT" and (
                options(spec).get("control_after_generate") or name in ("seed", "noise_seed")
            )
            yield name, spec, int(bool(seed or options(spec).get("image_upload")))


def values(info: Info, node: Json) -> dict[str, Any]:
    """The widgets' values by name. ValueError if there are more or fewer than the node has."""
    left = list(node.get("widgets_values", []))
    found: dict[str, Any] = {}
    for name, _, after in widgets(info, node["type"]):
        if len(left) < 1 + after:
            raise ValueError(f"{node['type']}: no value for {name}")
        found[name] = left.pop(0)
        extra = [left.pop(0) for _ in range(after)]
        if any(value not in (*CONTROL, UPLOAD) for value in extra):
            raise ValueError(f"{node['type']}: {extra} after {name}")
    if left:
        raise ValueError(f"{node['type']}: {left} are values of no widget")
    return found


def to_api(workflow: Json, info: Info) -> Json:
    """The prompt that the frontend would send."""
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: Json = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        given: Json = values(info, node)
        for socket in node["inputs"]:
            if socket["link"] is not None:
                given[socket["name"]] = links[socket["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": given}
    return prompt


def faults(workflow: Json, info: Info) -> list[str]:
    """What of a file does not fit the nodes as `/object_info` describes them."""
    found: list[str] = []
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        if node["type"] not in info:
            found.append(f"{node['type']}: is not known")
            continue
        found += [f"{node['type']}: {text}" for text in _node_faults(node, info)]
    for link in workflow["links"]:
        found += _link_faults(link, nodes)
    return found


def _node_faults(node: Json, info: Info) -> Iterator[str]:
    known = dict(inputs(info, node["type"]))
    sockets = {socket["name"]: socket for socket in node["inputs"]}
    for name, socket in sockets.items():
        if name not in known:
            yield f"has no input {name}"
        elif socket["type"] != kind(known[name]):
            yield f"{name} is {kind(known[name])}, not {socket['type']}"
    for name in info[node["type"]]["input"].get("required", {}):
        linked = name in sockets and sockets[name]["link"] is not None
        if not linked and not is_widget(known[name]):
            yield f"{name} is not connected"
    outputs = [(o["name"], o["type"]) for o in node["outputs"]]
    declared = list(zip(info[node["type"]]["output_name"], info[node["type"]]["output"], strict=True))
    expected = [(name, kind([type_])) for name, type_ in declared]
    # Newer hosts' SaveImage, PreviewImage and SaveLatent return what they take; the page adds that to a file
    # of an older one.
    returned = [(name, kind(known[name])) for name, _ in expected if name in known]
    if outputs != expected and (outputs or returned != expected):
        yield f"outputs are {declared}, not {outputs}"
    try:
        given = values(info, node)
    except ValueError as error:
        yield str(error)
        return
    for name, value in given.items():
        if fault := _value_fault(value, known[name]):
            yield f"{name} {fault}"


def _value_fault(value: Any, spec: list[Any]) -> str | None:
    types: dict[str, Any] = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
    if kind(spec) == "COMBO":
        offered = choices(spec) or []
        return None if not offered or value in offered else f"{value!r} is not one of {offered[:8]}"
    if not isinstance(value, types[kind(spec)]) or (isinstance(value, bool) and kind(spec) != "BOOLEAN"):
        return f"{value!r} is no {kind(spec)}"
    low, high = options(spec).get("min"), options(spec).get("max")
    if (low is not None and value < low) or (high is not None and value > high):
        return f"{value!r} is not between {low} and {high}"
    return None


def _link_faults(link: list[Any], nodes: dict[int, Json]) -> Iterator[str]:
    number, source, out, target, into, type_ = link
    if source not in nodes or target not in nodes:
        yield f"link {number}: joins a node that is not there"
        return
    if out >= len(nodes[source]["outputs"]) or into >= len(nodes[target]["inputs"]):
        yield f"link {number}: joins an output or an input that is not there"
        return
    output = nodes[source]["outputs"][out]
    socket = nodes[target]["inputs"][into]
    if number not in output["links"] or socket["link"] != number:
        yield f"link {number}: its ends do not name it"
    if not output["type"] == socket["type"] == type_:
        yield f"link {number}: joins {output['type']} to {socket['type']} as {type_}"
