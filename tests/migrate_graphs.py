"""Graphs as users of the other packs have them, on the embedded model; ours in content and form."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Json = dict[str, Any]


class Part(NamedTuple):
    """One node of a graph: inputs by name as (node, output), then widgets and the types of its outputs."""

    type: str
    inputs: dict[str, tuple[int, int]]
    widgets: list[Any]
    outputs: list[str]
    from_widgets: tuple[str, ...] = ()  # inputs that are widgets


NAMES = {"SamplerCustom": ["output", "denoised_output"]}
TYPES = {
    "model": "MODEL", "clip": "CLIP", "positive": "CONDITIONING", "negative": "CONDITIONING",
    "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT", "samples": "LATENT", "vae": "VAE",
    "images": "IMAGE", "steps": "INT", "eta": "FLOAT", "sampler_name": "COMBO", "scheduler": "COMBO", "": "*",
}  # fmt: skip
BASE = {
    1: Part("TCD_EmbeddedModel", {}, ["tcd", 2], ["MODEL", "CLIP", "VAE", "LATENT"]),
    2: Part("CLIPTextEncode", {"clip": (1, 1)}, ["red hair"], ["CONDITIONING"]),
    3: Part("CLIPTextEncode", {"clip": (1, 1)}, [""], ["CONDITIONING"]),
    4: Part("SaveLatent", {"samples": (5, 0)}, ["migrated"], []),
}
PROMPTS = {"positive": (2, 0), "negative": (3, 0), "latent_image": (1, 3)}


def custom(model: tuple[int, int], sampler: tuple[int, int], sigmas: tuple[int, int]) -> Part:
    sockets = {"model": model, **PROMPTS, "sampler": sampler, "sigmas": sigmas}
    return Part("SamplerCustom", sockets, [True, 7, "fixed", 1.0], ["LATENT", "LATENT"])


def jetthu(
    steps: int = 4, scheduler: str = "simple", denoise: float = 1.0, eta: float = 0.5
) -> dict[int, Part]:
    widgets = [steps, scheduler, denoise, eta]
    node = Part("TCDModelSamplingDiscrete", {"model": (1, 0)}, widgets, ["MODEL", "SAMPLER", "SIGMAS"])
    return {**BASE, 5: custom((6, 0), (6, 1), (6, 2)), 6: node}


def lcm_before(eta: float = 0.5, sampling: str = "lcm") -> dict[int, Part]:
    """JettHu's node in a graph that was made for LCM: what its ModelSamplingDiscrete set had no effect."""
    parts = jetthu(eta=eta)
    lcm = Part("ModelSamplingDiscrete", {"model": (1, 0)}, [sampling, False], ["MODEL"])
    return {**parts, 6: parts[6]._replace(inputs={"model": (8, 0)}), 8: lcm}


def dfl(sampler: str = "SamplerTCD EulerA", steps: int = 4, gamma: float = 0.5) -> dict[int, Part]:
    return {
        **BASE,
        5: custom((1, 0), (7, 0), (6, 0)),
        6: Part("TCDScheduler", {"model": (1, 0)}, [steps], ["SIGMAS"]),
        7: Part(sampler, {}, [gamma], ["SAMPLER"]),
    }


def licyk(name: str = "tcd", advanced: bool = False) -> dict[int, Part]:
    sockets = {"model": (1, 0), **PROMPTS}
    widgets = [7, "fixed", 4, 1.0, name, "ddim_uniform", 1.0]
    if advanced:
        widgets = ["enable", 7, "fixed", 4, 1.0, name, "ddim_uniform", 0, 10000, "disable"]
    return {**BASE, 5: Part("KSamplerAdvanced" if advanced else "KSampler", sockets, widgets, ["LATENT"])}


def licyk_select(name: str = "tcd_euler_a") -> dict[int, Part]:
    return {
        **BASE,
        5: custom((1, 0), (7, 0), (6, 0)),
        6: Part("TCDScheduler", {"model": (1, 0)}, [4], ["SIGMAS"]),
        7: Part("KSamplerSelect", {}, [name], ["SAMPLER"]),
    }


ALL = {
    "jetthu": jetthu(),
    "dfl": dfl("SamplerTCD"),
    "dfl euler a": dfl(),
    "licyk": licyk(),
    "licyk advanced": licyk("tcd_euler_a", advanced=True),
    "licyk select": licyk_select(),
}
API_WIDGETS: dict[str, list[str]] = {
    "TCD_EmbeddedModel": ["lora", "batch_size"],
    "CLIPTextEncode": ["text"],
    "SaveLatent": ["filename_prefix"],
    "SamplerCustom": ["add_noise", "noise_seed", "", "cfg"],
    "KSampler": ["seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    "KSamplerAdvanced": [
        "add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step",
        "end_at_step", "return_with_leftover_noise",
    ],
    "KSamplerSelect": ["sampler_name"],
    "TCDModelSamplingDiscrete": ["steps", "scheduler", "denoise", "eta"],
    "ModelSamplingDiscrete": ["sampling", "zsnr"],
    "LoraLoaderModelOnly": ["lora_name", "strength_model"],
    "TCDScheduler": ["steps"],
    "SamplerTCD": ["gamma"],
    "SamplerTCD EulerA": ["gamma"],
}  # fmt: skip


