"""A workflow as it is declared, and the file of UI format 0.4 that the frontend would have saved."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workflow_files import UPLOAD, Info, Json, inputs, is_widget, kind, options, widgets

CORE, CORE_VERSION = "comfy-core", "0.3.64"
OURS = "trajectory-consistency"
OTHERS = {"IPAdapter": ("comfyui_ipadapter_plus", "2.0.0")}
TITLE, SLOT, WIDGET, GAP, MARGIN, HEAD = 30, 20, 24, 60, 20, 70
WIDTH = {
    "CLIPTextEncode": 400,
    "SaveImage": 420,
    "PreviewImage": 320,
    "LoadImage": 320,
    "MarkdownNote": 400,
    "TCD_CompareGrid": 460,
    "TCD_Distill": 460,
}
MORE = {
    "TCD_CompareGrid": 360,
    "TCD_Distill": 560,
    "TCD_KSampler": 140,
    "TCD_Sampler": 140,
    "TCD_Settings": 140,
    "TCD_LoraLoader": 182,
}
"""Pixels for the drawings and texts that these nodes show."""
SHOWN = ("SaveImage", "PreviewImage", "LoadImage")
"""Nodes with a picture; Nodes 2.0 makes it as wide as the node, and writes its size below."""
GROWS = {
    *("TCD_LoraLoader", "TCD_KSampler", "TCD_CompareGrid", "TCD_Distill"),
    *("KSampler", "SamplerCustom", "SaveImage", "PreviewImage"),
}
"""Nodes that the page makes higher for what a run shows, however much that is: each is last in its column."""
COLORS = {"model": "#3f789e", "input": "#8a5", "prompt": "#b58b2a", "sample": "#a1309b", "image": "#6b7a8f"}


class Model(NamedTuple):
    """A published file: its name in the loader, where it is, and the folder of models/."""

    name: str
    url: str
    directory: str

    def as_json(self) -> Json:
        return self._asdict()


class Output(NamedTuple):
    node: Node
    slot: int
    type: str


@dataclass
class Node:
    id: int
    type: str
    title: str
    inputs: list[Json]
    outputs: list[Json]
    values: list[Any]
    properties: Json
    pos: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Output:
        """The output of this name. KeyError lists the names."""
        names = [output["name"] for output in self.outputs]
        if name not in names:
            raise KeyError(f"{self.type} has no output {name!r}, but {names}")
        slot = names.index(name)
        return Output(self, slot, self.outputs[slot]["type"])


@dataclass
class Group:
    title: str
    color: str
    nodes: list[Node] = field(default_factory=list)
    bounding: tuple[int, int, int, int] = (0, 0, 0, 0)


class Graph:
    """Nodes in groups; a group is a column, and the columns go from left to right."""

    def __init__(self, name: str, info: Info, version: str) -> None:
        self.name, self.info, self.version = name, info, version
        self.nodes: list[Node] = []
        self.groups: list[Group] = []
        self.links: list[list[Any]] = []

    @contextmanager
    def group(self, title: str, color: str) -> Generator[None]:
        self.groups.append(Group(title, COLORS[color]))
        yield

    def node(self, type_: str, title: str = "", /, models: tuple[Model, ...] = (), **given: Any) -> Node:
        """An output of another node is a link, any other value a widget's. KeyError for unknown names."""
        known = dict(inputs(self.info, type_))
        if unknown := set(given) - set(known):
            raise KeyError(f"{type_} has no {sorted(unknown)}, but {list(known)}")
        # Sockets first, then the inputs of widgets, as the frontend saves them.
        names = sorted(known, key=lambda name: is_widget(known[name]))
        sockets: list[Json] = []
        for name in names:
            socket: Json = {"name": name, "type": kind(known[name])}
            if is_widget(known[name]):
                socket["widget"] = {"name": name}
            sockets.append({**socket, "link": None})
        declared = zip(self.info[type_]["output_name"], self.info[type_]["output"], strict=True)
        outputs: list[Json] = [{"name": name, "type": kind([t]), "links": []} for name, t in declared]
        node = self._add(type_, title, sockets, outputs, self._values(type_, given), models)
        for slot, socket in enumerate(sockets):
            source = given.get(socket["name"])
            if isinstance(source, Output):
                self._link(source, node, slot, socket)
        return node

    def note(self, text: str, title: str = "Note") -> Node:
        return self._add("MarkdownNote", title, [], [], [text], ())

    def _add(
        self,
        type_: str,
        title: str,
        sockets: list[Json],
        outputs: list[Json],
        given: list[Any],
        models: tuple[Model, ...],
    ) -> Node:
        pack, version = CORE, CORE_VERSION
        if type_.startswith("TCD_"):
            pack, version = OURS, self.version
        for start, other in OTHERS.items():
            pack, version = other if type_.startswith(start) else (pack, version)
        properties: Json = {"cnr_id": pack, "ver": version, "Node name for S&R": type_}
        if models:
            properties["models"] = [model.as_json() for model in models]
        node = Node(len(self.nodes) + 1, type_, title, sockets, outputs, given, properties)
        self.nodes.append(node)
        self.groups[-1].nodes.append(node)
        return node

    def _values(self, type_: str, given: dict[str, Any]) -> list[Any]:
        found: list[Any] = []
        for name, spec, after in widgets(self.info, type_):
            value = given.get(name, options(spec).get("default"))
            if value is None or isinstance(value, Output):
                raise KeyError(f"{type_}: {name} has no default, give a value")
            found += [value, *([UPLOAD if options(spec).get("image_upload") else "randomize"] * after)]
        return found

    def _link(self, source: Output, node: Node, slot: int, socket: Json) -> None:
        number = len(self.links) + 1
        self.links.append([number, source.node.id, source.slot, node.id, slot, source.type])
        source.node.outputs[source.slot]["links"].append(number)
        socket["link"] = number

    def place(self) -> None:
        """Positions and sizes, and the groups around them."""
        x = 0
        for group in self.groups:
            width = max(_width(node) for node in group.nodes)
            y = HEAD
            for node in group.nodes:
                node.pos, node.size = (x + MARGIN, y), (width, _height(node, width))
                y += node.size[1] + GAP
            group.bounding = (x, 0, width + 2 * MARGIN, y - GAP + MARGIN)
            x += group.bounding[2] + 40

    def as_json(self) -> Json:
        self.place()
        nodes = [
            {
                "id": node.id,
                "type": node.type,
                "pos": list(node.pos),
                "size": list(node.size),
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": node.inputs,
                "outputs": node.outputs,
                **({"title": node.title} if node.title else {}),
                "properties": node.properties,
                "widgets_values": node.values,
            }
            for order, node in enumerate(self.nodes)
        ]
        groups = [
            {"id": i, "title": g.title, "bounding": list(g.bounding), "color": g.color, "font_size": 24}
            for i, g in enumerate(self.groups, start=1)
        ]
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{OURS}/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": nodes,
            "links": self.links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [60, 60]}},
            "version": 0.4,
        }


def _width(node: Node) -> int:
    return WIDTH.get(node.type, 330)


def _height(node: Node, width: int) -> int:
    if node.type == "MarkdownNote":
        shown = re.sub(r"\]\([^)]*\)", "", node.values[0])  # without the addresses of links
        lines = sum(max(1, math.ceil(len(line) * 6.2 / width)) for line in shown.split("\n"))
        return max(90, 46 + 17 * lines)
    if node.type == "CLIPTextEncode":
        return 130
    sockets = max(sum("widget" not in socket for socket in node.inputs), len(node.outputs))
    more = width + 30 if node.type in SHOWN else MORE.get(node.type, 0)
    return SLOT * sockets + WIDGET * len(node.values) + 16 + more
