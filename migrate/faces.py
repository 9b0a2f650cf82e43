"""Where a saved graph keeps a widget's value: on its node, on a primitive node, or on a subgraph's face.

The frontend writes a widget that a subgraph shows on its face (promoted) in two ways. The older is an
entry [node, widget] of the instance's property `proxyWidgets`, of a node in a subgraph further inside also
[node, widget, innermost node] or [node, "innermost node: widget"]. The newer is an input of the subgraph
that is linked to the widget; among the entries it is ["-1", input]. The instance's `widgets_values` hold the
values, in the order of the entries, or without entries in the order of such inputs; where there is none, the
widget's own value counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from .remarks import Remark, gone
from .scope import INPUTS, Entry, Scope, scopes

PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"
OWN_INPUT = "-1"
"""The node of an entry of `proxyWidgets` that is an input of the subgraph itself."""
PREFIXES = re.compile(r"((?:\s*\d+\s*:\s*)*)(.+)", re.DOTALL)

Moved = Mapping[str, tuple[int, str] | None]
"""By widget of a replaced node: the node and the widget that have its value now, or None."""


class Place(NamedTuple):
    """One place in the file that says a widget's value."""

    holder: Any  # a list or a dict
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    def set(self, value: Any) -> None:
        self.holder[self.key] = value


class Shown(NamedTuple):
    """One entry of `proxyWidgets`, or of what else names widgets."""

    node: str
    widget: str
    innermost: str | None = None


def _shown(entry: Any) -> Shown:
    prefixes, widget = PREFIXES.fullmatch(str(entry[1])).groups()  # pyright: ignore[reportOptionalMemberAccess]
    ids = re.findall(r"\d+", prefixes)
    return Shown(str(entry[0]), widget, ids[-1] if ids else str(entry[2]) if len(entry) > 2 else None)


def _written(entry: list[Any], to: Shown) -> list[Any]:
    """The entry in the form that it had, of another widget."""
    prefixes, _ = PREFIXES.fullmatch(str(entry[1])).groups()  # pyright: ignore[reportOptionalMemberAccess]
    ids = re.findall(r"\d+", prefixes)
    name = "".join(f"{x}: " for x in [*ids[:-1], to.innermost or ids[-1]]) + to.widget if ids else to.widget
    return [to.node, name, *([to.innermost] if len(entry) > 2 else [])]


def entries(instance: Entry) -> list[list[Any]]:
    """Of `proxyWidgets`, which some files hold as text; an entry of another form is left out."""
    held = (instance.get("properties") or {}).get("proxyWidgets") or []
    try:
        held = json.loads(held) if isinstance(held, str) else held
    except ValueError:
        return []
    return [x for x in held if isinstance(x, list) and len(x) > 1 and str(x[1])]


