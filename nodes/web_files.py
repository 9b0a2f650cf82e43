"""The page's files, help and templates where the host's own routes miss them: under a folder's odd name.

aiohttp's static routes quote their own path but not the one that is asked for: a folder with a space, or with
letters other than ASCII's, is answered 404. And the page looks for help under the folder's name up to its
first `.` or `@`. The host's routes are asked first where they fit: theirs are the longer paths.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .api import prompt_server

PACK = Path(__file__).parents[1]  # not resolved: the host goes by the name of a link
ROUTES = {"/extensions": "web", "/workflow_templates": "workflows"}


def names(folder: str) -> list[str]:
    """Under which the page asks for the files of a pack in custom_nodes/`folder`."""
    return list(dict.fromkeys([folder, re.split("[.@]", folder)[0]]))


def pattern(folder: str) -> str:
    """Matches `names`, without the braces and quoting that a route's path cannot hold."""
    return "|".join(re.sub(r"\W", "[^/]+", name) for name in names(folder) if name)


def file_in(folder: Path, path: str) -> Path | None:
    """The file, or None if it is not there or lies outside."""
    root = folder.resolve()
    found = (root / path).resolve()
    return found if found.is_relative_to(root) and found.is_file() else None


def add_file_routes() -> None:
    """GET, where a server runs; the host mirrors each under /api."""
    server = prompt_server()
    if server is None:
        return
    from aiohttp import web

    def serve(folder: Path) -> Any:
        async def answer(request: Any) -> Any:
            found = file_in(folder, request.match_info["path"])
            if found is None:
                raise web.HTTPNotFound
            return web.FileResponse(found)

        return answer

    for route, folder in ROUTES.items():
        path = f"{route}/{{pack:{pattern(PACK.name)}}}/{{path:.+}}"
        server.routes.get(path)(serve(PACK / folder))
