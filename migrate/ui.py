"""Graphs as the frontend saves them (version 0.4 and 1), with subgraphs."""

from __future__ import annotations

from typing import Any

from .remarks import Remark, left, renamed, replaced, speaks, stranger, unconnected, unknown
from .scope import INPUTS, OUTPUTS, Entry, Scope, scopes
from .table import NAMES, NEW_NAME, OURS, RULES, SAMPLERS, SELECT, SETTINGS, Rule, values

PRIMITIVE = "PrimitiveNode"


def is_ui(data: Any) -> bool:
    return (
        isinstance(data, dict) and isinstance(data.get("nodes"), list) and isinstance(data.get("links"), list)
    )


def migrate_ui(data: Entry) -> list[Remark]:
    """Rewrites the graph in place."""
    remarks: list[Remark] = []
    for scope in scopes(data):
        chosen = {n["id"]: _widgets(n)[0] for n in scope.nodes if n["type"] == PRIMITIVE and _widgets(n)}
        for node in list(scope.nodes):
            remarks += _migrate(scope, node, chosen)
    return remarks


def _migrate(scope: Scope, node: Entry, chosen: dict[Any, Any]) -> list[Remark]:
    """`chosen`: the values of primitive nodes, as they were before the change."""
    kind, name = node["type"], scope.name(node)
    if kind in RULES:
        return _replace(scope, node, RULES[kind])
    if kind in SAMPLERS or kind == SELECT:
        return _rename(scope, node, chosen)
    if kind != PRIMITIVE and speaks(kind):  # a primitive's value is its consumer's
        held = [v for v in _widgets(node) if isinstance(v, str) and v in NAMES]
        if held:
            return [left(name, kind, held[0])]
    return [unknown(name, kind)] if stranger(kind) else []


def _widgets(node: Entry) -> list[Any]:
    held = node.get("widgets_values") or []
    return list(held.values()) if isinstance(held, dict) else held


def _slot(node: Entry, name: str) -> Entry | None:
    return next((x for x in node.get("inputs") or [] if x.get("name") == name), None)


def _linked(node: Entry, name: str) -> Any:
    """The id of the link that ends at this input, or None."""
    return (_slot(node, name) or {}).get("link")


def _old_widgets(node: Entry, rule: Rule) -> dict[str, Any]:
    held = node.get("widgets_values") or []
    given = held if isinstance(held, dict) else dict(zip(rule.widgets, held, strict=False))
    return {name: given.get(name, default) for name, default in rule.widgets.items()}


def _replace(scope: Scope, node: Entry, rule: Rule) -> list[Remark]:
    name, old = scope.name(node), _old_widgets(node, rule)
    taken = {v for new in rule.new for v in new.takes.values()}
    ends = {x: _linked(node, x) for x in taken | set(rule.widgets)}
    linked = {x for x in rule.widgets if ends[x] is not None}
    for unused in linked - taken:
        scope.remove(ends[unused])
    outputs = [list(x.get("links") or []) for x in node.get("outputs") or []]
    became: list[Entry] = []
    for new, widgets in zip(rule.new, values(rule, old), strict=True):
        if became:
            fresh = scope.add(new.type, widgets, became[-1])
        else:
            fresh = node
            scope.become(node, new.type, widgets)
        became.append(fresh)
        for slot, entry in enumerate(fresh["inputs"]):
            link = ends.get(new.takes.get(entry["name"], ""))
            if link is not None:
                scope.move_target(link, fresh, slot)
    remarks = replaced(name, rule, old, linked)
    for target, links in zip(rule.outputs, outputs, strict=False):
        for link in links:
            if isinstance(target, int):
                scope.move_origin(link, became[target]["id"], 0)
            elif not _pass_on(scope, link, ends.get(target), became[-1], old):
                scope.remove(link)
                remarks.append(unconnected(name, rule.old))
    return remarks


def _pass_on(scope: Scope, link: Any, source: Any, beside: Entry, old: dict[str, Any]) -> bool:
    """The link begins where the link `source` does; False if that is nowhere."""
    begin, end = scope.link(source), scope.link(link)
    if begin is None or end is None:
        return False
    origin, slot = scope.get(begin, "origin_id"), scope.get(begin, "origin_slot")
    if origin == INPUTS and scope.get(end, "target_id") == OUTPUTS:
        # A subgraph cannot connect an input with an output; TCD Settings returns the model that it is given.
        settings = {**SETTINGS, "gamma": old["eta"], "end": "official"}
        between = scope.add("TCD_Settings", settings, beside)
        scope.move_origin(link, between["id"], 0)
        scope.connect(origin, slot, "MODEL", between, 0)
        return True
    scope.move_origin(link, origin, slot)
    return True


def _rename(scope: Scope, node: Entry, primitives: dict[Any, Any]) -> list[Remark]:
    """The host's nodes that choose a sampler by its name."""
    kind, name = node["type"], scope.name(node)
    link, own = scope.link(_linked(node, "sampler_name")), _sampler_name(node)
    origin = None if link is None else scope.node(scope.get(link, "origin_id"))
    if link is not None and (origin is None or origin["type"] != PRIMITIVE):
        return [left(name, kind, own)] if own in NAMES else []
    chosen = own if origin is None else primitives.get(origin["id"])
    if chosen not in NAMES:
        return []
    if kind == SELECT:
        if link is not None:
            scope.remove(scope.get(link, "id"))
        outgoing = [x for entry in node.get("outputs") or [] for x in entry.get("links") or []]
        scope.become(node, "TCD_Sampler", {**OURS["TCD_Sampler"].widgets, **SETTINGS})
        node["outputs"][0]["links"] = outgoing
    else:
        if origin is not None:
            origin["widgets_values"] = [NEW_NAME, *_widgets(origin)[1:]]
        _choose(node)
        _settings_before(scope, node)
    return [renamed(name, kind, chosen)]


def _sampler_name(node: Entry) -> Any:
    """What its own widget says."""
    held, index = node.get("widgets_values") or [], SAMPLERS.get(node["type"], 0)
    if isinstance(held, dict):
        return held.get("sampler_name")
    return held[index] if len(held) > index else None


def _choose(node: Entry) -> None:
    """Its own widget says our sampler's name, wherever it is saved."""
    held, index = node.get("widgets_values") or [], SAMPLERS[node["type"]]
    if isinstance(held, list) and len(held) > index:
        held[index] = NEW_NAME
    for by_name in (held, node.get("widgets_values_named")):
        if isinstance(by_name, dict) and "sampler_name" in by_name:
            by_name["sampler_name"] = NEW_NAME


def _settings_before(scope: Scope, node: Entry) -> None:
    """A TCD_Settings between the node's model and where that comes from."""
    link = _linked(node, "model")
    slot = next((i for i, x in enumerate(node.get("inputs") or []) if x.get("name") == "model"), None)
    if slot is None:
        return
    settings = scope.add("TCD_Settings", SETTINGS, node, above=True)
    if link is not None:
        scope.move_target(link, settings, 0)
    scope.connect(settings["id"], 0, "MODEL", node, slot)
