"""Whatever its folder is called, a page gets the pack's files, help and templates, and loads it once."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_pack import ROOT, copy_pack
from comfyui_server import Server, serve

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
FOLDERS = ["trajectory-consistency", "ComfyUI TCD v1.0 (50%)", "\u8f68\u8ff9-TCD"]


@pytest.fixture(scope="module", params=FOLDERS, ids=["registry", "space", "letters"])
def served(
    request: pytest.FixtureRequest, host: Any, tmp_path_factory: pytest.TempPathFactory
) -> Generator[tuple[str, Server]]:
    home = tmp_path_factory.mktemp("folder names")
    copy_pack(home / "custom_nodes" / request.param)
    with serve(host, home) as found:
        yield request.param, found


def fetch(server: Server, path: str) -> tuple[str, bytes]:
    """(type, content) at `path` as a browser would ask for it."""
    with urllib.request.urlopen(server.url + urllib.parse.quote(path, safe="/%"), timeout=60) as answer:
        return answer.headers.get_content_type(), answer.read()


def test_the_page_loads_the_extension_once_with_all_it_imports(served: tuple[str, Server]):
    _, server = served
    (start,) = (path for path in server.call("/extensions") if path.endswith("/tcd.js"))
    todo, loaded = [start], dict[str, str]()
    while todo:
        path = todo.pop()
        kind, content = fetch(server, path)
        assert kind in ("text/javascript", "application/javascript"), path
        loaded[path] = content.decode("utf-8")
        for name in re.findall(r'from "(\./[^"]+)"', loaded[path]):
            at = path.rpartition("/")[0] + name[1:]
            todo += [at] if at not in loaded else []
    assert sum("registerExtension" in text for text in loaded.values()) == 1
    assert {path.rpartition("/")[2] for path in loaded} == {
        path.name for path in (ROOT / "web").iterdir() if path.suffix in (".js", ".mjs")
    }


def test_help_is_where_the_page_looks_for_it(served: tuple[str, Server]):
    """As the page builds the address, from the module that the host names."""
    _, server = served
    info = server.call("/object_info/TCD_KSampler")["TCD_KSampler"]
    folder = info["python_module"].split(".")[1].split("@")[0]
    for page in ("TCD_KSampler.md", "TCD_KSampler/ja.md"):
        _, content = fetch(server, f"/extensions/{folder}/docs/{page}".replace("%", "%25"))
        assert content == (ROOT / "web" / "docs" / page).read_bytes()


def test_templates_and_their_pictures_are_served(served: tuple[str, Server]):
    folder, server = served
    name = "tcd-embedded-no-download"
    assert name in server.call("/workflow_templates")[folder]
    where = f"/api/workflow_templates/{folder}/{name}".replace("%", "%25")
    assert json.loads(fetch(server, f"{where}.json")[1])["nodes"]
    kind, _ = fetch(server, f"{where}.jpg")
    assert kind == "image/jpeg"


@pytest.mark.parametrize("path", ["../__init__.py", "..%2f__init__.py", "%2fetc%2fpasswd", "docs", "no.js"])
def test_nothing_else_is_served(served: tuple[str, Server], path: str):
    folder, server = served
    with pytest.raises(urllib.error.HTTPError) as error:
        fetch(server, f"/extensions/{urllib.parse.quote(folder)}/{path}")
    assert error.value.code in (403, 404)


def test_the_pack_is_whole(served: tuple[str, Server]):
    _, server = served
    listed = json.loads((ROOT / "node_list.json").read_text("utf-8"))
    assert set(listed) <= set(server.call("/object_info"))
    assert "IMPORT FAILED" not in Path(server.log).read_text("utf-8", errors="replace")
