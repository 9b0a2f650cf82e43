"""Widgets that a subgraph shows on its face follow to the nodes that have their values now."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from migrate_graphs import (
    ALL,
    BASE,
    Json,
    custom,
    face,
    in_subgraph,
    jetthu,
    licyk,
    licyk_select,
    nested,
    ui,
)

from comfyui_tcd.migrate.command import migrate


def jett_on_face(*entries: list[str], values: list[Any] | None = None, inside: int = 6) -> Json:
    """JettHu's node in a subgraph with these entries of proxyWidgets."""
    graph = in_subgraph(jetthu(), {inside})
    instance = graph["nodes"][-1]
    instance["properties"]["proxyWidgets"] = [list(x) for x in entries]
    instance["widgets_values"] = values or []
    return graph


def the_node(graph: Json, kind: str) -> Json:
    scopes = [graph, *graph["definitions"]["subgraphs"]]
    (node,) = [n for scope in scopes for n in scope["nodes"] if n["type"] == kind]
    return node


def test_entries_follow_and_the_values_of_the_face_stay_theirs():
    graph = jett_on_face(
        ["6", "denoise"], ["6", "scheduler"], ["6", "eta"], ["6", "steps"], values=[0.9, "simple", 0.7, 8]
    )
    remarks = migrate(graph)
    sampler, scheduler = (str(the_node(graph, kind)["id"]) for kind in ("TCD_Sampler", "TCD_Scheduler"))
    instance = graph["nodes"][-1]
    assert instance["properties"]["proxyWidgets"] == [
        [scheduler, "denoise"],
        [sampler, "gamma"],
        [scheduler, "steps"],
    ]
    assert instance["widgets_values"] == [0.9, 0.7, 8]
    said = [str(r) for r in remarks]
    assert any("node 7 (subgraph sampling): scheduler is no longer on its face" in text for text in said)
    assert any("denoise 0.9 has no equal" in text for text in said)  # the face's, not the node's own
    assert not any("scheduler 'simple'" in text for text in said)


@pytest.mark.parametrize("text", ['[["6", "eta"]]', [["6", "eta"], "odd", ["6"]]])
def test_entries_as_text_and_odd_ones(text: Any):
    graph = jett_on_face()
    graph["nodes"][-1]["properties"]["proxyWidgets"] = text
    migrate(graph)
    sampler = str(the_node(graph, "TCD_Sampler")["id"])
    assert graph["nodes"][-1]["properties"]["proxyWidgets"] == [[sampler, "gamma"]]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (["7", "eta"], ["7", "gamma"]),
        (["7", "eta", "6"], ["7", "gamma", "{sampler}"]),
        (["7", "6: eta"], ["7", "{sampler}: gamma"]),
        (["7", "steps", "6"], ["7", "steps", "{scheduler}"]),
        (["7", "scheduler"], None),
        (["7", "other"], ["7", "other"]),
    ],
)
def test_entries_of_nested_subgraphs(entry: list[str], expected: list[str] | None):
    graph = nested(jett_on_face(["6", "eta"], ["6", "scheduler"], ["6", "steps"]), 7)
    graph["nodes"][-1]["properties"]["proxyWidgets"] = [entry]
    migrate(graph)
    ids = {name: the_node(graph, f"TCD_{name.title()}")["id"] for name in ("sampler", "scheduler")}
    found = graph["nodes"][-1]["properties"]["proxyWidgets"]
    assert found == ([] if expected is None else [[x.format(**ids) for x in expected]])


def test_of_two_nodes_with_the_same_widget_each_entry_follows_its_own():
    parts = {**jetthu(), 8: jetthu()[6], 9: custom((8, 0), (8, 1), (8, 2))}
    graph = in_subgraph(parts, {6, 8})
    graph["nodes"][-1]["properties"]["proxyWidgets"] = [["8", "eta"], ["6", "eta"]]
    graph = nested(graph, 10)
    graph["nodes"][-1]["properties"]["proxyWidgets"] = [["10", "eta", "6"], ["10", "eta", "8"]]
    migrate(graph)
    inner, outer = graph["definitions"]["subgraphs"]
    first, second = (x[0] for x in outer["nodes"][0]["properties"]["proxyWidgets"])
    assert graph["nodes"][-1]["properties"]["proxyWidgets"] == [
        ["10", "gamma", second],
        ["10", "gamma", first],
    ]
    by_id = {str(n["id"]): n for n in inner["nodes"]}
    scheduler = {str(n["id"]): i for i, n in enumerate(inner["nodes"])}
    assert by_id[first]["type"] == by_id[second]["type"] == "TCD_Sampler"
    assert scheduler[second] < scheduler[first]  # the new nodes were made in the order of the old


