"""The ComfyUI side: the only folder that may import ComfyUI."""
