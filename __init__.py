"""Trajectory Consistency Distillation (TCD) for ComfyUI.

`samplers` holds the method, `training` the distillation, `embedded` a small model to try both on a CPU and
`nodes` what ComfyUI shows. Nothing is imported here, for only `nodes` knows ComfyUI.
"""

__version__ = "0.1.0"
WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """The extension, for ComfyUI: registers the sampler and the scheduler, and lists the nodes."""
    import logging

    try:
        from .nodes import TCDExtension
    except Exception:
        # ComfyUI logs the message without the place.
        logging.getLogger("comfyui_tcd").exception("the TCD nodes cannot be loaded")
        raise
    return TCDExtension()
