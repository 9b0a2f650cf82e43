"""`tcd migrate-workflow`: graphs of each pack, of either format, with and without subgraphs."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from migrate_graphs import (
    ALL,
    BASE,
    MORE_INFO,
    OLD_INFO,
    Part,
    api,
    custom,
    dfl,
    flat,
    in_subgraph,
    jetthu,
    licyk,
    licyk_select,
    ui,
)
from workflow_files import faults, to_api

from comfyui_tcd import cli
from comfyui_tcd.migrate.command import migrate
from comfyui_tcd.migrate.table import NAMES, OURS, RULES, WIDGET_TYPES, markdown

ROOT = Path(__file__).resolve().parents[2]
INFO = {**json.loads((ROOT / "tests/workflows/object_info.json").read_text("utf-8")), **MORE_INFO}
OLD = {*RULES, *NAMES}


def meaning(prompt: dict[str, Any], node: str = "4") -> Any:
    """What a node of an API graph is, without numbers: its type and inputs, and those of what it takes."""
    entry = prompt[node]
    inputs = {
        k: [meaning(prompt, v[0]), v[1]] if isinstance(v, list) else v for k, v in entry["inputs"].items()
    }
    return entry["class_type"], inputs


@pytest.mark.parametrize("name", ALL)
def test_both_formats_say_the_same_after_it_and_nothing_old_is_left(name: str):
    by_api, by_ui = api(ALL[name]), ui(ALL[name])
    first, second = migrate(by_api), migrate(by_ui)
    assert first and [(r.type, r.text) for r in first] == [(r.type, r.text) for r in second]
    assert faults(by_ui, INFO) == []
    assert meaning(to_api(by_ui, INFO)) == meaning(by_api)
    kinds = {node["class_type"] for node in by_api.values()}
    names = {node["inputs"].get("sampler_name") for node in by_api.values()}
    assert not (kinds | names) & OLD
    assert by_ui["last_node_id"] == max(n["id"] for n in by_ui["nodes"])
    assert by_ui["last_link_id"] >= max(x[0] for x in by_ui["links"])
    assert len({x[0] for x in by_ui["links"]}) == len(by_ui["links"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("inside", [{5}, {5, 6}, {6}])
def test_subgraphs(name: str, inside: set[int]):
    parts = ALL[name]
    if not inside <= set(parts):
        inside = {5}
    graph, plain = in_subgraph(parts, inside), ui(parts)
    before = (to_api(x, {**INFO, **OLD_INFO}) for x in (flat(copy.deepcopy(graph)), plain))
    assert meaning(next(before)) == meaning(next(before))  # the test's own subgraph is right
    migrate(graph)
    migrate(plain)
    check_links(graph["definitions"]["subgraphs"][0])
    found, expected = (meaning(to_api(g, INFO)) for g in (flat(graph), plain))
    if name == "jetthu" and inside == {6}:  # the model goes straight through: see _pass_on
        settings = found[1]["samples"][0][1]["model"][0]
        assert settings[0] == "TCD_Settings" and settings[1]["gamma"] == 0.5
        found[1]["samples"][0][1]["model"] = settings[1]["model"]
    assert found == expected


def check_links(scope: dict[str, Any]) -> None:
    """Both ends of every link know it, and nothing else does."""
    links = {x["id"]: x for x in scope["links"]}
    known: set[tuple[int, str]] = set()
    for node in scope["nodes"]:
        for slot, entry in enumerate(node["inputs"]):
            if entry["link"] is not None:
                link = links[entry["link"]]
                assert (link["target_id"], link["target_slot"]) == (node["id"], slot)
                known.add((entry["link"], "in"))
        for slot, entry in enumerate(node["outputs"]):
            for number in entry["links"]:
                assert (links[number]["origin_id"], links[number]["origin_slot"]) == (node["id"], slot)
                known.add((number, "out"))
    for side, end, slot in (("inputs", "origin", -10), ("outputs", "target", -20)):
        for index, entry in enumerate(scope[side]):
            for number in entry["linkIds"]:
                assert links[number][f"{end}_id"] == slot and links[number][f"{end}_slot"] == index
                known.add((number, "out" if end == "origin" else "in"))
    assert known == {(number, side) for number in links for side in ("in", "out")}
    assert scope["state"]["lastLinkId"] >= max(links)


@pytest.mark.parametrize("form", [ui, api])
@pytest.mark.parametrize("name", ALL)
def test_again_changes_nothing(form: Any, name: str):
    graph = form(ALL[name])
    migrate(graph)
    before = copy.deepcopy(graph)
    assert migrate(graph) == [] and graph == before


STRANGE = {"class_type": "Unheard of", "inputs": {"model": ["1", 0], "x": "tcd"}}


def test_other_nodes_of_an_api_graph_stay_as_they_are():
    graph = {**api(ALL["jetthu"]), "40": STRANGE}
    before = copy.deepcopy(graph)
    migrate(graph)
    assert [graph[x] for x in ("1", "2", "3", "4", "40")] == [before[x] for x in ("1", "2", "3", "4", "40")]


def test_other_nodes_of_a_saved_graph_stay_as_they_are():
    graph = ui({**ALL["jetthu"], 40: Part("Unheard of", {"model": (1, 0)}, ["x", 3], ["MODEL"])})
    before = {node["id"]: node for node in copy.deepcopy(graph)["nodes"]}
    migrate(graph)
    after = {node["id"]: node for node in graph["nodes"]}
    assert [after[x] for x in (2, 3, 4, 40)] == [before[x] for x in (2, 3, 4, 40)]
    links = after[1]["outputs"][0]["links"]
    assert len(links) == 3  # to the sampler, the scheduler and the unheard of
    after[1]["outputs"][0]["links"] = before[1]["outputs"][0]["links"]
    assert after[1] == before[1]
    assert [x[3] for x in graph["links"] if x[1:3] == [1, 0]].count(5) == 1


def settings_of(graph: dict[str, Any], kind: str) -> dict[str, Any]:
    (node,) = [n for n in graph.values() if n["class_type"] == kind]
    return node["inputs"]


def test_values_are_carried_over():
    graph = api(jetthu(6, "simple", 1.0, 0.7))
    assert all(not remark.by_hand for remark in migrate(graph))
    assert settings_of(graph, "TCD_Scheduler") == {
        "model": ["1", 0], "steps": 6, "denoise": 1.0, "original_steps": 50,
    }  # fmt: skip
    sampler = settings_of(graph, "TCD_Sampler")
    assert (sampler["gamma"], sampler["end"]) == (0.7, "official")
    graph = api(dfl("SamplerTCD EulerA", 60, 0.2))
    migrate(graph)
    assert settings_of(graph, "TCD_Sampler")["end"] == "clean"
    scheduler = settings_of(graph, "TCD_Scheduler")
    assert (scheduler["steps"], scheduler["original_steps"]) == (60, 0)
    graph = api(licyk("tcd"))
    migrate(graph)
    assert settings_of(graph, "TCD_Settings") == {
        "model": ["1", 0], "gamma": 0.3, "gamma_end": -1.0, "order": "1", "end": "clean",
    }  # fmt: skip
    host = settings_of(graph, "KSampler")
    assert (host["sampler_name"], host["scheduler"], host["seed"]) == ("tcd_sss", "ddim_uniform", 7)


@pytest.mark.parametrize("form", [ui, api])
@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (jetthu(scheduler="sgm_uniform"), "scheduler 'sgm_uniform' has no equal: the official timesteps"),
        (jetthu(denoise=0.5), "denoise 0.5 has no equal: denoise is diffusers' strength"),
        (dfl(steps=5000), "steps 5000 has no equal: more than 50"),
        (
            {**BASE, 5: custom((1, 0), (6, 0), (6, 0)), 6: Part("TCDSampler", {}, [], ["SAMPLER"])},
            "no node that this command knows",
        ),
    ],
)
def test_what_has_no_equal_is_named(
    form: Any, parts: dict[int, Part], text: str, monkeypatch: pytest.MonkeyPatch
):
    import migrate_graphs

    monkeypatch.setitem(migrate_graphs.API_WIDGETS, "TCDSampler", [])
    (remark,) = [r for r in migrate(form(parts)) if r.by_hand]
    assert text in remark.text and str(remark).startswith("by hand: node 6 (")


def test_names_in_nodes_of_other_packs_are_named_and_left():
    detailer = Part("FaceDetailer", {"model": (1, 0)}, [3, "tcd_euler_a", "normal"], ["IMAGE"])
    graph = ui({**BASE, 5: detailer})
    before = copy.deepcopy(graph)
    (remark,) = migrate(graph)
    assert remark.by_hand and "'tcd_euler_a'" in remark.text and graph == before
    by_api = {
        "1": {"class_type": "Detailer", "inputs": {"sampler_name": "tcd", "text": "tcd"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "tcd"}},
        "3": {"class_type": "KSampler", "inputs": {"sampler_name": ["4", 0]}},
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "tcd_euler_a"}},
    }
    before = copy.deepcopy(by_api)
    assert [(r.node, r.by_hand) for r in migrate(by_api)] == [("1", True), ("3", True)] and by_api == before


def test_a_primitive_chooses_the_name():
    parts = licyk("euler")
    sampler = parts[5]
    inputs = {**sampler.inputs, "sampler_name": (8, 0)}
    chosen = sampler._replace(inputs=inputs, from_widgets=("sampler_name",))
    primitive = Part("PrimitiveNode", {}, ["tcd", "fixed"], ["COMBO"])
    graph = ui({**parts, 5: chosen, 8: primitive, 9: chosen})
    assert [r.type for r in migrate(graph)] == ["KSampler", "KSampler"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert nodes[8]["widgets_values"] == ["tcd_sss", "fixed"]
    assert sum(node["type"] == "TCD_Settings" for node in graph["nodes"]) == 2
    assert migrate(graph) == []


def test_linked_widgets_stay_linked():
    parts = jetthu()
    old = parts[6]._replace(
        inputs={"model": (1, 0), "steps": (8, 0), "eta": (9, 0)}, from_widgets=("steps", "eta")
    )
    parts = {**parts, 6: old, 8: Part("PrimitiveNode", {}, [9, "fixed"], ["INT"])}
    graph = ui({**parts, 9: Part("PrimitiveNode", {}, [0.9, "fixed"], ["FLOAT"])})
    migrate(graph)
    ends: dict[Any, str] = {}
    for number, origin, _, target, slot, _ in graph["links"]:
        node = next(n for n in graph["nodes"] if n["id"] == target)
        assert node["inputs"][slot]["link"] == number
        ends[origin, node["type"]] = node["inputs"][slot]["name"]
    assert ends[8, "TCD_Scheduler"] == "steps" and ends[9, "TCD_Sampler"] == "gamma"
    by_api = api(parts | {6: parts[6]._replace(inputs={"model": (1, 0)})} | {8: BASE[2]})
    by_api["6"]["inputs"]["eta"] = ["8", 0]
    migrate(by_api)
    assert settings_of(by_api, "TCD_Sampler")["gamma"] == ["8", 0]


@pytest.mark.parametrize("form", [ui, api])
def test_a_model_that_is_not_connected_is_named(form: Any):
    parts = jetthu()
    graph = form({**parts, 6: parts[6]._replace(inputs={})})
    assert any("its model is not connected" in r.text and r.by_hand for r in migrate(graph))


def test_nodes_in_a_row_and_several_users_of_a_model():
    parts = jetthu()
    second = parts[6]._replace(inputs={"model": (6, 0)})
    graph = ui({**parts, 7: second, 5: custom((7, 0), (6, 1), (7, 2)), 8: custom((6, 0), (7, 1), (6, 2))})
    migrate(graph)
    assert faults(graph, INFO) == []
    prompt = to_api(graph, INFO)
    models = [n["inputs"]["model"] for n in prompt.values() if "model" in n["inputs"]]
    assert models == [["1", 0]] * 4


def test_old_forms_of_a_file():
    """Positions as objects, widgets by name, no lists of links, a link that is null."""
    graph = ui(jetthu())
    for node in graph["nodes"]:
        node["pos"] = {"0": 1.0, "1": 2.0}
        if node["type"] == "TCDModelSamplingDiscrete":
            node["widgets_values"] = {"steps": 9, "eta": 0.1}
        if not node["inputs"]:
            del node["inputs"]
    graph["links"].append(None)
    migrate(graph)
    (sampler,) = [n for n in graph["nodes"] if n["type"] == "TCD_Sampler"]
    (scheduler,) = [n for n in graph["nodes"] if n["type"] == "TCD_Scheduler"]
    assert sampler["widgets_values"][0] == 0.1 and scheduler["widgets_values"][0] == 9


@pytest.mark.parametrize("kind", OURS)
def test_the_table_of_our_nodes_is_theirs(kind: str):
    given = {**INFO[kind]["input"].get("required", {}), **INFO[kind]["input"].get("optional", {})}
    ours = OURS[kind]
    assert list(given) == [*ours.connections, *ours.widgets]
    for name, value in ours.widgets.items():
        assert given[name][1]["default"] == value
        kind_ = given[name][0] if isinstance(given[name][0], str) else "COMBO"
        assert WIDGET_TYPES[name] == kind_
    assert list(ours.outputs.values()) == INFO[kind]["output"]


def test_the_page_shows_the_table():
    assert markdown() in (ROOT / "docs/migrate.md").read_text("utf-8")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my graph.json"
    path.write_text(json.dumps(ui(licyk_select()), indent=2), "utf-8")
    return path


def test_the_command_writes_beside_the_file(file: Path, capsys: pytest.CaptureFixture[str]):
    before = file.read_text("utf-8")
    assert cli.main(["migrate-workflow", str(file)]) == 0
    out = file.with_name("my graph-migrated.json")
    assert "TCD_Sampler" in out.read_text("utf-8") and file.read_text("utf-8") == before
    shown = capsys.readouterr().out
    assert (
        "node 7 (KSamplerSelect): tcd_euler_a: the node is TCD_Sampler" in shown
        and "node 6 (TCDScheduler): is TCD_Scheduler" in shown
    )
    assert cli.main(["migrate-workflow", str(file)]) == 2
    assert "name another file with --out" in capsys.readouterr().err
    assert cli.main(["migrate-workflow", str(out), "--in-place"]) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_graph_that_powershell_wrote_is_read(file: Path):
    graph = json.loads(file.read_text("utf-8"))
    out = {}
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        file.write_text(json.dumps(graph, ensure_ascii=False), encoding)
        out[encoding] = file.with_name(f"{encoding}.json")
        assert cli.main(["migrate-workflow", str(file), "--out", str(out[encoding])]) == 0
    assert len({path.read_bytes() for path in out.values()}) == 1


def test_graphs_are_migrated_without_torch(file: Path):
    code = f"""
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
spec = ModuleSpec("comfyui_tcd", None, is_package=True)
spec.submodule_search_locations = [{str(ROOT)!r}]
sys.modules[spec.name] = module_from_spec(spec)
from comfyui_tcd import cli
assert cli.main(["migrate-workflow", {str(file)!r}]) == 0
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_input_is_written_over_only_when_asked(file: Path, capsys: pytest.CaptureFixture[str]):
    before = file.read_text("utf-8")
    assert cli.main(["migrate-workflow", str(file), "--out", str(file)]) == 2
    assert "say --in-place" in capsys.readouterr().err and file.read_text("utf-8") == before
    assert cli.main(["migrate-workflow", str(file), "--in-place"]) == 0
    assert "TCD_Sampler" in file.read_text("utf-8")
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_status_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(api(jetthu(scheduler="sgm_uniform"))), "utf-8")
    assert cli.main(["migrate-workflow", str(path), "--out", str(tmp_path / "b.json")]) == 1
    assert "by hand: node 6" in capsys.readouterr().err
    assert "TCD_Scheduler" in (tmp_path / "b.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", "A picture with a graph in it: open it in ComfyUI"),
        (b"{", "is no JSON"),
        (b"[1]", "is no graph"),
        (b"{}", "is no graph"),
        (b'{"a": 1}', "is no graph"),
    ],
)
def test_what_is_no_graph(tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert cli.main(["migrate-workflow", str(path)]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == [path]
