"""Graphs made with other packs' TCD nodes, rewritten for ours. Knows no ComfyUI and needs no package."""
