"""Graphs as the host's API takes them: {id: {"class_type": ..., "inputs": {name: value or [id, output]}}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .remarks import Remark, chosen_elsewhere, left, renamed, replaced, stranger, unconnected, unknown
from .sampling import pass_by_api
from .table import NAMES, NEW_NAME, OUR_NODES, OURS, RULES, SAMPLERS, SELECT, SETTINGS, Rule, values

Graph = dict[str, dict[str, Any]]


def is_api(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and bool(data)
        and all(
            isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
            for node in data.values()
        )
    )


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def migrate_api(graph: Graph) -> list[Remark]:
    """Rewrites the graph in place."""
    remarks: list[Remark] = []
    for node in list(graph):
        kind, inputs = graph[node]["class_type"], graph[node]["inputs"]
        names = [_name(graph, v) for k, v in inputs.items() if "sampler_name" in k]
        names += [v for k, v in inputs.items() if ("sampler" in k or "scheduler" in k) and _is_name(v)]
        if kind in RULES:
            remarks += _replace(graph, node, RULES[kind])
        elif kind == SELECT and _is_name(inputs.get("sampler_name")):
            remarks.append(renamed(node, kind, inputs["sampler_name"]))
            _become(graph[node], "TCD_Sampler", {**OURS["TCD_Sampler"].widgets, **SETTINGS})
        elif kind in SAMPLERS and _is_name(inputs.get("sampler_name")):
            remarks.append(renamed(node, kind, inputs["sampler_name"]))
            settings = _add(graph, "TCD_Settings", {"model": inputs.get("model"), **SETTINGS})
            inputs.update(sampler_name=NEW_NAME, model=[settings, 0])
        elif any(names) and kind in {*SAMPLERS, SELECT}:
            remarks.append(chosen_elsewhere(node, kind, next(filter(None, names))))
        elif any(names):
            remarks.append(left(node, kind, next(filter(None, names))))
        elif stranger(kind):
            remarks.append(unknown(node, kind))
    return remarks


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value in NAMES


def _name(graph: Graph, value: Any, seen: tuple[str, ...] = ()) -> str:
    """The sampler's name that a value is, or that a node has which it comes from; else ""."""
    if not is_link(value):
        return value if _is_name(value) else ""
    if value[0] in seen or value[0] not in graph:
        return ""
    source = graph[value[0]]
    if source["class_type"] in OUR_NODES or source["class_type"] in RULES:
        return ""
    given = [x for k, x in source["inputs"].items() if k not in ("model", "clip", "vae")]
    return next(filter(None, (_name(graph, x, (*seen, value[0])) for x in given)), "")


def _replace(graph: Graph, node: str, rule: Rule) -> list[Remark]:
    remarks = pass_by_api(graph, node) if rule.replaces_sampling else []
    given = graph[node]["inputs"]
    for former, since in rule.former.items():
        if former in given:
            given.setdefault(since, given.pop(former))
    old = {name: given.get(name, default) for name, default in rule.widgets.items()}
    ids: list[str] = []
    for new, widgets in zip(rule.new, values(rule, old), strict=True):
        ends = {ours: given[v] for ours, v in new.takes.items() if v not in rule.widgets and v in given}
        if ids:
            ids.append(_add(graph, new.type, {**ends, **widgets}))
        else:
            _become(graph[node], new.type, {**ends, **widgets})
            ids.append(node)
    remarks = replaced(node, rule, {k: [] if is_link(v) else [v] for k, v in old.items()}) + remarks
    passed = [given.get(x) for x in rule.outputs if isinstance(x, str)]
    if any(source is None for source in passed):
        remarks.append(unconnected(node, rule.old))
    targets = [given.get(x) if isinstance(x, str) else [ids[x], 0] for x in rule.outputs]
    _redirect(graph, node, targets)
    return remarks


def _redirect(graph: Graph, node: str, targets: list[Any]) -> None:
    """Who took an output of the node takes what stands for it in `targets`; where that is None, nothing."""
    for entry in graph.values():
        for name, value in list(entry["inputs"].items()):
            if not is_link(value) or value[0] != node or value[1] >= len(targets):
                continue
            target = targets[value[1]]
            if target is None:
                del entry["inputs"][name]
            else:
                entry["inputs"][name] = list(target)


def _become(entry: dict[str, Any], kind: str, inputs: Mapping[str, Any]) -> None:
    entry["class_type"], entry["inputs"] = kind, dict(inputs)
    entry.pop("_meta", None)  # the old node's title


def _add(graph: Graph, kind: str, inputs: Mapping[str, Any]) -> str:
    """The id of a new node: a number that is not in use, not even within an id such as 7:2."""
    used = [int(part) for node in graph for part in node.split(":") if part.isdigit()]
    node = str(max(used, default=0) + 1)
    graph[node] = {"class_type": kind, "inputs": {k: v for k, v in inputs.items() if v is not None}}
    return node
