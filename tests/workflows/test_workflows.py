"""The shipped workflows are what their declarations make, keep the format's rules, and are documented."""

from __future__ import annotations

import copy
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import make_workflows
import pytest
from PIL import Image
from workflow_files import FILES, FOLDER, NOTES, ROOT, Json, faults, read, to_api, values, widgets
from workflow_graph import GROWS, MORE
from workflow_models import EVERY

from comfyui_tcd.training.known_loras import KNOWN

INFO = read(make_workflows.INFO)
NODE_KEYS = {"id", "type", "pos", "size", "flags", "order", "mode", "inputs", "outputs", "properties"}
SETTINGS = (ROOT / "docs/settings.md").read_text("utf-8")
MODEL_FILE = re.compile(r"\.(safetensors|sft|ckpt|pth|pt)$")

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_files_are_what_the_declarations_make():
    made = {
        name: make_workflows.text(graph.as_json()) for name, (graph, _) in make_workflows.graphs().items()
    }
    again = "run tests/workflows/make_workflows.py --thumbnails and commit what it writes"
    assert {path.stem for path in FILES} == set(made), again
    for path in FILES:
        assert path.read_text("utf-8") == made[path.stem], f"{path.name}: {again}"


def test_the_folder_holds_nothing_else():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {path.stem + end for path in FILES for end in (".json", ".jpg")}
    assert all(re.fullmatch(r"tcd-[a-z0-9-]+\.(json|jpg)", name) for name in names)


@every_file
def test_links_and_widgets_fit_the_nodes(path: Path):
    assert faults(read(path), INFO) == []


def test_no_input_of_a_distillation_is_drawn_anew_by_the_page():
    """Queued again, it has to be the same run: the frontend gives a "seed" another number after each."""
    names = {name: after for name, _, after in widgets(INFO, "TCD_Distill")}
    assert "run_seed" in names and set(names.values()) == {0}


@every_file
def test_the_form_is_the_frontends(path: Path):
    text = path.read_text("ascii")
    workflow = read(path)
    assert workflow["version"] == 0.4 and '"nodes"' in text
    nodes, links = workflow["nodes"], workflow["links"]
    ids = [node["id"] for node in nodes]
    assert len(set(ids)) == len(ids) and workflow["last_node_id"] == max(ids)
    assert [link[0] for link in links] == list(range(1, len(links) + 1))
    assert workflow["last_link_id"] == len(links)
    for node in nodes:
        assert set(node) - {"title", "widgets_values"} == NODE_KEYS
    # Both ends of every link, and no link that only one of them names.
    named_by_outputs = sorted(n for node in nodes for output in node["outputs"] for n in output["links"])
    named_by_inputs = sorted(s["link"] for node in nodes for s in node["inputs"] if s["link"] is not None)
    assert named_by_outputs == named_by_inputs == [link[0] for link in links]


@every_file
def test_every_node_says_where_it_comes_from(path: Path):
    packs = {
        "TCD_": ("trajectory-consistency", make_workflows.version()),
        "IPAdapter": ("comfyui_ipadapter_plus", "2.0.0"),
    }
    for node in read(path)["nodes"]:
        properties, name = node["properties"], node["type"]
        core = "comfy-core", properties["ver"]
        expected = next((pack for start, pack in packs.items() if name.startswith(start)), core)
        assert (properties["cnr_id"], properties["ver"]) == expected
        assert re.fullmatch(r"\d+\.\d+\.\d+", properties["ver"])
        assert properties["Node name for S&R"] == name


@every_file
def test_every_model_can_be_downloaded(path: Path):
    known = {model.name: model for model in EVERY}
    for node in read(path)["nodes"]:
        if node["type"] in NOTES:
            continue
        loaded = [v for v in values(INFO, node).values() if isinstance(v, str) and MODEL_FILE.search(v)]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == loaded
        for model in models:
            url = urlparse(model["url"])
            assert url.scheme == "https" and url.netloc == "huggingface.co"
            assert "/resolve/main/" in url.path and MODEL_FILE.search(url.path) and not url.query
            assert known[model["name"]].as_json() == model


