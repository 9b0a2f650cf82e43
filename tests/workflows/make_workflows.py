"""Writes the files of workflows/ from their declarations: `python tests/workflows/make_workflows.py`.

`--thumbnails` also draws the .jpg beside each. `--record HOST_URL` first asks a running ComfyUI, with this
pack and ComfyUI_IPAdapter_plus, what the nodes are, and keeps that in object_info.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]

import workflows_from_images as images  # noqa: E402
import workflows_from_text as texts  # noqa: E402
import workflows_of_tools as tools  # noqa: E402
from workflow_files import FOLDER, NOTES, ROOT, Info, Json, choices, options, read  # noqa: E402
from workflow_graph import Graph  # noqa: E402

WORKFLOWS = (
    texts.tcd_embedded_no_download,
    texts.tcd_sdxl_text_to_image,
    texts.tcd_sd15_text_to_image,
    texts.tcd_animagine_xl,
    texts.tcd_sdxl_style_lora_papercut,
    texts.tcd_hyper_sd_unified_lora,
    texts.tcd_sdxl_plain_ksampler,
    images.tcd_sdxl_controlnet_depth,
    images.tcd_sdxl_controlnet_canny,
    images.tcd_sdxl_ip_adapter,
    images.tcd_sdxl_inpainting,
    images.tcd_sdxl_image_to_image,
    images.tcd_sdxl_hires_split_sigmas,
    tools.tcd_gamma_by_steps_grid,
    tools.tcd_distill_your_checkpoint,
    tools.tcd_flux_or_sd3_flow,
)
INFO = HERE / "object_info.json"
FILE_LIKE = re.compile(r"\.(safetensors|ckpt|pth|pt|bin|png|jpe?g|webp)$")


def version() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert found
    return found[1]


def graphs(info: Info | None = None) -> dict[str, tuple[Graph, str]]:
    """Name -> the graph, and its caption."""
    info = read(INFO) if info is None else info
    made: dict[str, tuple[Graph, str]] = {}
    for declare in WORKFLOWS:
        graph = Graph(declare.__name__.replace("_", "-"), info, version())
        declare(graph)
        made[graph.name] = graph, declare.__doc__ or ""
    return made


def text(workflow: Json) -> str:
    return json.dumps(workflow, indent=1) + "\n"


def record(url: str) -> None:
    """The nodes that the workflows use, without the host's own files and long texts."""
    with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
        info = json.loads(answer.read())
    used = {node.type for graph, _ in graphs(info).values() for node in graph.nodes} - set(NOTES)
    INFO.write_text(json.dumps({name: _trim(info[name]) for name in sorted(used)}, indent=1) + "\n", "utf-8")


def _trim(node: Json) -> Json:
    def spec(given: list[Any]) -> list[Any]:
        offered = choices(given)
        kept = {k: v for k, v in options(given).items() if k not in ("tooltip", "options")}
        if offered is None:
            return [given[0], kept]
        files = not offered or any(FILE_LIKE.search(str(value)) for value in offered)
        return [[] if files else offered, kept]

    groups = node["input"].items()
    return {
        "input": {
            group: {name: spec(given) for name, given in found.items()}
            for group, found in groups
            if group != "hidden"
        },
        "output": node["output"],
        "output_name": node["output_name"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="HOST_URL")
    parser.add_argument("--thumbnails", action="store_true")
    given = parser.parse_args()
    if given.record:
        record(given.record)
    FOLDER.mkdir(exist_ok=True)
    for name, (graph, caption) in graphs().items():
        (FOLDER / f"{name}.json").write_text(text(graph.as_json()), "utf-8")
        if given.thumbnails:
            from workflow_thumbnails import draw

            draw(graph, caption, FOLDER / f"{name}.jpg")


if __name__ == "__main__":
    main()
