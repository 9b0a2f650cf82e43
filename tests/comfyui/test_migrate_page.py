"""Migrated graphs in the page of a real host: their subgraphs show the new widgets, with the old values."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import copy_pack
from comfyui_server import Server, serve
from migrate_graphs import Json, face, in_subgraph, jetthu, licyk, nested, ui
from test_migrate_run import OLD_NODE
from test_web_page import SCRIPTS, browser, playwright  # noqa: F401  # pyright: ignore[reportUnusedImport]

from comfyui_tcd.migrate.command import migrate

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
ENTRIES = [["6", "eta"], ["6", "scheduler"], ["6", "steps"]]


def by_entries() -> Json:
    """JettHu's node in a subgraph that shows its widgets as pages of 2025 saved it: values are inside too."""
    graph = in_subgraph(jetthu(steps=6, eta=0.7), {6})
    graph["nodes"][-1] |= {"properties": {"proxyWidgets": ENTRIES}, "widgets_values": [0.7, "simple", 6]}
    return graph


def by_inputs() -> Json:
    """The same as newer pages save it."""
    graph = in_subgraph(jetthu(), {6})
    for name, kind, value in (("eta", "FLOAT", 0.7), ("scheduler", "COMBO", "simple"), ("steps", "INT", 6)):
        face(graph, 6, name, kind, value)
    return graph


def in_another(graph: Json, entries: list[list[str]]) -> Json:
    """In a subgraph of its own, which shows the same."""
    values = graph["nodes"][-1]["widgets_values"]
    graph = nested(graph, 7)
    graph["nodes"][-1] |= {
        "properties": {"proxyWidgets": entries} if entries else {},
        "widgets_values": values,
    }
    return graph


def name_on_face() -> Json:
    graph = in_subgraph(licyk("euler"), {5})
    face(graph, 5, "sampler_name", "COMBO", "tcd")
    return graph


GRAPHS = {
    "entries": by_entries,
    "inputs": by_inputs,
    "nested-entries": lambda: in_another(by_entries(), [["7", f"{node}: {name}"] for node, name in ENTRIES]),
    "nested-inputs": lambda: in_another(by_inputs(), []),
    "name": name_on_face,
}


def grouped() -> Json:
    """JettHu's node alone in a group node, as pages of 2024 saved it."""
    graph = ui(jetthu())
    old = graph["nodes"][-1]
    inside: Json = {**copy.deepcopy(old), "index": 0}
    for slot in inside["inputs"]:
        slot["link"] = None
    for slot in inside["outputs"]:
        slot["links"] = []
    graph["extra"] = {"groupNodes": {"fast": {"nodes": [inside], "links": [], "external": []}}}
    old["type"] = "workflow>fast"
    return graph


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("migrated page")
    copy_pack(home / "custom_nodes/ComfyUI TCD")
    (home / "custom_nodes/old.py").write_text(OLD_NODE)
    with serve(host, home) as found:
        yield found


@pytest.fixture(scope="module")
def seen(server: Server, playwright: Path, tmp_path_factory: pytest.TempPathFactory) -> Json:  # noqa: F811
    """What the page shows of each graph, migrated; and of the group node, as it is."""
    graphs = {name: make() for name, make in GRAPHS.items()}
    assert not any(remark.by_hand for graph in graphs.values() for remark in migrate(graph))
    graphs["group"] = grouped()
    kept = os.environ.get("TCD_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    file = tmp_path_factory.mktemp("graphs") / "graphs.json"
    file.write_text(json.dumps(graphs), "utf-8")
    command = ["node", str(SCRIPTS / "migrated.mjs"), server.url, str(browser()), str(folder)]
    environment = {**os.environ, "PLAYWRIGHT": str(playwright), "GRAPHS": str(file)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def inputs(prompt: Json, kind: str) -> Json:
    (node,) = [n for n in prompt.values() if n["class_type"] == kind]
    return node["inputs"]


@pytest.mark.parametrize("name", [x for x in GRAPHS if x != "name"])
def test_the_face_shows_the_new_widgets_with_the_old_values(seen: Json, server: Server, name: str):
    (shown,) = seen[name]["faces"].values()
    if not shown["widgets"] and name.endswith("entries"):
        pytest.skip("this page does not know such entries")
    # Some pages write the number of the node, or our own label of gamma.
    widgets = {re.sub(r"^(\d+: )*| \(eta\)$", "", k): v for k, v in shown["widgets"].items()}
    assert widgets == {"gamma": 0.7, "steps": 6}
    sent = seen[name]["sent"]
    assert inputs(sent, "TCD_Sampler")["gamma"] == 0.7 and inputs(sent, "TCD_Scheduler")["steps"] == 6
    assert server.latents(sent)[0].isfinite().all()


def test_the_face_in_nodes_2_0(seen: Json):
    if not seen["vue"]:
        pytest.skip("this page does not show subgraphs in Nodes 2.0")
    lines = seen["vue"].splitlines()
    assert "gamma" in lines and "eta" not in lines and "steps" in lines
    assert {"6", "0.7"} <= {line.rstrip("0") if "." in line else line for line in lines}


def test_a_sampler_s_name_on_the_face_is_ours(seen: Json, server: Server):
    (shown,) = seen["name"]["faces"].values()
    assert shown["widgets"] == {"sampler_name": "tcd_sss"}
    assert inputs(seen["name"]["sent"], "KSampler")["sampler_name"] == "tcd_sss"
    assert server.latents(seen["name"]["sent"])[0].isfinite().all()


def test_the_page_makes_a_group_node_one_that_can_be_migrated(seen: Json):
    graph = seen["group"]["saved"]
    if not seen["group"]["faces"]:
        pytest.skip("this page does not make group nodes into subgraphs by itself")
    # The page gives settings behind a list the value before theirs: those alone may be left to do by hand.
    assert all("has no equal" in r.text for r in migrate(graph) if r.by_hand)
    (inner,) = graph["definitions"]["subgraphs"]
    kinds = {n["type"] for n in inner["nodes"]}
    assert {"TCD_Scheduler", "TCD_Sampler"} <= kinds and "TCDModelSamplingDiscrete" not in kinds


def test_no_errors_of_ours(seen: Json):
    assert seen["errors"] == []
