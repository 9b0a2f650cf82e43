"""The ComfyUI side: the only folder that may import ComfyUI. Importing it registers the sampler."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from . import compare, dataset, dataset_latents, distill, embedded, lora, sampler, save_lora
from .routes import add_routes
from .tcd_sss import register
from .web_files import add_file_routes

NODES: list[type[io.ComfyNode]] = [
    *sampler.NODES,
    *lora.NODES,
    *embedded.NODES,
    *compare.NODES,
    *distill.NODES,
    *dataset.NODES,
    *dataset_latents.NODES,
    *save_lora.NODES,
]


class TCDExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


register()
add_routes()
add_file_routes()
