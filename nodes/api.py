"""What differs between releases of the host's node API (`comfy_api.v0_0_2` throughout)."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

from comfy_api.v0_0_2 import io


def schema(**given: Any) -> io.Schema:
    """`io.Schema(...)` without what this release does not know: an unknown field fails the whole pack."""
    # No essentials_category: with one, the page (frontend 1.49.6) files a node under ComfyUI's own nodes.
    # No has_intermediate_output: it is for nodes in the middle of a graph; TCD_CompareGrid ends one.
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in given.items() if name in known})


def advanced(widget: Any) -> Any:
    """Put the widget behind "show advanced inputs": by the input's own field, or in 0.3.64, whose inputs have
    none, by `extra_dict`. Both are served alike.
    """
    if hasattr(widget, "advanced"):
        widget.advanced = True
    else:
        widget.extra_dict = {**(widget.extra_dict or {}), "advanced": True}
    return widget


def prompt_server() -> Any:
    """The running server, or None: graphs can be run without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
