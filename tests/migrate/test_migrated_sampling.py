"""ModelSamplingDiscrete before JettHu's node had no effect there; after the migration it has none either."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from migrate_graphs import Json, Part, api, custom, in_subgraph, jetthu, lcm_before, ui

from comfyui_tcd.migrate.command import migrate

LCM = Part("ModelSamplingDiscrete", {"model": (1, 0)}, ["lcm", False], ["MODEL"])
LORA = Part("LoraLoaderModelOnly", {"model": (8, 0)}, ["a.safetensors", 1.0], ["MODEL"])
KINDS = {"TCD_Scheduler", "SamplerCustom"}


def takes(graph: Json, kind: str) -> list[tuple[str, int]]:
    """(node, output) of the models that the nodes of a type take."""
    if "nodes" not in graph:
        return [tuple(n["inputs"]["model"]) for n in graph.values() if n["class_type"] == kind]
    slots = {
        (n["id"], slot)
        for n in graph["nodes"]
        for slot, x in enumerate(n["inputs"])
        if n["type"] == kind and x["name"] == "model"
    }
    return [(str(x[1]), x[2]) for x in graph["links"] if (x[3], x[4]) in slots]


@pytest.mark.parametrize("form", [api, ui])
def test_it_is_passed_by(form: Any):
    graph = form(lcm_before())
    remarks = migrate(graph)
    assert [r.by_hand for r in remarks] == [False, False]
    assert "passes ModelSamplingDiscrete (node 8) by" in remarks[1].text
    assert takes(graph, "TCD_Scheduler") == takes(graph, "SamplerCustom") == [("1", 0)]
    assert takes(graph, "ModelSamplingDiscrete") == [("1", 0)]
    assert migrate(graph) == []


@pytest.mark.parametrize("form", [api, ui])
def test_with_a_lora_between_and_another_user(form: Any):
    other = custom((8, 0), (6, 1), (6, 2))
    parts = {**jetthu(), 8: LCM, 9: LORA, 10: other}
    parts[6] = parts[6]._replace(inputs={"model": (9, 0)})
    graph = form(parts)
    assert not any(r.by_hand for r in migrate(graph))
    assert takes(graph, "LoraLoaderModelOnly") == [("1", 0)]
    assert takes(graph, "TCD_Scheduler") == [("9", 0)]
    assert sorted(takes(graph, "SamplerCustom")) == [("8", 0), ("9", 0)]  # the other user still has it


@pytest.mark.parametrize("form", [api, ui])
def test_two_in_a_row_and_two_old_nodes(form: Any):
    second = LCM._replace(inputs={"model": (8, 0)}, widgets=["v_prediction", False])
    parts = {**jetthu(), 8: LCM, 9: second, 10: LORA._replace(inputs={"model": (9, 0)})}
    parts[6] = parts[6]._replace(inputs={"model": (10, 0)})
    graph = form({**parts, 7: parts[6], 11: custom((7, 0), (7, 1), (7, 2))})
    remarks = migrate(graph)
    assert not any(r.by_hand for r in remarks) and sum("passes" in r.text for r in remarks) == 2
    assert takes(graph, "LoraLoaderModelOnly") == [("1", 0)]


@pytest.mark.parametrize("form", [api, ui])
@pytest.mark.parametrize(
    "parts",
    [
        {9: LORA, 10: custom((9, 0), (6, 1), (6, 2))},  # the LoRA's model has another user
        {9: LORA._replace(type="PatchModelAddDownscale", widgets=[])},  # reads the sampling
        {8: LCM._replace(type="ModelSamplingContinuousEDM"), 9: LORA},  # sets more than the sampling
    ],
)
def test_where_it_is_not_exact_it_is_named(
    form: Any, parts: dict[int, Part], monkeypatch: pytest.MonkeyPatch
):
    import migrate_graphs

    for kind in ("PatchModelAddDownscale", "ModelSamplingContinuousEDM"):
        monkeypatch.setitem(migrate_graphs.API_WIDGETS, kind, [""] * len(parts.get(8, LCM).widgets))
    monkeypatch.setitem(migrate_graphs.API_WIDGETS, "PatchModelAddDownscale", [])
    whole = {**jetthu(), 8: LCM, **parts}
    whole[6] = whole[6]._replace(inputs={"model": (9, 0)})
    graph = form(whole)
    (remark,) = [r for r in migrate(graph) if r.by_hand]
    assert "sets how it is sampled" in remark.text and "(node 8)" in remark.text
    assert takes(graph, "TCD_Scheduler") == [("9", 0)]


def test_a_bypassed_one_has_no_effect_and_a_bypassed_old_node_did_not_undo_it():
    graph = ui(lcm_before())
    nodes = {n["id"]: n for n in graph["nodes"]}
    bypassed = copy.deepcopy(graph)
    nodes[8]["mode"] = 4
    assert [r.text for r in migrate(graph) if "sampl" in r.text and "passes" in r.text] == []
    assert takes(graph, "TCD_Scheduler") == [("8", 0)]
    next(n for n in bypassed["nodes"] if n["id"] == 6)["mode"] = 4
    (remark,) = [r for r in migrate(bypassed) if r.by_hand]
    assert "sets how it is sampled" in remark.text
    assert takes(bypassed, "SamplerCustom") == [("8", 0)]


@pytest.mark.parametrize("inside", [{6}, {8}, {6, 8}])
def test_in_subgraphs(inside: set[int]):
    graph = in_subgraph(lcm_before(), inside)
    remarks = migrate(graph)
    exact = inside == {6, 8}
    assert [r.by_hand for r in remarks if "passes" in r.text or "sets how" in r.text] == [not exact]
