"""One canvas of a graph as the frontend saves it: the graph itself, or a subgraph's definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .table import OURS, REGISTRY_ID, WIDGET_TYPES

INPUTS, OUTPUTS = -10, -20
"""The ids by which links inside a subgraph call its own inputs and outputs."""
FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
GAP, WIDTH, HEIGHT = 40, 270, 170
"""Size of new nodes, in pixels."""

Entry = dict[str, Any]


class Scope:
    """`data` is changed in place. `used`: the node ids of the whole file, which new ones must not repeat."""

    def __init__(self, data: Entry, used: set[int], path: str = "") -> None:
        self.data, self.used, self.path = data, used, path

    @property
    def nodes(self) -> list[Entry]:
        return self.data["nodes"]

    @property
    def key(self) -> Any:
        """The id of the subgraph; None is the graph itself."""
        return self.data["id"] if self.path else None

    def name(self, node: Entry) -> str:
        return f"{self.path}{node['id']}"

    def node(self, node_id: Any) -> Entry | None:
        return next((n for n in self.nodes if n["id"] == node_id), None)

    # Links: rows in graphs of version 0.4, objects in subgraphs and in version 1.

    def get(self, link: Any, name: str) -> Any:
        return link[name] if isinstance(link, dict) else link[FIELDS.index(name)]

    def set(self, link: Any, **to: Any) -> None:
        for name, value in to.items():
            link[name if isinstance(link, dict) else FIELDS.index(name)] = value

    def link(self, link_id: Any) -> Any:
        return next((x for x in self.data["links"] if x and self.get(x, "id") == link_id), None)

    def _new_id(self, last: str, state: str, used: set[int]) -> int:
        holder, key = (self.data["state"], state) if "state" in self.data else (self.data, last)
        new = max([*used, holder.get(key) or 0, 0]) + 1
        holder[key] = new
        return new

    def connect(self, origin_id: Any, slot: int, kind: str, target: Entry, target_slot: int) -> None:
        links = self.data["links"]
        number = self._new_id("last_link_id", "lastLinkId", {self.get(x, "id") for x in links if x})
        row = [number, origin_id, slot, target["id"], target_slot, kind]
        objects = isinstance(links[0], dict) if links else "state" in self.data
        links.append(dict(zip(FIELDS, row, strict=True)) if objects else row)
        outgoing = self._outgoing(origin_id, slot)
        if outgoing is not None:
            outgoing.append(number)
        target["inputs"][target_slot]["link"] = number

    def move_origin(self, link_id: Any, origin_id: Any, slot: int) -> None:
        """The link begins elsewhere; what it came from no longer counts it."""
        link = self.link(link_id)
        if link is None:
            return
        old = self._outgoing(self.get(link, "origin_id"), self.get(link, "origin_slot"))
        if old is not None and link_id in old:
            old.remove(link_id)
        self.set(link, origin_id=origin_id, origin_slot=slot)
        new = self._outgoing(origin_id, slot)
        if new is not None and link_id not in new:
            new.append(link_id)

    def _outgoing(self, origin_id: Any, slot: int) -> list[Any] | None:
        if origin_id == INPUTS:
            return self.data["inputs"][slot].setdefault("linkIds", [])
        node = self.node(origin_id)
        if node is None or slot >= len(node.get("outputs") or []):
            return None
        entry = node["outputs"][slot]
        if entry.get("links") is None:
            entry["links"] = []
        return entry["links"]

    def move_target(self, link_id: Any, node: Entry, slot: int) -> None:
        """The link ends at this input instead."""
        link = self.link(link_id)
        if link is not None:
            self.set(link, target_id=node["id"], target_slot=slot)
            node["inputs"][slot]["link"] = link_id

    def remove(self, link_id: Any) -> None:
        link = self.link(link_id)
        if link is None:
            return
        target = self.node(self.get(link, "target_id"))
        for entry in (target or {}).get("inputs") or []:
            if entry.get("link") == link_id:
                entry["link"] = None
        if self.get(link, "target_id") == OUTPUTS:
            self.data["outputs"][self.get(link, "target_slot")].get("linkIds", []).remove(link_id)
        old = self._outgoing(self.get(link, "origin_id"), self.get(link, "origin_slot"))
        if old is not None and link_id in old:
            old.remove(link_id)
        self.data["links"].remove(link)

    def remove_input(self, node: Entry, slot: int) -> None:
        """Takes an input from a node; the links to those behind it follow."""
        if node["inputs"][slot].get("link") is not None:
            self.remove(node["inputs"][slot]["link"])
        del node["inputs"][slot]
        for link in self.data["links"]:
            if link and self.get(link, "target_id") == node["id"] and self.get(link, "target_slot") > slot:
                self.set(link, target_slot=self.get(link, "target_slot") - 1)

    def remove_own_input(self, slot: int) -> None:
        """Takes an input that nothing inside is linked to from the subgraph."""
        del self.data["inputs"][slot]
        for link in self.data["links"]:
            if self.get(link, "origin_id") == INPUTS and self.get(link, "origin_slot") > slot:
                self.set(link, origin_slot=self.get(link, "origin_slot") - 1)

    def become(self, node: Entry, kind: str, widgets: Mapping[str, Any]) -> None:
        """The node is one of ours now, without connections; place, size, order, mode and colour stay."""
        for key in ("title", "widgets_values_named", "showAdvanced"):
            node.pop(key, None)
        ours = OURS[kind]
        node["type"] = kind
        node["properties"] = {"cnr_id": REGISTRY_ID, "Node name for S&R": kind}
        node["inputs"] = [{"name": k, "type": t, "link": None} for k, t in ours.connections.items()] + [
            {"name": k, "type": WIDGET_TYPES[k], "widget": {"name": k}, "link": None} for k in ours.widgets
        ]
        node["outputs"] = [{"name": k, "type": t, "links": []} for k, t in ours.outputs.items()]
        node["widgets_values"] = [widgets[k] for k in ours.widgets]

    def add(self, kind: str, widgets: Mapping[str, Any], beside: Entry, above: bool = False) -> Entry:
        """A new node under (or above) another, in its groups, run in its turn and muted like it."""
        number = self._new_id("last_node_id", "lastNodeId", self.used)
        self.used.add(number)
        x, y = _pair(beside.get("pos"), [0, 0])
        width, height = _pair(beside.get("size"), [300, 130])
        box = [x, y - HEIGHT - GAP if above else y + height + GAP, max(width, WIDTH), HEIGHT]
        if not self._fits_into_groups(beside, box):
            box[:2] = [
                x + GAP / 2,
                y + GAP / 2,
            ]  # on top of the other: outside of its group it would not be muted
        node: Entry = {
            "id": number,
            "type": kind,
            "pos": box[:2],
            "size": box[2:],
            "flags": {},
            "order": beside.get("order", 0),
            "mode": beside.get("mode", 0),
        }
        self.become(node, kind, widgets)
        self.nodes.append(node)
        return node

    def _fits_into_groups(self, beside: Entry, box: list[float]) -> bool:
        """Whether the groups around a node can hold a new one too; they are made larger where need be.

        A group acts on the nodes whose middle it holds: none other may come into it."""
        middles = {n["id"]: _middle(n) for n in self.nodes}
        larger: list[tuple[Entry, list[float]]] = []
        for group in self.data.get("groups") or []:
            old: list[float] = group.get("bounding") or [0.0] * 4
            if _holds(old, middles[beside["id"]]):
                new = _around(old, [box[0] - GAP / 4, box[1] - GAP, box[2] + GAP / 2, box[3] + 1.25 * GAP])
                if any(_holds(new, middle) and not _holds(old, middle) for middle in middles.values()):
                    return False
                larger.append((group, new))
        for group, new in larger:
            group["bounding"] = new
        return True


def _middle(node: Entry) -> tuple[float, float]:
    (x, y), (width, height) = _pair(node.get("pos"), [0, 0]), _pair(node.get("size"), [300, 130])
    return x + width / 2, y + height / 2


def _holds(box: list[float], point: tuple[float, float]) -> bool:
    """Boxes are [x, y, width, height]."""
    return all(box[i] <= point[i] < box[i] + box[i + 2] for i in range(2))


def _around(first: list[float], second: list[float]) -> list[float]:
    """The least box that holds both."""
    low = [min(first[i], second[i]) for i in range(2)]
    high = [max(first[i] + first[i + 2], second[i] + second[i + 2]) for i in range(2)]
    return [*low, high[0] - low[0], high[1] - low[1]]


def _pair(value: Any, default: list[float]) -> list[float]:
    """[x, y], which old graphs save as {"0": x, "1": y}."""
    if isinstance(value, dict):
        return [value.get("0", default[0]), value.get("1", default[1])]
    return [value[0], value[1]] if isinstance(value, list) and len(value) > 1 else default


def scopes(data: Entry) -> Iterator[Scope]:
    """The graph and every subgraph in it, at whatever depth: their definitions stand side by side."""
    definitions = [x for x in (data.get("definitions") or {}).get("subgraphs") or [] if "nodes" in x]
    used = {n["id"] for part in (data, *definitions) for n in part["nodes"] if isinstance(n["id"], int)}
    yield Scope(data, used)
    for part in definitions:
        yield Scope(part, used, f"{part.get('name') or part['id']}: ")