def test_an_input_that_leads_to_a_widget_leads_to_the_new_one():
    graph = in_subgraph(jetthu(), {6})
    face(graph, 6, "eta", "FLOAT", 0.7)
    face(graph, 6, "steps", "INT", 9)
    migrate(graph)
    (inner,) = graph["definitions"]["subgraphs"]
    ends = {}
    for link in inner["links"]:
        if link["origin_id"] == -10:
            node = next(n for n in inner["nodes"] if n["id"] == link["target_id"])
            ends[inner["inputs"][link["origin_slot"]]["name"]] = (
                node["type"],
                node["inputs"][link["target_slot"]]["name"],
            )
    assert ends["eta"] == ("TCD_Sampler", "gamma") and ends["steps"] == ("TCD_Scheduler", "steps")
    assert graph["nodes"][-1]["widgets_values"] == [0.7, 9]
    labels = {x["name"]: x.get("label") for x in inner["inputs"] if x["type"] != "MODEL"}
    assert labels == {"eta": "gamma", "steps": None}
    assert [x.get("label") for x in graph["nodes"][-1]["inputs"][1:]] == ["gamma", None]


def test_an_input_that_the_user_named_keeps_its_name():
    graph = in_subgraph(jetthu(), {6})
    face(graph, 6, "eta", "FLOAT", 0.7)
    (inner,) = graph["definitions"]["subgraphs"]
    inner["inputs"][-1]["label"] = graph["nodes"][-1]["inputs"][-1]["label"] = "randomness"
    migrate(graph)
    assert inner["inputs"][-1]["label"] == graph["nodes"][-1]["inputs"][-1]["label"] == "randomness"


@pytest.mark.parametrize("deep", [False, True])
def test_an_input_that_leads_nowhere_now_is_gone_everywhere(deep: bool):
    graph = in_subgraph(jetthu(), {6})
    for widget, kind, value in (("scheduler", "COMBO", "simple"), ("eta", "FLOAT", 0.7)):
        face(graph, 6, widget, kind, value)
    if deep:
        graph = nested(graph, 7)
    instance = graph["nodes"][-1]
    instance["inputs"].append({"name": "last", "type": "MODEL", "link": 900})
    graph["links"].append([900, 1, 0, instance["id"], len(instance["inputs"]) - 1, "MODEL"])
    remarks = migrate(graph)
    for scope in graph["definitions"]["subgraphs"]:
        assert [x["name"] for x in scope["inputs"] if not x["name"].startswith("in")] == ["eta"]
        for number, entry in enumerate(scope["inputs"]):
            links = [x for x in scope["links"] if x["id"] in entry["linkIds"]]
            assert links and all((x["origin_id"], x["origin_slot"]) == (-10, number) for x in links)
    assert instance["widgets_values"] == [0.7]
    for number, entry in enumerate(instance["inputs"]):
        if entry["link"] is not None:
            link = next(x for x in graph["links"] if x[0] == entry["link"])
            assert link[3:5] == [instance["id"], number]
    assert sum("scheduler is no longer on its face" in r.text for r in remarks) == 1 + deep
    assert not any(r.by_hand for r in remarks)


def test_the_value_on_the_face_is_what_has_no_equal():
    graph = in_subgraph(jetthu(), {6})
    face(graph, 6, "scheduler", "COMBO", "sgm_uniform")
    again = copy.deepcopy(graph["nodes"][-1])
    graph["nodes"].append({**again, "id": 99, "widgets_values": ["simple"]})
    assert [r.text[:24] for r in migrate(graph) if r.by_hand] == ["scheduler 'sgm_uniform' "]


@pytest.mark.parametrize("form", ["input", "entry"])
def test_a_sampler_s_name_on_the_face_is_renamed_there(form: str):
    graph = in_subgraph(licyk("euler"), {5})
    if form == "input":
        face(graph, 5, "sampler_name", "COMBO", "tcd")
    else:
        graph["nodes"][-1] |= {
            "properties": {"proxyWidgets": [["5", "sampler_name"]]},
            "widgets_values": ["tcd"],
        }
        the_node(graph, "KSampler")["widgets_values"][4] = "tcd_euler_a"
    again = {**copy.deepcopy(graph["nodes"][-1]), "id": 99}
    graph["nodes"].append(again)
    remarks = migrate(graph)
    assert not any(r.by_hand for r in remarks) and remarks
    assert [n["widgets_values"] for n in graph["nodes"][-2:]] == [["tcd_sss"]] * 2
    assert the_node(graph, "KSampler")["widgets_values"][4] == "tcd_sss"
    assert the_node(graph, "TCD_Settings")
    assert migrate(graph) == []


