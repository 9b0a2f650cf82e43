"""Trajectory Consistency Distillation (TCD) for ComfyUI.

`samplers` holds the method, `training` the distillation, `embedded` a small model to try both on a CPU and `nodes`
what ComfyUI shows. Only `nodes` knows ComfyUI; nothing is imported here, so that the rest runs without it.
"""

__version__ = "0.1.0"