def _inputs(**kinds: Any) -> Json:
    return {"input": {"required": {k: [v, {}] for k, v in kinds.items()}}, "output": [], "output_name": []}


# As the host's /object_info lists them, where the tests of the templates need them not.
MORE_INFO: Json = {
    "SaveLatent": _inputs(samples="LATENT", filename_prefix="STRING"),
    "KSamplerAdvanced": {
        **_inputs(
            model="MODEL", add_noise=["enable", "disable"], noise_seed="INT", steps="INT", cfg="FLOAT",
            sampler_name=["tcd_sss", "tcd", "tcd_euler_a"], scheduler=["ddim_uniform"],
            positive="CONDITIONING", negative="CONDITIONING", latent_image="LATENT", start_at_step="INT",
            end_at_step="INT", return_with_leftover_noise=["disable", "enable"],
        ),
        "output": ["LATENT"], "output_name": ["LATENT"],
    },
}  # fmt: skip
OLD_INFO: Json = {
    "TCDModelSamplingDiscrete": _inputs(
        model="MODEL", steps="INT", scheduler=["simple"], denoise="FLOAT", eta="FLOAT"
    ),
    "TCDScheduler": _inputs(model="MODEL", steps="INT"),
    "SamplerTCD": _inputs(gamma="FLOAT"),
    "SamplerTCD EulerA": _inputs(gamma="FLOAT"),
    "KSamplerSelect": _inputs(sampler_name=["tcd"]),
}


def api(parts: dict[int, Part]) -> Json:
    """As the host exports it for its API."""
    graph: Json = {}
    for number, part in parts.items():
        values = dict(zip(API_WIDGETS[part.type], part.widgets, strict=True))
        values.pop("", None)
        links = {name: [str(origin), slot] for name, (origin, slot) in part.inputs.items()}
        graph[str(number)] = {"class_type": part.type, "inputs": {**values, **links}}
    return graph