def test_a_subgraph_that_is_used_with_another_sampler_too_is_left_and_named():
    graph = in_subgraph(licyk("euler"), {5})
    face(graph, 5, "sampler_name", "COMBO", "tcd")
    graph["nodes"].append({**copy.deepcopy(graph["nodes"][-1]), "id": 99, "widgets_values": ["euler"]})
    before = copy.deepcopy(graph)
    remarks = migrate(graph)
    assert all(r.by_hand for r in remarks) and graph == before
    assert any("'tcd', 'euler'" in r.text and "sampling: 5" in str(r) for r in remarks)


def test_a_chooser_s_name_on_the_face_is_gone():
    graph = in_subgraph(licyk_select("euler"), {7})
    face(graph, 7, "sampler_name", "COMBO", "tcd")
    migrate(graph)
    assert the_node(graph, "TCD_Sampler")
    (inner,) = graph["definitions"]["subgraphs"]
    assert inner["inputs"] == [] and graph["nodes"][-1]["inputs"] == []
    assert graph["nodes"][-1]["widgets_values"] == []


def test_a_definition_that_is_used_twice_is_rewritten_once():
    graph = in_subgraph(ALL["jetthu"], {5, 6})
    twice = copy.deepcopy(graph)
    twice["nodes"].append({**copy.deepcopy(twice["nodes"][-1]), "id": 99})
    assert [str(r) for r in migrate(twice)] == [str(r) for r in migrate(graph)]
    inner, same = (x["definitions"]["subgraphs"][0]["nodes"] for x in (graph, twice))
    assert [n["type"] for n in inner] == [n["type"] for n in same]


def test_app_mode_and_favourites_name_the_new_widgets():
    graph: Json = {**ui(jetthu()), "id": "aaaaaaaa-0000-4000-8000-000000000000"}
    whole = f"{graph['id']}:6:eta"
    shown = [[6, "eta", {"height": 9}], ["6", "steps"], [6, "scheduler"], [whole, "eta"], [2, "text"]]
    favourites = [{"nodeLocatorId": "6", "widgetName": name} for name in ("eta", "scheduler")]
    graph["extra"] = {
        "linearData": {"inputs": shown, "outputs": [4]},
        "favoritedWidgets": {"favorites": favourites},
    }
    migrate(graph)
    sampler = the_node({**graph, "definitions": {"subgraphs": []}}, "TCD_Sampler")["id"]
    whole = f"{graph['id']}:{sampler}:gamma"
    shown = [[sampler, "gamma", {"height": 9}], ["6", "steps"], [whole, "gamma"], [2, "text"]]
    assert graph["extra"]["linearData"] == {"inputs": shown, "outputs": [4]}
    favourites = [{"nodeLocatorId": str(sampler), "widgetName": "gamma"}]
    assert graph["extra"]["favoritedWidgets"] == {"favorites": favourites}


def test_favourites_inside_a_subgraph():
    graph = in_subgraph(jetthu(), {6})
    key = graph["definitions"]["subgraphs"][0]["id"]
    graph["extra"] = {"favoritedWidgets": {"favorites": [{"nodeLocatorId": f"{key}:6", "widgetName": "eta"}]}}
    migrate(graph)
    sampler = the_node(graph, "TCD_Sampler")["id"]
    (found,) = graph["extra"]["favoritedWidgets"]["favorites"]
    assert found == {"nodeLocatorId": f"{key}:{sampler}", "widgetName": "gamma"}


def test_other_faces_stay_as_they_are():
    graph = in_subgraph({**BASE, 5: custom((1, 0), (1, 0), (1, 0))}, {2, 5})
    face(graph, 2, "text", "STRING", "tcd, a cat")
    graph["nodes"][-1]["properties"]["proxyWidgets"] = [["-1", "text"], ["5", "cfg"]]
    before = copy.deepcopy(graph)
    assert migrate(graph) == [] and graph == before
