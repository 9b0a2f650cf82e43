"""Runs in ComfyUI's interpreter: dynamic VRAM, its default on NVIDIA cards, switched on for the CPU."""

from __future__ import annotations

import importlib
import sys


def switch_on() -> bool:
    """Make the host's loaders use `ModelPatcherDynamic`, as `main.py` does for a card. False on older hosts.

    The class serves a CPU device, too, but its `__new__` gives way to the ordinary one there.
    """
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        return False
    import comfy.memory_management
    import comfy_aimdo.control

    assert comfy_aimdo.control.init(), "the host's memory library cannot be loaded"
    for name, module in list(sys.modules.items()):  # they looked for the library when they were imported
        if name.startswith("comfy_aimdo.") and name != "comfy_aimdo.control":
            importlib.reload(module)

    class Dynamic(comfy.model_patcher.ModelPatcherDynamic):
        def __new__(cls, *_: object, **__: object) -> Dynamic:
            return object.__new__(cls)

        def partially_unload(self, *_: object, **__: object) -> int:
            return self.restore_loaded_backups()  # the rest of it frees memory of the card

    comfy.model_patcher.CoreModelPatcher = Dynamic
    comfy.memory_management.aimdo_enabled = True
    return True
