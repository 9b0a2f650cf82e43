"""Every workflow in ComfyUI itself: its nodes and widgets are the host's, and it runs to its images.

The models are stand-ins with random weights (workflow_standins.py), some 5 GB in a temporary folder, or in
the folder WORKFLOW_STANDINS if that is set, which is kept. ComfyUI_IPAdapter_plus is taken from the host's
custom_nodes or from the folder IPADAPTER_PLUS.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfyui_pack import NO_IP_ADAPTER, copy_ip_adapter, copy_pack, ip_adapter_plus
from comfyui_server import Server, serve
from machine_memory import skip_below
from PIL import Image
from workflow_files import FILES, Json, faults, read, to_api
from workflow_standins import make

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
NEEDS = 12
"""GB of free memory, and 6 of disk: a UNet, SDXL's text encoders and a second of both while they change."""
SIDE = 64
OTHER_PACK = "IPAdapter"
SHOWN = ("SaveImage", "PreviewImage", "TCD_CompareGrid", "TCD_Distill")


@pytest.fixture(scope="module")
def models(host: Any) -> Generator[Path]:
    """The folder of stand-ins."""
    skip_below(NEEDS, "a stand-in of SDXL")
    kept = os.environ.get("WORKFLOW_STANDINS")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(kept or temporary)
        if not (folder / "loras").is_dir():
            make(host, folder)
        yield folder


@pytest.fixture(scope="module")
def server(host: Any, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("workflows")
    copy_pack(home / "custom_nodes/trajectory-consistency")
    if ip_adapter_plus(host):
        copy_ip_adapter(host, home / "custom_nodes")
    (home / "models").symlink_to(models, target_is_directory=True)
    (home / "input").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 4), np.uint8)
    picture[..., 3] = 255
    picture[16:48, 16:48, 3] = 0  # the mask of the inpainting workflow
    Image.fromarray(picture).save(home / "input/example.png")
    with serve(host, home) as found:
        yield found


@pytest.fixture
def workflow(request: pytest.FixtureRequest, host: Any) -> Json:
    """Of the file that the test names; skipped where another pack is missing."""
    found = read(request.param)
    if any(node["type"].startswith(OTHER_PACK) for node in found["nodes"]) and not ip_adapter_plus(host):
        pytest.skip(NO_IP_ADAPTER)
    return found


every_file = pytest.mark.parametrize("workflow", FILES, indirect=True, ids=lambda path: path.stem)


def small(prompt: Json, side: int = SIDE) -> Json:
    """The same at the size of a stamp, for random weights on a CPU."""
    for node in prompt.values():
        values = node["inputs"]
        sized = node["class_type"] in ("EmptyLatentImage", "EmptySD3LatentImage", "TCD_Distill")
        if sized or values.get("crop") == "center":
            values.update(width=side, height=side)
        if "reference_steps" in values:
            values["reference_steps"] = 3
        if node["class_type"] == "TCD_Distill":
            few = "trajectories = 1\nvalidation_prompts = 1"
            values.update(steps=1, batch=1, prompts="a cat\na dog", settings=few)
    return prompt


@every_file
def test_the_host_knows_all_of_it(server: Server, workflow: Json):
    assert faults(workflow, server.call("/object_info")) == []


@every_file
def test_it_runs_to_its_images(server: Server, workflow: Json):
    prompt = small(to_api(workflow, server.call("/object_info")))
    wanted = [key for key, node in prompt.items() if node["class_type"] in SHOWN]
    read_before = len(server.log.read_text())
    done = server.wait(server.queue(prompt))
    assert done["status"]["status_str"] == "success", done["status"]["messages"]
    assert wanted and sorted(done["outputs"]) == sorted(wanted)
    for key in wanted:
        for image in done["outputs"][key]["images"]:
            folder = server.output.with_name(image["type"]) / image["subfolder"]
            pixels = np.asarray(Image.open(folder / image["filename"]).convert("RGB"))
            assert min(pixels.shape[:2]) >= SIDE and pixels.std() > 5, f"{image}: {pixels.std()}"
    assert server.complaints(read_before) == []


def test_templates_are_listed_with_their_pictures(server: Server):
    """As the frontend's template browser finds them."""
    import urllib.request

    (names,) = server.call("/workflow_templates").values()
    assert sorted(names) == [path.stem for path in FILES]
    for path in FILES:
        for suffix in (".json", ".jpg"):
            url = f"{server.url}/api/workflow_templates/trajectory-consistency/{path.stem}{suffix}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert answer.read() == path.with_suffix(suffix).read_bytes()