def ui(parts: dict[int, Part]) -> Json:
    """As the frontend saves it, version 0.4."""
    nodes: list[Json] = []
    links: list[list[Any]] = []
    for number, part in parts.items():
        sockets: list[Json] = []
        for slot, (name, (origin, origin_slot)) in enumerate(part.inputs.items()):
            kind = TYPES[name]
            links.append([len(links) + 1, origin, origin_slot, number, slot, kind])
            sockets.append({"name": name, "type": kind, "link": len(links)})
            if name in part.from_widgets:
                sockets[-1]["widget"] = {"name": name}
        nodes.append(
            {
                "id": number, "type": part.type, "pos": [number * 300, 100], "size": [250, 120], "flags": {},
                "order": number, "mode": 0, "inputs": sockets, "outputs": [
                    {"name": name, "type": kind, "links": []}
                    for name, kind in zip(NAMES.get(part.type, part.outputs), part.outputs, strict=True)
                ],
                "properties": {"Node name for S&R": part.type}, "widgets_values": list(part.widgets),
            }
        )  # fmt: skip
    by_id = {node["id"]: node for node in nodes}
    for number, origin, slot, *_ in links:
        by_id[origin]["outputs"][slot]["links"].append(number)
    return {
        "last_node_id": max(parts), "last_link_id": len(links), "nodes": nodes, "links": links,
        "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


ENDS = {
    "inputNode": {"id": -10, "bounding": [-400, 100, 120, 200]},
    "outputNode": {"id": -20, "bounding": [4000, 100, 120, 200]},
}
"""Where the page draws the inputs and outputs of a subgraph."""


def in_subgraph(parts: dict[int, Part], inside: set[int]) -> Json:
    """The same with some nodes in a subgraph, as the frontend saves that."""
    whole = ui(parts)
    nodes = {node["id"]: node for node in whole["nodes"]}
    name, instance = "0f0e0d0c-1111-4222-8333-444455556666", max(parts) + 1
    inner: Json = {
        "id": name, "version": 1, "name": "sampling", "revision": 0, "config": {}, "widgets": [],
        "state": {"lastGroupId": 0, "lastNodeId": max(parts), "lastLinkId": 100, "lastRerouteId": 0},
        "inputs": [], "outputs": [], "groups": [], "links": [], **ENDS,
        "nodes": [nodes[i] for i in sorted(inside)],
    }  # fmt: skip
    node: Json = {
        "id": instance, "type": name, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0, "mode": 0,
        "inputs": [], "outputs": [], "properties": {}, "widgets_values": [],
    }  # fmt: skip
    outer: list[list[Any]] = []
    for number, origin, slot, target, target_slot, kind in whole["links"]:
        row = {"id": number, "origin_id": origin, "origin_slot": slot, "target_id": target}
        row |= {"target_slot": target_slot, "type": kind}
        if origin in inside and target in inside:
            inner["links"].append(row)
        elif target in inside:
            inner["inputs"].append(
                {"id": f"in{number}", "name": f"in{number}", "type": kind, "linkIds": [number]}
            )
            inner["links"].append({**row, "origin_id": -10, "origin_slot": len(inner["inputs"]) - 1})
            node["inputs"].append({"name": f"in{number}", "type": kind, "link": number})
            outer.append([number, origin, slot, instance, len(node["inputs"]) - 1, kind])
        elif origin in inside:
            out = {"id": f"out{number}", "name": f"out{number}", "type": kind, "linkIds": [number]}
            inner["outputs"].append(out)
            inner["links"].append({**row, "target_id": -20, "target_slot": len(inner["outputs"]) - 1})
            node["outputs"].append({"name": f"out{number}", "type": kind, "links": [number]})
            outer.append([number, instance, len(node["outputs"]) - 1, target, target_slot, kind])
        else:
            outer.append([number, origin, slot, target, target_slot, kind])
    whole |= {"nodes": [n for i, n in nodes.items() if i not in inside] + [node], "links": outer}
    return {**whole, "last_node_id": instance, "definitions": {"subgraphs": [inner]}}


def flat(graph: Json) -> Json:
    """A graph with one subgraph without it: the links between the two joined."""
    (inner,) = graph["definitions"]["subgraphs"]
    (instance,) = [n for n in graph["nodes"] if n["type"] == inner["id"]]
    links = [list(x) for x in graph["links"]]
    rows = [[x[k] for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
            for x in inner["links"]]  # fmt: skip
    into = {x[4]: x for x in links if x[3] == instance["id"]}
    out = {x[4]: x for x in rows if x[3] == -20}
    joined = [x for x in links if instance["id"] not in (x[1], x[3])]
    for row in rows:
        if row[1] == -10:
            row[1:3] = into[row[2]][1:3]
        if row[3] != -20:
            joined.append(row)
    for link in links:
        if link[1] == instance["id"]:
            joined.append([link[0], *out[link[2]][1:3], *link[3:]])
    # The two halves number their links alike.
    nodes = [n for n in graph["nodes"] if n is not instance] + inner["nodes"]
    by_id = {n["id"]: n for n in nodes}
    for number, link in enumerate(joined, 1):
        link[0] = number
        by_id[link[3]]["inputs"][link[4]]["link"] = number
    return {**graph, "nodes": nodes, "links": joined, "definitions": {}}


def face(graph: Json, node: int, widget: str, kind: str, value: Any) -> None:
    """Shows a widget inside the graph's subgraph on its face, by an input, as newer pages save it."""
    (inner,) = graph["definitions"]["subgraphs"]
    instance = next(n for n in graph["nodes"] if n["type"] == inner["id"])
    target = next(n for n in inner["nodes"] if n["id"] == node)
    number = 500 + len(inner["inputs"])
    target["inputs"].append({"name": widget, "type": kind, "widget": {"name": widget}, "link": number})
    ends = {"origin_id": -10, "origin_slot": len(inner["inputs"]), "target_id": node}
    inner["links"].append({"id": number, **ends, "target_slot": len(target["inputs"]) - 1, "type": kind})
    inner["state"]["lastLinkId"] = number
    inner["inputs"].append({"id": f"face-{widget}", "name": widget, "type": kind, "linkIds": [number]})
    instance["inputs"].append({"name": widget, "type": kind, "widget": {"name": widget}, "link": None})
    instance["widgets_values"].append(value)


def nested(graph: Json, number: int) -> Json:
    """The same with the instance `number` of a subgraph in a subgraph of its own, which has the same face."""
    (inner,) = graph["definitions"]["subgraphs"]
    instance = next(n for n in graph["nodes"] if n["id"] == number)
    key = "1f1e1d1c-2222-4222-8333-444455556666"
    outer: Json = {
        "id": key, "version": 1, "name": "outer", "revision": 0, "config": {}, "widgets": [],
        "state": {"lastGroupId": 0, "lastNodeId": number, "lastLinkId": 300, "lastRerouteId": 0},
        "inputs": [], "outputs": [], "groups": [], "links": [], **ENDS,
    }  # fmt: skip
    middle = json.loads(json.dumps(instance))
    for slot, entry in enumerate(middle["inputs"]):
        entry["link"] = 100 + slot
        ends = {"origin_id": -10, "origin_slot": slot, "target_id": number, "target_slot": slot}
        outer["links"].append({"id": 100 + slot, **ends, "type": entry["type"]})
        outer["inputs"].append({**inner["inputs"][slot], "id": f"o{slot}", "linkIds": [100 + slot]})
    for slot, entry in enumerate(middle["outputs"]):
        entry["links"] = [200 + slot]
        ends = {"origin_id": number, "origin_slot": slot, "target_id": -20, "target_slot": slot}
        outer["links"].append({"id": 200 + slot, **ends, "type": entry["type"]})
        outer["outputs"].append({**inner["outputs"][slot], "id": f"p{slot}", "linkIds": [200 + slot]})
    outer["nodes"] = [middle]
    instance |= {"id": number + 1, "type": key, "properties": {}}
    for link in graph["links"]:
        for end in (1, 3):
            link[end] = number + 1 if link[end] == number else link[end]
    graph["last_node_id"] = number + 1
    graph["definitions"]["subgraphs"].append(outer)
    return graph
