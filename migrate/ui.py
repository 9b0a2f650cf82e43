"""Graphs as the frontend saves them (version 0.4 and 1), with subgraphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .faces import PRIMITIVE, Faces, Place
from .remarks import (
    Remark,
    chosen_elsewhere,
    chosen_sometimes,
    grouped,
    left,
    renamed,
    replaced,
    speaks,
    stranger,
    unconnected,
    unknown,
)
from .sampling import pass_by_ui
from .scope import INPUTS, OUTPUTS, Entry, Scope
from .table import NAMES, NEW_NAME, OURS, RULES, SAMPLERS, SELECT, SETTINGS, Rule, values


def is_ui(data: Any) -> bool:
    return (
        isinstance(data, dict) and isinstance(data.get("nodes"), list) and isinstance(data.get("links"), list)
    )


def migrate_ui(data: Entry) -> list[Remark]:
    """Rewrites the graph in place."""
    faces = Faces(data)
    nodes = [(scope, node) for scope in faces.scopes for node in scope.nodes]
    order = {scope.name(node): number for number, (scope, node) in enumerate(nodes)}
    samplers = [(s, n, _sampler_names(faces, s, n)) for s, n in nodes if n["type"] in {*SAMPLERS, SELECT}]
    # Several samplers may share the place of a name: what they were, before any is changed.
    chosen = [None if places is None else [place.value for place in places] for _, _, places in samplers]
    remarks: list[Remark] = []
    for scope, node in nodes:
        if node["type"] in RULES:
            remarks += _replace(faces, scope, node, RULES[node["type"]])
    for (scope, node, places), names in zip(samplers, chosen, strict=True):
        remarks += _rename(faces, scope, node, places, names)
    remarks += faces.follow()
    remarks += _left(faces)
    return sorted(remarks, key=lambda remark: order.get(remark.node, len(order)))


def _left(faces: Faces) -> Iterator[Remark]:
    """Names what is of TCD and was not changed."""
    groups = (faces.data.get("extra") or {}).get("groupNodes") or {}
    held = {name: list(_held(group)) for name, group in groups.items()}
    used: set[str] = set()
    for scope in faces.scopes:
        for node in scope.nodes:
            kind, name = faces.kind(node), scope.name(node)
            group = _group(node["type"])
            names = [v for v in _widgets(node) if isinstance(v, str) and v in NAMES]
            if group in groups:
                used.add(group)
                if held[group] or names:
                    yield grouped(name, kind, held[group] or [f"the sampler name {names[0]!r}"])
            elif names and speaks(kind) and kind not in {PRIMITIVE, SELECT, *SAMPLERS}:
                yield left(name, kind, names[0])  # a primitive's value is its consumer's
            elif stranger(node["type"]):
                yield unknown(name, kind)
    for name in held:
        if held[name] and name not in used:
            yield grouped("", f"group node {name}", held[name])


def _group(kind: Any) -> str:
    """The name of a group node's definition, or ""."""
    return str(kind)[len("workflow/") :] if str(kind).startswith(("workflow/", "workflow>")) else ""


def _held(group: Entry) -> Iterator[str]:
    """What inside a group node this command would replace, or does not know."""
    for node in group.get("nodes") or []:
        kind = str(node.get("type"))
        names = [v for v in _widgets(node) if isinstance(v, str) and v in NAMES]
        if kind in RULES or stranger(kind):
            yield kind
        elif names and speaks(kind):
            yield f"{kind} ({names[0]})"


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


def _values(faces: Faces, scope: Scope, node: Entry, rule: Rule, old: dict[str, Any]) -> dict[str, list[Any]]:
    """By widget of an old node all values that it has; none where another node computes it."""
    found: dict[str, list[Any]] = {}
    for index, widget in enumerate(rule.widgets):
        places = faces.places(scope, node, widget, index)
        found[widget] = [] if places is None else [place.value for place in places] or [old[widget]]
    return found


def _replace(faces: Faces, scope: Scope, node: Entry, rule: Rule) -> list[Remark]:
    name, old = scope.name(node), _old_widgets(node, rule)
    remarks = replaced(name, rule, _values(faces, scope, node, rule, old))
    taken = {v for new in rule.new for v in new.takes.values()}
    ends = {x: _linked(node, x) for x in taken | set(rule.widgets)}
    if rule.replaces_sampling:
        remarks += pass_by_ui(faces, scope, node, ends["model"])
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
    by_old = {
        theirs: (became[i]["id"], ours)
        for i, new in enumerate(rule.new)
        for ours, theirs in new.takes.items()
    }
    faces.move(scope, node, {x: by_old.get(x) for x in rule.widgets})
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


def _sampler_names(faces: Faces, scope: Scope, node: Entry) -> list[Place] | None:
    return faces.places(scope, node, "sampler_name", SAMPLERS.get(node["type"], 0))


def _rename(
    faces: Faces, scope: Scope, node: Entry, places: list[Place] | None, names: list[Any] | None
) -> list[Remark]:
    """The host's nodes that choose a sampler by its name; `names`: the values of the places, as they were."""
    kind, name = node["type"], scope.name(node)
    if places is None or names is None:
        held = [v for v in _widgets(node) if isinstance(v, str) and v in NAMES]
        return [chosen_elsewhere(name, kind, held[0])] if held else []
    found = list(dict.fromkeys(names))
    theirs = [x for x in found if isinstance(x, str) and x in NAMES]
    if not theirs:
        return []
    if len(theirs) < len(found):
        return [chosen_sometimes(name, kind, map(str, found))]
    if kind == SELECT:
        link = _linked(node, "sampler_name")
        if link is not None:
            scope.remove(link)
        outgoing = [x for entry in node.get("outputs") or [] for x in entry.get("links") or []]
        scope.become(node, "TCD_Sampler", {**OURS["TCD_Sampler"].widgets, **SETTINGS})
        node["outputs"][0]["links"] = outgoing
        faces.move(scope, node, {"sampler_name": None})
    else:
        for place in places:
            place.set(NEW_NAME)
        _choose(node)
        _settings_before(scope, node)
    return [renamed(name, kind, x) for x in theirs]


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
