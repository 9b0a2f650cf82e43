"""The page of a real host in a real browser: the panels, a template run to its pictures, a distillation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import copy_pack
from comfyui_server import Server, serve
from lora_files import adapters, kohya, write

from comfyui_tcd.training.unet_layers import SD15

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
SCRIPTS = Path(__file__).parents[1] / "web"
Look = Callable[[str], dict[str, Any]]


def browser() -> str | None:
    """Chromium, or Chrome where there is no other."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, found), None)


@pytest.fixture(scope="module")
def playwright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with playwright-core in it."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    missing += [] if browser() else ["chromium"]
    if missing:
        pytest.skip(f"no browser test: {', '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("playwright")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "playwright-core"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no browser test: playwright-core cannot be installed: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("page")
    copy_pack(home / "custom_nodes" / "ComfyUI TCD")  # a name that is another one in an address
    (home / "models" / "loras").mkdir(parents=True)
    write(home / "models" / "loras" / "tcd-test.safetensors", kohya(adapters(SD15, every=9)))
    with serve(host, home) as found:
        yield found


@pytest.fixture(scope="module")
def look(server: Server, playwright: Path, tmp_path_factory: pytest.TempPathFactory) -> Look:
    """Runs a script of tests/web in the browser: what it saw. TCD_SCREENSHOTS keeps its screenshots."""
    kept = os.environ.get("TCD_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def run(script: str) -> dict[str, Any]:
        command = ["node", str(SCRIPTS / script), server.url, str(browser()), str(folder)]
        environment = {**os.environ, "PLAYWRIGHT": str(playwright)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def seen(look: Look) -> dict[str, Any]:
    return look("panels.mjs")


@pytest.fixture(scope="module")
def template(look: Look) -> dict[str, Any]:
    return look("template.mjs")


@pytest.fixture(scope="module")
def run(look: Look) -> dict[str, Any]:
    return look("distill.mjs")


def shown_in_nodes_2_0(seen: dict[str, Any], host: Any) -> bool:
    """Tell whether Nodes 2.0 showed our widgets. AssertionError if not, but for the first one, of 0.3.64."""
    version = (host.path / "comfyui_version.py").read_text("utf-8")
    assert seen["vue"] or '"0.3.' in version, "only the first Nodes 2.0 may leave it out"
    return seen["vue"]


def test_a_template_opened_by_hand_runs_to_pictures_on_the_page(template: dict[str, Any]):
    assert template["errors"] == []
    assert template["pictures"] == [256] * 4


def test_the_drawing_follows_the_mouse_on_the_slider(template: dict[str, Any]):
    assert len(set(template["drawings"])) == 3
    assert template["gamma"] == template["sent"]["gamma"] == 0.8


def test_pictures_and_drawing_are_there_in_nodes_2_0(template: dict[str, Any], host: Any):
    if not shown_in_nodes_2_0(template, host):
        return
    assert set(template["shown"]) == {256}  # some frontends show one picture at a time
    assert template["pressed"]["gamma"] < 0.8
    assert template["pressed"]["drawing"] not in template["drawings"]


def test_no_errors_of_ours_and_nothing_left_behind(seen: dict[str, Any]):
    assert seen["errors"] == []
    assert seen["registered"] == 1 and seen["left"] == 0


def test_the_drawing_follows_gamma(seen: dict[str, Any]):
    assert seen["before"] != seen["after"] and seen["before"].count("M") == 6


def test_the_widgets_speak_the_language_of_the_page(seen: dict[str, Any]):
    assert "SD schedule" in seen["schedule"]
    drawing, preset, training = (seen["translated"][name] for name in ("drawing", "preset", "training"))
    assert "\u30ce\u30a4\u30ba" in drawing and "SD" in drawing  # noise
    assert "4 \u30b9\u30c6\u30c3\u30d7" in preset and "\u9069\u7528" in preset  # 4 steps, apply
    assert "\u640d\u5931" in training  # loss


def test_the_button_over_a_node_opens_its_help(seen: dict[str, Any]):
    english, japanese = seen["help"]["en"], seen["help"]["ja"]
    assert english["titles"] == ["TCD Sampler"]
    assert english["parts"] == ["Inputs", "Outputs", "Example", "Common mistakes"]
    assert len(english["items"]) > 15 and not english["raw"] and not japanese["raw"]
    assert len(japanese["parts"]) == 4 and len(japanese["items"]) == len(english["items"])


def test_the_drawing_is_there_in_nodes_2_0(seen: dict[str, Any], host: Any):
    if not shown_in_nodes_2_0(seen, host):
        return
    assert not seen["flat"]
    assert seen["spare"] < 10  # pixels of the frame under its last line, for its padding is 6


def test_a_preset_is_offered_and_set_by_its_button_only(seen: dict[str, Any]):
    assert "4 steps, cfg 1, gamma 0.3" in seen["preset"]
    assert seen["untouched"] == 0.8
    assert [seen["applied"][name] for name in ("steps", "cfg", "gamma")] == [4, 1, 0.3]


def test_without_a_lora_there_is_nothing_to_apply(seen: dict[str, Any]):
    text, button = seen["unchosen"]
    assert text.startswith("no LoRA chosen") and button == "none"


def test_the_list_of_parameters_does_not_resize_the_drawing(seen: dict[str, Any]):
    assert seen["widths"][0] == seen["widths"][1] > 200


def test_prompts_and_workflows_hold_nothing_of_the_page(seen: dict[str, Any]):
    for text in seen["prompt"].values():
        assert "TCD_KSampler" in text
        assert "tcd_drawing" not in text and "tcd_preset" not in text and "tcd_training" not in text


def test_the_panel_shows_the_run_also_after_a_reload_in_the_middle(run: dict[str, Any]):
    assert run["errors"] == []
    counts = re.findall(r"^training\n(\d+) / 150$", f"{run['training']}\n{run['reloaded']}", re.MULTILINE)
    assert len(counts) == 2 and int(counts[0]) < int(counts[1])
    assert "samples/s" in run["reloaded"] and "left" in run["reloaded"]
    assert "null" not in run["panel"]


def test_the_panel_shows_the_run_when_it_is_done(run: dict[str, Any]):
    assert run["done"].startswith("done\n150 / 150\nloss ")
    assert run["steps"] == ["50", "100", "150"]
    assert run["picture"] == [5 * 16, 2 * 16]  # 1, 2, 4 and 8 steps and the teacher, of two prompts
    assert run["zoomed"] and run["zoom"] == "125%" and run["closed"]
    assert run["student"] == [16]


def test_the_run_covers_nothing_and_is_shown_once(run: dict[str, Any]):
    before, after = run["before"], run["after"]
    assert before["covered"] == after["covered"] == []
    assert after["height"] == before["height"]  # the template has room for the panel
    assert after["hosts"] and after["visible"] == []


def test_the_route_knows_only_the_list(server: Server):
    assert server.call("/tcd/lora?name=tcd-test.safetensors")["advice"]["title"] == "TCD"
    for name in ("", "../tcd-test.safetensors", "/etc/passwd"):
        assert "no LoRA" in server.call(f"/tcd/lora?name={name}")["error"]
