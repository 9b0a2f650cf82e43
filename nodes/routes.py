"""What the page asks the server: how a LoRA is sampled, and the runs of this server's life. Read only."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths

from ..training.formats import open_lora
from ..training.known_loras import advice
from ..training.lora_report import base
from .api import prompt_server
from .progress import latest, runs


def lora_settings(name: str) -> dict[str, Any]:
    """{"base": text, "advice": {...} or None}, or {"error": text}; `name` as in the list of LoRAs."""
    known = name in folder_paths.get_filename_list("loras")
    path = folder_paths.get_full_path("loras", name) if known else None
    if path is None:
        return {"error": f"there is no LoRA {name!r} in models/loras; refresh the page's node definitions"}
    try:
        stat = Path(path).stat()
        return _settings(path, stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError) as error:
        return {"error": str(error)}


@lru_cache(maxsize=64)
def _settings(path: str, _changed: int, _size: int) -> dict[str, Any]:
    file = open_lora(Path(path))
    tip = advice(file)
    return {"base": base(file), "advice": tip and tip._asdict()}


def add_routes() -> None:
    """GET /tcd/lora?name=NAME, /tcd/runs and /tcd/distill/{node}, where a server runs."""
    server = prompt_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/tcd/lora")
    async def lora(request: Any) -> Any:
        found = await asyncio.to_thread(lora_settings, request.query.get("name", ""))
        return web.json_response(found)

    @server.routes.get("/tcd/runs")
    async def all_runs(_: Any) -> Any:
        return web.json_response(runs())

    @server.routes.get("/tcd/distill/{node}")
    async def run_of(request: Any) -> Any:
        found = latest(request.match_info["node"])
        if found is None:
            return web.json_response({"error": "no run of this node yet"}, status=404)
        return web.json_response(found)
