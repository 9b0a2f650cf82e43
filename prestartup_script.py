"""ComfyUI runs this before it imports anything: our two names are in its lists from the start.

Packs are loaded one after the other, and some copy the lists then. Without this, those that come before this
pack would never offer tcd_sss and tcd_grid. Nothing is imported here, least of all torch: a finder waits for
comfy.samplers, adds the names to its lists after its code has run, and is gone. nodes/tcd_sss.py puts the
functions behind the names.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.abc import MetaPathFinder
from typing import Any

SAMPLER, SCHEDULER = "tcd_sss", "tcd_grid"  # as in nodes/tcd_sss.py
PACK = "trajectory-consistency"


def not_loaded(*_: Any, **__: Any) -> Any:
    """Stand for the sampler and the scheduler until the nodes are loaded."""
    raise ValueError("the TCD nodes could not be loaded, so there is no tcd_sss; ComfyUI's log says why")


setattr(not_loaded, "tcd_pack", PACK)  # noqa: B010 - MARK in nodes/tcd_sss.py: not another pack's


def add(samplers: Any) -> None:
    """Put the names into the lists of comfy.samplers, in place, unless they are there."""
    if SAMPLER not in samplers.SAMPLER_NAMES:
        setattr(samplers.k_diffusion_sampling, f"sample_{SAMPLER}", not_loaded)
        samplers.SAMPLER_NAMES.append(SAMPLER)
    if SCHEDULER not in samplers.SCHEDULER_HANDLERS:
        samplers.SCHEDULER_HANDLERS[SCHEDULER] = samplers.SchedulerHandler(not_loaded)
        samplers.SCHEDULER_NAMES.append(SCHEDULER)


class Waiting(MetaPathFinder):
    """Finds nothing itself: it lets the others find comfy.samplers, and has `add` called after its code."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "comfy.samplers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            try:
                add(module)
            except Exception:  # ComfyUI starts in any case, and the pack adds its names when it is loaded
                logging.getLogger(PACK).warning(
                    "tcd_sss and tcd_grid are not in the lists yet", exc_info=True
                )

        spec.loader.exec_module = exec_module
        return spec


if "comfy.samplers" not in sys.modules:
    sys.meta_path.insert(0, Waiting())
