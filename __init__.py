"""Trajectory Consistency Distillation (TCD) for ComfyUI.

`samplers` holds the method, `training` the distillation, `embedded` a small model to try both on a CPU and
`nodes` what ComfyUI shows. Nothing is imported here, for only `nodes` knows ComfyUI.
"""

__version__ = "0.1.0"
