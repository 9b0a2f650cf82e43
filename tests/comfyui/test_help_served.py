"""The recorded nodes are the host's, and it serves the pages and the translations."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import ROOT, copy_pack
from comfyui_server import Server, serve

sys.path.append(str(ROOT / "tests" / "help"))
from help_nodes import recorded, trim

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
FOLDER = "trajectory-consistency"


@pytest.fixture(scope="module")
def server(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = tmp_path_factory.mktemp("home")
    copy_pack(home / "custom_nodes" / FOLDER)
    with serve(host, home) as found:
        yield found


def fetch(server: Server, path: str) -> str:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read().decode("utf-8")


def test_the_record_is_what_the_host_says(server: Server):
    found = trim(server.call("/object_info"))
    assert found == recorded(), "run: python tests/help/make_help.py --record HOST_URL"
    # A workflow keeps the values of widgets by their places: on every host the same ones.
    places = [[list(node["inputs"]) for node in nodes.values()] for nodes in (found, recorded())]
    assert places[0] == places[1]
    listed = json.loads((ROOT / "node_list.json").read_text("utf-8"))
    assert listed == {node: about["description"] for node, about in found.items()}


def test_every_page_is_served(server: Server):
    pages = sorted((ROOT / "web" / "docs").rglob("*.md"))
    assert len(pages) == 4 * len(recorded())  # three languages, and one for all others
    for path in pages:
        name = path.relative_to(ROOT / "web").as_posix()
        assert fetch(server, f"/extensions/{FOLDER}/{name}") == path.read_text("utf-8")


def test_the_translations_are_served(server: Server):
    found = server.call("/i18n")
    for language in ("en", "zh", "ja"):
        ours = json.loads(Path(ROOT, "locales", language, "nodeDefs.json").read_text("utf-8"))
        assert {node: found[language]["nodeDefs"][node] for node in ours} == ours
