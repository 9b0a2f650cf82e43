"""Runs in ComfyUI's interpreter: the shipped UNet's weights in ComfyUI's own `UNetModel`.

python embedded_in_host.py COMFYUI TEACHER CONFIG_JSON INPUTS OUTPUT
"""

import json
import sys

host, teacher, config, inputs, output = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, host)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

prefix = "model.diffusion_model."
weights = {k.removeprefix(prefix): v.float() for k, v in load_file(teacher).items() if k.startswith(prefix)}
network = UNetModel(**json.loads(config), dtype=torch.float32, operations=comfy.ops.disable_weight_init)
network.load_state_dict(weights, strict=True)
given = load_file(inputs)
with torch.no_grad():
    out = network(given["x"], given["t"], context=given["context"], y=given["y"])
save_file({"out": out.contiguous()}, output)
