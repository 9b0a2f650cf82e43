"""Group nodes, strangers and computed names are named; and what else than a graph a file may hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from migrate_graphs import (
    ALL,
    BASE,
    Json,
    Part,
    api,
    custom,
    dfl,
    in_subgraph,
    jetthu,
    licyk,
    licyk_select,
    ui,
)

from comfyui_tcd import cli
from comfyui_tcd.migrate.command import migrate
from comfyui_tcd.migrate.table import OUR_NODES

ROOT = Path(__file__).resolve().parents[2]


def grouped(kind: str, name: str, inside: list[Json], values: tuple[Any, ...] = ()) -> Json:
    """A graph with a group node of the old kind."""
    graph = ui(BASE | {5: Part(kind, {"model": (1, 0)}, list(values), ["LATENT"])})
    graph["extra"] = {"groupNodes": {name: {"nodes": inside, "links": [], "external": []}}}
    return graph


def inner(kind: str, *values: Any) -> Json:
    return {"type": kind, "widgets_values": list(values), "index": 0}


@pytest.mark.parametrize("separator", ["/", ">"])
@pytest.mark.parametrize("name", ["fast sampling", "TCD"])
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (inner("TCDModelSamplingDiscrete", 4, "simple", 1, 0.3), "with TCDModelSamplingDiscrete inside"),
        (inner("KSampler", 7, "fixed", 4, 1.0, "tcd", "normal", 1.0), "with KSampler (tcd) inside"),
        (inner("SomeTCDSampler"), "with SomeTCDSampler inside"),
    ],
)
def test_group_nodes_are_named_with_what_is_in_them(separator: str, name: str, inside: Json, said: str):
    graph = grouped(f"workflow{separator}{name}", name, [inner("VAEDecode"), inside])
    before = copy.deepcopy(graph)
    (remark,) = migrate(graph)
    assert remark.by_hand and remark.node == "5" and said in remark.text and graph == before


def test_group_nodes_without_tcd_are_not_named():
    assert migrate(grouped("workflow>TCD", "TCD", [inner("KSampler", 7, "fixed", 4, 1.0, "euler")])) == []


def test_a_group_node_s_own_value_and_a_definition_that_is_not_used():
    graph = grouped("workflow>a", "a", [inner("KSampler", 7, "fixed", 4, 1.0, "euler")], values=(3, "tcd"))
    (remark,) = migrate(graph)
    assert remark.by_hand and "the sampler name 'tcd'" in remark.text
    graph = grouped("VAEDecode", "a", [inner("TCDScheduler", 4)])
    (remark,) = migrate(graph)
    assert remark.by_hand and str(remark).startswith("by hand: group node a: is a group node")


def test_the_status_of_a_group_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(grouped("workflow>a", "a", [inner("TCDScheduler", 4)])), "utf-8")
    assert cli.main(["migrate-workflow", str(path)]) == 1
    shown = capsys.readouterr()
    assert (
        "nothing to change by this command, 1 to do by hand" in shown.out and "Convert to nodes" in shown.err
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_our_nodes_are_all_known():
    assert set(json.loads((ROOT / "node_list.json").read_text("utf-8"))) == OUR_NODES


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("TCD_Something", True),  # as our own nodes begin, yet none of them
        ("Sampler (tcd)", True),
        ("TCD采样器", True),
        ("GetcdNode", False),
        *((kind, False) for kind in sorted(OUR_NODES)),
    ],
)
def test_strangers(kind: str, named: bool):
    graph = {"1": {"class_type": kind, "inputs": {}}}
    saved = ui({1: Part(kind, {}, [], ["MODEL"])})
    for remarks in (migrate(graph), migrate(saved)):
        assert [(r.type, r.by_hand) for r in remarks] == ([(kind, True)] if named else [])


def test_a_known_stranger_says_what_to_use():
    (remark,) = migrate({"1": {"class_type": "TCD采样器", "inputs": {"步数": 4}}})
    assert "classronin/CR-Tools-TCD-Sampler" in remark.text and "Use TCD KSampler" in remark.text


def test_other_packs_with_the_same_nodes():
    seedv = {**jetthu(eta=0.6), 6: jetthu(eta=0.6)[6]._replace(type="TCD_Sampler(SEEDV)")}
    graph = ui(seedv)
    assert not any(r.by_hand for r in migrate(graph))
    sampler = next(n for n in graph["nodes"] if n["type"] == "TCD_Sampler")
    assert sampler["widgets_values"][0] == 0.6 and sampler["widgets_values"][3] == "clean"
    graph = ui(dfl("TCDSampler|cgem156", gamma=0.6))
    migrate(graph)
    sampler = next(n for n in graph["nodes"] if n["type"] == "TCD_Sampler")
    assert sampler["widgets_values"][0] == 0.6


def test_eta_of_the_first_version_of_a_sampler_is_kept():
    graph = api(dfl("SamplerTCD", gamma=0.8))
    graph["7"]["inputs"] = {"eta": 0.8}
    migrate(graph)
    assert graph["7"]["inputs"]["gamma"] == 0.8 and "eta" not in graph["7"]["inputs"]


# Reroutes, which pass on what they take


def rerouted(parts: dict[int, Part], node: int, name: str, kind: str) -> dict[int, Part]:
    """The same with two Reroutes in a row before an input."""
    origin = parts[node].inputs[name]
    first, second = max(parts) + 1, max(parts) + 2
    inputs = {**parts[node].inputs, name: (second, 0)}
    return {
        **parts,
        node: parts[node]._replace(inputs=inputs),
        first: Part("Reroute", {"": origin}, [], [kind]),
        second: Part("Reroute", {"": (first, 0)}, [], [kind]),
    }


@pytest.mark.parametrize("chooser", [licyk("euler"), licyk_select("euler")])
def test_a_sampler_s_name_through_reroutes(chooser: dict[int, Part]):
    node = 7 if 7 in chooser else 5
    inputs = {**chooser[node].inputs, "sampler_name": (8, 0)}
    chosen = chooser[node]._replace(inputs=inputs, from_widgets=("sampler_name",))
    parts = {**chooser, node: chosen, 8: Part("PrimitiveNode", {}, ["tcd", "fixed"], ["COMBO"])}
    graph = ui(rerouted(parts, node, "sampler_name", "COMBO"))
    remarks = migrate(graph)
    assert remarks and not any(r.by_hand for r in remarks)
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert nodes[8]["widgets_values"][0] == ("tcd" if node == 7 else "tcd_sss")
    assert nodes[node]["type"] == ("TCD_Sampler" if node == 7 else "KSampler")
    assert migrate(graph) == []


def test_a_scheduler_through_reroutes_is_known():
    parts = jetthu()
    old = parts[6]._replace(
        inputs={"model": (1, 0), "scheduler": (8, 0)}, from_widgets=("scheduler",), widgets=[4, "x", 1.0, 0.5]
    )
    for value, by_hand in (("simple", 0), ("sgm_uniform", 1)):
        primitive = Part("PrimitiveNode", {}, [value, "fixed"], ["COMBO"])
        graph = ui(rerouted({**parts, 6: old, 8: primitive}, 6, "scheduler", "COMBO"))
        assert sum(r.by_hand for r in migrate(graph)) == by_hand


def test_sigmas_and_a_sampler_through_reroutes():
    parts = dfl()
    graph = ui(rerouted(rerouted(parts, 5, "sigmas", "SIGMAS"), 5, "sampler", "SAMPLER"))
    migrate(graph)
    nodes = {n["id"]: n for n in graph["nodes"]}
    ends = {(nodes[x[1]]["type"], nodes[x[3]]["type"]) for x in graph["links"]}
    assert {("TCD_Scheduler", "Reroute"), ("TCD_Sampler", "Reroute"), ("Reroute", "SamplerCustom")} <= ends


def test_a_name_that_other_nodes_compute_is_named():
    graph = {
        "1": {"class_type": "KSampler", "inputs": {"sampler_name": ["2", 0]}},
        "2": {"class_type": "Switch", "inputs": {"a": ["3", 0], "b": ["2", 0]}},
        "3": {"class_type": "PrimitiveString", "inputs": {"value": "tcd"}},
    }
    (remark,) = migrate(graph)
    assert remark.node == "1" and remark.by_hand and "comes from another node" in remark.text
    parts = licyk("tcd")
    chosen = parts[5]._replace(
        inputs={**parts[5].inputs, "sampler_name": (8, 0)}, from_widgets=("sampler_name",)
    )
    saved = ui({**parts, 5: chosen, 8: Part("Switch", {}, [], ["COMBO"])})
    (remark,) = migrate(saved)
    assert remark.node == "5" and remark.by_hand and "comes from another node" in remark.text


# Muted and bypassed nodes, and groups


@pytest.mark.parametrize("mode", [2, 4])
def test_new_nodes_are_muted_or_bypassed_like_the_old(mode: int):
    graph = ui(jetthu())
    graph["nodes"][-1]["mode"] = mode
    migrate(graph)
    modes = {n["type"]: n["mode"] for n in graph["nodes"]}
    assert modes["TCD_Sampler"] == modes["TCD_Scheduler"] == mode and modes["SamplerCustom"] == 0


@pytest.mark.parametrize("crowded", [False, True])
def test_new_nodes_are_in_the_groups_of_the_old(crowded: bool):
    """A group acts on the nodes whose middle is in it."""
    graph = ui(jetthu())
    old = graph["nodes"][-1]
    x, y = old["pos"]
    box = [x - 20, y - 60, old["size"][0] + 40, old["size"][1] + 80]
    graph["groups"] = [{"title": "a", "bounding": list(box)}, {"title": "b", "bounding": [0, 5000, 9, 9]}]
    if crowded:
        graph["nodes"][0]["pos"] = [x, y + 200]
    migrate(graph)

    def inside(group: Json) -> set[str]:
        left, top, width, height = group["bounding"]
        middles = {n["type"]: [n["pos"][i] + n["size"][i] / 2 for i in range(2)] for n in graph["nodes"]}
        return {k for k, (a, b) in middles.items() if left <= a < left + width and top <= b < top + height}

    assert inside(graph["groups"][0]) == {"TCD_Scheduler", "TCD_Sampler"}
    assert graph["groups"][1]["bounding"] == [0, 5000, 9, 9]
    if crowded:
        assert graph["groups"][0]["bounding"] == box


# Files that hold graphs


def held(form: str, prompt: Json, workflow: Json) -> tuple[Any, list[str]]:
    """What the host is sent or keeps, and where the graphs are in it."""
    extra = {"extra_pnginfo": {"workflow": workflow}, "client_id": "a"}
    body = {"prompt": prompt, "client_id": "a", "extra_data": extra}
    entry = {"prompt": [3, "abc", prompt, extra, ["4"]], "outputs": {"4": {"images": []}}, "status": {}}
    inside = "extra_pnginfo.workflow"
    return {
        "post": (body, ["prompt", f"extra_data.{inside}"]),
        "history": ({"abc": entry}, ["abc.prompt.2", f"abc.prompt.3.{inside}"]),
        "entry": (entry, ["prompt.2", f"prompt.3.{inside}"]),
        "queue": ({"queue_running": [entry["prompt"]]}, ["queue_running.0.2", f"queue_running.0.3.{inside}"]),
        "list": ([prompt, workflow], ["0", "1"]),
        "texts": ({"prompt": prompt, "workflow": workflow}, ["prompt", "workflow"]),
    }[form]


@pytest.mark.parametrize("form", ["post", "history", "entry", "queue", "list", "texts"])
def test_graphs_within_what_the_host_sends_and_keeps(tmp_path: Path, form: str, capsys: Any):
    data, where = held(form, api(ALL["jetthu"]), in_subgraph(ALL["jetthu"], {6}))
    prompt, workflow = api(ALL["jetthu"]), in_subgraph(ALL["jetthu"], {6})
    migrate(prompt)
    migrate(workflow)
    expected, _ = held(form, prompt, workflow)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data), "utf-8")
    assert cli.main(["migrate-workflow", str(path), "--in-place"]) == 0
    assert json.loads(path.read_text("utf-8")) == expected
    shown = capsys.readouterr().out
    assert f"{where[0]}: node 6 (" in shown and f"{where[1]}: node sampling: 6 (" in shown


def test_a_prompt_in_the_extra_of_a_saved_graph():
    graph = grouped("workflow>a", "a", [inner("TCDScheduler", 4)])
    graph["extra"]["prompt"] = api(licyk("tcd"))
    remarks = migrate(graph)
    assert [(r.graph, r.by_hand) for r in remarks] == [("", True), ("extra.prompt", False)]
    assert graph["extra"]["prompt"]["5"]["inputs"]["sampler_name"] == "tcd_sss"


@pytest.mark.parametrize("key", ["id", "type"])
def test_a_graph_that_is_broken(tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]):
    graph = ui(ALL["jetthu"])
    del graph["nodes"][0][key]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(graph), "utf-8")
    assert cli.main(["migrate-workflow", str(path)]) == 2
    assert "is not as ComfyUI saves or exports it" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_body_that_holds_nothing_of_tcd(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.json"
    graph = api({**BASE, 5: custom((1, 0), (1, 0), (1, 0))})
    path.write_text(json.dumps({"prompt": graph}), "utf-8")
    assert cli.main(["migrate-workflow", str(path)]) == 0
    assert capsys.readouterr().out.endswith("nothing to change\n")