class Faces:
    """The subgraphs of a file, where each is used, and what each instance shows on its face."""

    def __init__(self, data: Entry) -> None:
        self.data = data
        self.scopes = list(scopes(data))
        self.root = self.scopes[0]
        self.definitions = {scope.data["id"]: scope for scope in self.scopes[1:]}
        self.moved: dict[tuple[Any, str], Moved] = {}
        self._promoted = {key: self._widget_inputs(scope) for key, scope in self.definitions.items()}
        self._linked = {
            key: {x["name"] for x in scope.data.get("inputs") or [] if x.get("linkIds")}
            for key, scope in self.definitions.items()
        }

    def instances(self, scope: Scope) -> Iterator[tuple[Scope, Entry]]:
        """Where a subgraph is used: (the canvas, its node there)."""
        if scope is not self.root:
            for outer in self.scopes:
                yield from ((outer, node) for node in outer.nodes if node["type"] == scope.data["id"])

    def kind(self, node: Entry) -> str:
        """The node's type, of a subgraph its name."""
        inner = self.definitions.get(node["type"])
        return node["type"] if inner is None else f"subgraph {inner.data.get('name') or node['type']}"

    def origin(self, scope: Scope, link_id: Any) -> tuple[Any, int] | None:
        """(node id, output) where a link begins, through Reroutes; None where one of them begins nowhere."""
        seen: set[Any] = set()
        while (link := scope.link(link_id)) is not None and link_id not in seen:
            seen.add(link_id)
            node = scope.node(scope.get(link, "origin_id"))
            if node is None or node["type"] != REROUTE:
                return scope.get(link, "origin_id"), scope.get(link, "origin_slot")
            link_id = next((x.get("link") for x in node.get("inputs") or []), None)
        return None

    # Values

    def places(self, scope: Scope, node: Entry, name: str, index: int) -> list[Place] | None:
        """Finds every place that says the value of a widget, number `index` of its node.

        In a subgraph that is used several times there is one for each use. None if a node computes it."""
        slot = next((x for x in node.get("inputs") or [] if x.get("name") == name), None)
        if slot is None or slot.get("link") is None:
            return [*_own(node, name, index), *self._on_faces(scope, str(node["id"]), name)]
        begin = self.origin(scope, slot["link"])
        if begin is None:
            return _own(node, name, index)
        if begin[0] == INPUTS:
            return self._of_input(scope, begin[1], _own(node, name, index))
        source = scope.node(begin[0])
        return _own(source, "value", 0) if source is not None and source["type"] == PRIMITIVE else None

    def _of_input(self, scope: Scope, slot: int, own: list[Place]) -> list[Place] | None:
        """Of a widget inside that is linked to an input of its subgraph."""
        name = scope.data["inputs"][slot]["name"]
        found: list[Place] = []
        for outer, instance in self.instances(scope):
            values = self.places(outer, instance, name, self._index(scope, instance, name))
            if values is None:
                return None
            found += values or own
        return found or own

    def _index(self, scope: Scope, instance: Entry, name: str) -> int:
        """The place of an input's value among those of the instance; behind them if it has none."""
        shown = [str(x[1]) if str(x[0]) == OWN_INPUT else None for x in entries(instance)]
        shown = shown or self._promoted[scope.data["id"]]
        return shown.index(name) if name in shown else len(instance.get("widgets_values") or [])

    def _on_faces(self, scope: Scope, node: str, widget: str) -> list[Place]:
        found: list[Place] = []
        for outer, instance in self.instances(scope):
            for index, entry in enumerate(entries(instance)):
                shown = _shown(entry)
                if (shown.node, shown.widget) == (node, widget):
                    found += _own(instance, widget, index)
                    found += self._on_faces(outer, str(instance["id"]), widget)
        return found

    def _widget_inputs(self, scope: Scope) -> list[str]:
        """The inputs of a subgraph that lead to a widget inside, in order."""
        inputs = scope.data.get("inputs") or []
        return [x["name"] for x in inputs if self._leads_to_widget(scope, x)]

    def _leads_to_widget(self, scope: Scope, entry: Entry) -> bool:
        link = scope.link(next(iter(entry.get("linkIds") or []), None))
        node = None if link is None else scope.node(scope.get(link, "target_id"))
        if node is None or scope.get(link, "target_slot") >= len(node.get("inputs") or []):
            return False
        slot = node["inputs"][scope.get(link, "target_slot")]
        inner = self.definitions.get(node["type"])
        further = (
            next((x for x in inner.data["inputs"] if x["name"] == slot["name"]), None) if inner else None
        )
        return bool(slot.get("widget") or (inner and further and self._leads_to_widget(inner, further)))

    # After nodes were replaced

    def move(self, scope: Scope, node: Entry, widgets: Moved) -> None:
        """Remembers what became of the widgets of a node that is replaced."""
        self.moved[scope.key, str(node["id"])] = widgets

    def follow(self) -> list[Remark]:
        """Lets everything that names a widget of a replaced node name the one that has its value now."""
        remarks: list[Remark] = []
        before = {id(node): entries(node) for scope in self.scopes for node in scope.nodes}
        for scope in self.scopes:
            for node in scope.nodes:
                inner = self.definitions.get(node["type"])
                if inner is not None and before[id(node)]:
                    lost = self._rewrite(inner, node, before)
                    remarks += [gone(scope.name(node), self.kind(node), name) for name in lost]
        for (key, _), widgets in self.moved.items():
            for old, to in widgets.items():
                if to is not None and to[1] != old and key is not None:
                    self._label(self.definitions[key], to[0], to[1], old, to[1])
        while (dead := next(self._dead_inputs(), None)) is not None:
            remarks += self._drop(*dead)
        self._follow_in_app(before)
        return remarks

    def _rewrite(self, inner: Scope, instance: Entry, before: dict[int, list[list[Any]]]) -> list[str]:
        """The entries of one instance; returns the widgets that are lost."""
        kept: list[list[Any]] = []
        lost: list[int] = []
        for index, entry in enumerate(before[id(instance)]):
            to = self._target(inner, _shown(entry), before)
            if to is None:
                lost.append(index)
            else:
                kept.append(entry if to == _shown(entry) else _written(entry, to))
        instance["properties"]["proxyWidgets"] = kept
        names = [_shown(before[id(instance)][index]).widget for index in lost]
        for index in reversed(lost):
            _forget(instance, index)
        if kept != before[id(instance)]:
            instance.pop("widgets_values_named", None)  # by names that are no longer right
        return names

    def _target(self, scope: Scope, shown: Shown, before: dict[int, list[list[Any]]]) -> Shown | None:
        """Return what names a widget inside a canvas now; None if the widget is gone."""
        moved = self.moved.get((scope.key, shown.node))
        if moved is not None:
            to = moved.get(shown.widget)
            return None if to is None else Shown(str(to[0]), to[1], str(to[0]) if shown.innermost else None)
        node = next((x for x in scope.nodes if str(x["id"]) == shown.node), None)
        inner = None if node is None else self.definitions.get(node["type"])
        if node is None or inner is None:
            return shown
        for entry in before[id(node)]:
            here = _shown(entry)
            if here.widget == shown.widget and shown.innermost in (None, here.innermost or here.node):
                to = self._target(inner, here, before)
                innermost = to and shown.innermost and (to.innermost or to.node)
                return to and Shown(shown.node, to.widget, innermost)
        ends = self.moved.get((inner.key, shown.innermost or ""), {})
        to = next((x for x in ends.values() if x), None)
        return shown._replace(innermost=str(to[0])) if to else shown

    def _label(self, scope: Scope, node: int, widget: str, old: str, new: str) -> None:
        """Lets an input that leads to a widget be called as the widget is now, unless the user named it."""
        target = scope.node(node)
        slot = next((x for x in (target or {}).get("inputs") or [] if x["name"] == widget), {})
        link = scope.link(slot.get("link"))
        if link is None or scope.get(link, "origin_id") != INPUTS:
            return
        entry = scope.data["inputs"][scope.get(link, "origin_slot")]
        if entry["name"] != old or entry.get("label") not in (None, old):
            return
        entry["label"] = new
        for outer, instance in self.instances(scope):
            for x in instance.get("inputs") or []:
                if x.get("name") == old and x.get("label") in (None, old):
                    x["label"] = new
            self._label(outer, instance["id"], old, old, new)

    def _dead_inputs(self) -> Iterator[tuple[Scope, int]]:
        """Inputs of subgraphs that led to a widget and now lead nowhere."""
        for key, scope in self.definitions.items():
            for index, entry in enumerate(scope.data.get("inputs") or []):
                if not entry.get("linkIds") and entry["name"] in self._linked[key]:
                    yield scope, index

    def _drop(self, scope: Scope, index: int) -> Iterator[Remark]:
        """Takes an input from a subgraph and from wherever it is used."""
        name = scope.data["inputs"][index]["name"]
        for outer, instance in self.instances(scope):
            place = self._index(scope, instance, name)
            slot = next((i for i, x in enumerate(instance["inputs"]) if x["name"] == name), None)
            if slot is not None:
                outer.remove_input(instance, slot)
            _forget(instance, place)
            (instance.get("widgets_values_named") or {}).pop(name, None)
            if held := entries(instance):
                instance["properties"]["proxyWidgets"] = [
                    x for x in held if [str(x[0]), x[1]] != [OWN_INPUT, name]
                ]
            yield gone(outer.name(instance), self.kind(instance), name)
        promoted = self._promoted[scope.data["id"]]
        if name in promoted:
            promoted.remove(name)
        scope.remove_own_input(index)

    def _follow_in_app(self, before: dict[int, list[list[Any]]]) -> None:
        """The widgets that the page shows beside the graph: those of its app mode, and favourites."""
        extra = self.data.get("extra") or {}
        app = extra.get("linearData") or {}
        if app.get("inputs"):
            app["inputs"] = [y for x in app["inputs"] if (y := self._in_app(x, before)) is not None]
        favourites = extra.get("favoritedWidgets") or {}
        kept: list[Any] = []
        for entry in favourites.get("favorites") or []:
            *graph, node = str(entry.get("nodeLocatorId")).split(":")
            scope = self.definitions.get(graph[0]) if graph else self.root
            to = scope and self._target(scope, Shown(node, str(entry.get("widgetName"))), before)
            if to is not None:
                kept.append({**entry, "nodeLocatorId": ":".join([*graph, to.node]), "widgetName": to.widget})
        if kept or "favorites" in favourites:
            favourites["favorites"] = kept

    def _in_app(self, entry: list[Any], before: dict[int, list[list[Any]]]) -> list[Any] | None:
        """An entry [node, widget, ...]; the node may be "graph:node:widget", or be inside of a subgraph."""
        parts = str(entry[0]).split(":")
        if len(parts) == 3:
            graph, node, widget = parts[0], parts[1], unquote(parts[2])
            scopes = [self.definitions.get(graph, self.root)]
        else:
            graph, node, widget = None, str(entry[0]), str(entry[1])
            scopes = [x for x in self.scopes if (x.key, node) in self.moved][:1] or [self.root]
        to = self._target(scopes[0], Shown(node, widget), before)
        if to is None or to == Shown(node, widget):
            return None if to is None else entry
        if graph is not None:
            return [f"{graph}:{to.node}:{quote(to.widget, safe='')}", to.widget, *entry[2:]]
        return [int(to.node) if isinstance(entry[0], int) else to.node, to.widget, *entry[2:]]


def _own(node: Entry, name: str, index: int) -> list[Place]:
    """The places on the node itself."""
    held, named = node.get("widgets_values"), node.get("widgets_values_named")
    found: list[Place] = []
    if isinstance(held, list) and len(held) > index and held[index] is not None:
        found.append(Place(held, index))
    found += [Place(x, name) for x in (held, named) if isinstance(x, dict) and name in x]
    return found


def _forget(instance: Entry, index: int) -> None:
    held = instance.get("widgets_values")
    if isinstance(held, list) and len(held) > index:
        del held[index]
