"""Nodes that set a model's sampling before one that sets it anew: they had no effect, and must have none.

JettHu's node replaces the whole `model_sampling` of its model. Our nodes take the model as it comes, so a
ModelSamplingDiscrete before it would take effect by the migration. Where that can be done for this model
alone, the link passes it by; where not, the remark says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .faces import Faces
from .remarks import Remark, unconnected, with_sampling, without_sampling
from .scope import INPUTS, OUTPUTS, Entry, Scope
from .table import PASS_MODEL, RULES, SET_SAMPLING

BYPASSED = 4
"""The mode of a node that the page leaves out, joining what it takes to what takes it."""


def _replaces(kind: str) -> bool:
    return kind in RULES and RULES[kind].replaces_sampling


# Of the API's format: {id: {"class_type": ..., "inputs": {...}}}


def pass_by_api(graph: dict[str, dict[str, Any]], node: str) -> list[Remark]:
    """Lets the model of a node that is about to be replaced come from before what set its sampling."""
    kind = graph[node]["class_type"]
    taker, exact = node, True
    seen: set[str] = set()
    while (
        isinstance(link := graph[taker]["inputs"].get("model"), list)
        and link[0] in graph
        and taker not in seen
    ):
        seen.add(taker)
        source = graph[link[0]]
        setter = f"{source['class_type']} (node {link[0]})"
        if _replaces(source["class_type"]):
            return []
        if source["class_type"] in SET_SAMPLING:
            before = source["inputs"].get("model")
            if not (exact and SET_SAMPLING[source["class_type"]] and isinstance(before, list)):
                return [with_sampling(node, kind, setter)]
            graph[taker]["inputs"]["model"] = list(before)
            return [without_sampling(node, kind, setter), *pass_by_api(graph, node)]
        exact = exact and source["class_type"] in PASS_MODEL and _for_these_alone(graph, link)
        taker = link[0]
    return []


def _for_these_alone(graph: dict[str, dict[str, Any]], output: list[Any]) -> bool:
    """Tell whether all that takes a model is replaced here, or passes it on to such nodes."""
    for node, entry in graph.items():
        if any(x == output for x in entry["inputs"].values()) and not (
            _replaces(entry["class_type"])
            or (entry["class_type"] in PASS_MODEL and _for_these_alone(graph, [node, 0]))
        ):
            return False
    return True


# Of the frontend's format


def pass_by_ui(faces: Faces, scope: Scope, node: Entry, link_id: Any) -> list[Remark]:
    """Does the same with the link by which a node of a saved graph takes its model."""
    name, kind = scope.name(node), node["type"]
    taken, exact = link_id, node.get("mode", 0) != BYPASSED
    for at, source, slot, link in _models(faces, scope, link_id):
        exact = exact and at is scope
        if source["type"] in SET_SAMPLING and source.get("mode", 0) != BYPASSED:
            setter, before = f"{source['type']} (node {at.name(source)})", at.link(_model(source))
            if not (exact and SET_SAMPLING[source["type"]]):
                return [with_sampling(name, kind, setter)]
            if before is None:
                return [unconnected(name, kind)]
            scope.move_origin(taken, scope.get(before, "origin_id"), scope.get(before, "origin_slot"))
            return [without_sampling(name, kind, setter), *pass_by_ui(faces, scope, node, link_id)]
        if _replaces(source["type"]):
            return []
        passes = source["type"] in PASS_MODEL or source.get("mode", 0) == BYPASSED
        exact = exact and passes and _for_these_alone_ui(scope, source, slot)
        taken = link
    return []


def _model(node: Entry) -> Any:
    """The id of the link by which a node takes its model."""
    inputs = node.get("inputs") or []
    of_type = [x for x in inputs if x.get("name") == "model"] + [
        x for x in inputs if x.get("type") == "MODEL"
    ]
    if node["type"] == "Reroute":
        of_type = inputs
    return next((x.get("link") for x in of_type), None)


def _models(faces: Faces, scope: Scope, link_id: Any) -> Iterator[tuple[Scope, Entry, int, Any]]:
    """Goes from a link to what its model comes through: (canvas, node, output, the link that it takes it by).

    It goes out of a subgraph to each place where it is used, and into those that it comes from."""
    seen: set[Any] = set()
    while (link := scope.link(link_id)) is not None and link_id not in seen:
        seen.add(link_id)
        origin, slot = scope.get(link, "origin_id"), scope.get(link, "origin_slot")
        if origin == INPUTS:
            name = scope.data["inputs"][slot]["name"]
            for outer, instance in faces.instances(scope):
                slots = [x for x in instance.get("inputs") or [] if x.get("name") == name]
                yield from _models(faces, outer, slots[0].get("link") if slots else None)
            return
        node = scope.node(origin)
        if node is None:
            return
        inner = faces.definitions.get(node["type"])
        if inner is not None:
            yield from _models(
                faces, inner, next(iter(inner.data["outputs"][slot].get("linkIds") or []), None)
            )
            return  # what the subgraph takes its model from is found from within
        link_id = _model(node)
        yield scope, node, slot, link_id


def _for_these_alone_ui(scope: Scope, node: Entry, slot: int) -> bool:
    for link in scope.data["links"]:
        if not link or (scope.get(link, "origin_id"), scope.get(link, "origin_slot")) != (node["id"], slot):
            continue
        target = scope.node(scope.get(link, "target_id"))
        if scope.get(link, "target_id") == OUTPUTS or target is None:
            return False
        replaced = _replaces(target["type"]) and target.get("mode", 0) != BYPASSED
        if not replaced and not (target["type"] in PASS_MODEL and _for_these_alone_ui(scope, target, 0)):
            return False
    return True