@every_file
def test_groups_go_from_left_to_right_around_their_nodes(path: Path):
    workflow = read(path)
    boxes = [group["bounding"] for group in workflow["groups"]]
    for left, right in pairwise(boxes):
        assert left[0] + left[2] < right[0]
    for group, box in zip(workflow["groups"], boxes, strict=True):
        assert group["title"].startswith(f"{boxes.index(box) + 1} ")
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        around = [b for b in boxes if b[0] < x and x + width < b[0] + b[2] and y + height < b[1] + b[3]]
        assert len(around) == 1, node["type"]
        column = [n for n in workflow["nodes"] if n["pos"][0] == x and n is not node]
        assert all(n["pos"][1] > y + height or n["pos"][1] + n["size"][1] < y - 30 for n in column)
        below = [n["type"] for n in column if n["pos"][1] > y]
        assert not (node["type"] in GROWS and below), f"{node['type']} would grow over {below} by a run"


@every_file
def test_notes_explain_what_was_chosen(path: Path):
    workflow = read(path)
    notes = " ".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)
    for steps, cfg, gamma in settings(workflow):
        assert f"steps {steps}" in notes or f"{steps} step" in notes
        assert f"cfg {cfg:g}" in notes and f"gamma {gamma:g}" in notes


@every_file
def test_the_picture_is_a_small_jpeg(path: Path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 40_000
    with Image.open(picture) as image:
        assert image.format == "JPEG" and image.size == (480, 320)


def settings(workflow: Json) -> set[tuple[int, float, float]]:
    """(steps, cfg, gamma) of every sampler."""
    prompt = to_api(workflow, INFO).values()

    def column(kind: str, name: str) -> list[Any]:
        return [node["inputs"][name] for node in prompt if node["class_type"] == kind]

    def rows(kind: str) -> list[list[Any]]:
        return [column(kind, name) for name in ("steps", "cfg")]

    found = set(zip(*rows("TCD_KSampler"), column("TCD_KSampler", "gamma"), strict=True))
    if cfgs := column("SamplerCustom", "cfg"):
        (steps,), (gamma,) = column("TCD_Scheduler", "steps"), column("TCD_Sampler", "gamma")
        found |= {(steps, cfg, gamma) for cfg in cfgs}
    if column("KSampler", "cfg"):
        found |= set(zip(*rows("KSampler"), column("TCD_Settings", "gamma"), strict=True))
    return found


def loras(workflow: Json) -> set[str]:
    prompt = to_api(workflow, INFO).values()
    files = {n["inputs"]["lora_name"] for n in prompt if n["class_type"] == "TCD_LoraLoader"}
    embedded = {f"embedded {n['inputs']['lora']}" for n in prompt if n["class_type"] == "TCD_EmbeddedModel"}
    made = {f"{n['inputs']['run_name']}, made in it" for n in prompt if n["class_type"] == "TCD_Distill"}
    return {name.removesuffix(".safetensors") for name in files | embedded | made}


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading of docs/settings.md."""
    section = SETTINGS.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.split("\n") if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_documents_say_what_the_workflows_do():
    documented = {
        (
            re.findall(r"\((.*)\)", row[0])[0].rsplit("/", 1)[1],
            row[1],
            int(row[2]),
            float(row[3]),
            float(row[4]),
        )
        for row in table("The workflows")
    }
    done = {
        (path.name, lora, *triple)
        for path in FILES
        for lora in loras(read(path))
        for triple in settings(read(path))
    }
    assert documented == done
    assert all(f"](../workflows/{path.name})" in SETTINGS for path in FILES)
    prose = SETTINGS.replace("\n", " ")
    for path in FILES:
        for node in to_api(read(path), INFO).values():
            if node["class_type"] == "TCD_CompareGrid":
                assert "steps {steps} and gamma {gammas} at cfg {cfg:g}".format(**node["inputs"]) in prose


def test_the_documents_say_what_the_loader_says():
    documented = {
        (re.sub(r" \(.*", "", name), *map(float, numbers)) for name, *numbers, _ in table("Published LoRAs")
    }
    advice = [row.advice for row in KNOWN]
    assert documented == {(a.title, a.strength, a.steps, a.cfg, a.gamma) for a in advice}


def test_faults_are_found():
    """The rules themselves: each breach of a good file is named."""
    good = read(FOLDER / "tcd-sdxl-text-to-image.json")

    def breach(change: Any) -> list[str]:
        bad = copy.deepcopy(good)
        change({node["type"]: node for node in bad["nodes"]}, bad)
        return faults(bad, INFO)

    assert breach(lambda nodes, _: None) == []
    assert "is not known" in breach(lambda nodes, _: nodes["VAEDecode"].update(type="Gone"))[0]
    assert "no value for" in breach(lambda nodes, _: nodes["TCD_KSampler"]["widgets_values"].pop())[0]
    assert "of no widget" in breach(lambda nodes, _: nodes["SaveImage"]["widgets_values"].append(1))[0]
    wrong = breach(lambda nodes, _: nodes["TCD_KSampler"]["widgets_values"].__setitem__(4, 1.5))
    assert wrong == ["TCD_KSampler: gamma 1.5 is not between 0.0 and 1.0"]
    combo = breach(lambda nodes, _: nodes["TCD_KSampler"]["widgets_values"].__setitem__(6, "3"))
    assert "order '3' is not one of" in combo[0]
    assert "is not connected" in breach(lambda nodes, _: nodes["VAEDecode"]["inputs"][0].update(link=None))[0]
    assert breach(lambda _, bad: bad["links"][0].__setitem__(5, "VAE"))
    assert "not there" in breach(lambda _, bad: bad["links"][0].__setitem__(3, 99))[0]
    assert "outputs are" in breach(lambda nodes, _: nodes["TCD_LoraLoader"]["outputs"].pop())[0]
    for node in ("CLIPTextEncode", "TCD_KSampler"):
        assert "outputs are" in breach(lambda nodes, _, node=node: nodes[node]["outputs"].clear())[0]


def test_files_fit_hosts_whose_savers_return_what_they_take_and_those_whose_savers_return_nothing():
    good = read(FOLDER / "tcd-sdxl-text-to-image.json")
    saver = next(node for node in good["nodes"] if node["type"] == "SaveImage")
    newer = {**INFO, "SaveImage": {**INFO["SaveImage"], "output": ["IMAGE"], "output_name": ["images"]}}
    older = {**INFO, "SaveImage": {**INFO["SaveImage"], "output": [], "output_name": []}}
    assert faults(good, newer) == faults(good, older) == []
    saver["outputs"] = [{"name": "images", "type": "IMAGE", "links": []}]
    assert faults(good, newer) == []
    assert "outputs are" in faults(good, older)[0]
    other = {**INFO, "SaveImage": {**INFO["SaveImage"], "output": ["MASK"], "output_name": ["images"]}}
    saver["outputs"] = []
    assert "outputs are" in faults(good, other)[0]


def test_there_is_room_for_what_the_page_draws_on_the_nodes():
    """Or it covers the note below."""
    drawn = (ROOT / "web" / "drawing.mjs").read_text("utf-8")
    preset = (ROOT / "web" / "preset.mjs").read_text("utf-8")
    samplers = ("TCD_KSampler", "TCD_Sampler", "TCD_Settings")
    for code, nodes in ((drawn, samplers), (preset, ("TCD_LoraLoader",))):
        (height,) = re.findall(r"addDisplay\(.*\(\) => (\d+)\)", code)
        assert all(MORE[node] >= int(height) + 16 for node in nodes)
