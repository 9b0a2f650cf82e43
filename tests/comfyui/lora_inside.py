"""Runs in ComfyUI's interpreter: the LoRA loader on ComfyUI's own UNets and text encoders, of full layout.

    python lora_inside.py COMFYUI PACK FOLDER_OF_LORAS

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comfyui_worker import send, serve
from torch import Tensor

SD: dict[str, Any] = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
    "adm_in_channels": None,
}
UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {**SD, "context_dim": 768, "use_linear_in_transformer": False},
    "SD 2.x": {**SD, "context_dim": 1024, "use_linear_in_transformer": True},
    "SDXL": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "num_head_channels": 8,
        "use_linear_in_transformer": True,
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
}
CLASSES = {"SD 1.5": "SD15", "SD 2.x": "SD20", "SDXL": "SDXL"}


@cache
def model(base: str, small: bool = False, channels: int = 4) -> Any:
    """A ModelPatcher: of full size without weights, or small with random ones."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = {
        "image_size": 32,
        "in_channels": channels,
        "out_channels": 4,
        "model_channels": 32 if small else 320,
        "use_spatial_transformer": True,
        "dtype": torch.float32,
        **UNETS[base],
    }
    if small:
        config |= {"context_dim": 24, "num_heads": 4, "num_head_channels": -1}
        config |= {"adm_in_channels": 48} if config["adm_in_channels"] else {}
    made = getattr(comfy.supported_models, CLASSES[base])(config)
    made.unet_config.update({k: config[k] for k in ("num_heads", "num_head_channels") if k in config})
    device = torch.device("cpu" if small else "meta")
    network = comfy.model_base.BaseModel(made, comfy.model_base.ModelType.EPS, device=device)
    if small:
        generator = torch.Generator().manual_seed(5)
        for weight in network.parameters():
            scale = 1 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.1
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    network.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)


@cache
def clip(base: str) -> Any:
    """A CLIP of full layout without weights."""
    import comfy.model_patcher
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.sd2_clip

    kind = {
        "SD 1.5": comfy.sd1_clip.SD1ClipModel,
        "SD 2.x": comfy.text_encoders.sd2_clip.SD2ClipModel,
        "SDXL": comfy.sdxl_clip.SDXLClipModel,
    }[base]
    made = comfy.sd.CLIP(no_init=True)
    made.cond_stage_model = kind(device="meta", dtype=torch.float32)
    cpu = torch.device("cpu")
    made.patcher = comfy.model_patcher.ModelPatcher(made.cond_stage_model, cpu, cpu)
    for name, value in {"tokenizer": None, "layer_idx": None, "use_clip_schedule": False}.items():
        setattr(made, name, value)
    made.tokenizer_options, made.apply_hooks_to_conds = {}, None
    return made


def node() -> Any:
    import nodes

    return nodes.NODE_CLASS_MAPPINGS["TCD_LoraLoader"]


def pack() -> Any:
    return sys.modules[node().__module__]


def execute(patcher: Any, name: str, strength: float, text_encoder: Any = None, bypass: bool = False) -> Any:
    from comfy_api.v0_0_2 import io

    hidden = {io.Hidden.unique_id: "7"}
    # As the executor does, of 0.3.64 and of newer hosts.
    made = node().PREPARE_CLASS_CLONE({**hidden, "hidden_inputs": hidden})
    return made.execute(patcher, name, strength, text_encoder, bypass).args


def load(base: str, name: str, strength: float = 1.0, channels: int = 4, with_clip: str = "") -> Any:
    """What the node says, how many weights are patched, and what comes of `clip`; or its error."""
    text_encoder = clip(with_clip) if with_clip else None
    try:
        patched, patched_clip, report = execute(model(base, channels=channels), name, strength, text_encoder)
    except ValueError as error:
        return {"error": str(error)}
    return {
        "report": report.split("\n"),
        "patched": sorted(patched.patches),
        "clip": sorted(patched_clip.patcher.patches) if patched_clip else None,
        "same model": patched is model(base, channels=channels),
        "before": len(model(base, channels=channels).patches),
        "same clip": patched_clip is text_encoder,
    }


def change(patcher: Any, key: str) -> Tensor:
    """What the host's own arithmetic adds to a weight of zeros, for one input."""
    import comfy.lora

    shape = patcher.model.state_dict()[key].shape
    weight = comfy.lora.calculate_weight(patcher.patches[key], torch.zeros(shape), key).flatten(1)
    return weight @ torch.linspace(-1, 1, weight.shape[1])


def changes(
    base: str, name: str, core: bool = False, strength: float = 1.0, every: int = 1
) -> dict[str, Tensor]:
    """By layer; `core`: by the host's loader of the host's own."""
    import comfy.sd
    import comfy.utils
    import folder_paths

    if core:
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name))
        patched, _ = comfy.sd.load_lora_for_models(model(base), None, tensors, strength, 0)
    else:
        patched = execute(model(base), name, strength)[0]
    keys = sorted(patched.patches)[::every]
    return {k.removeprefix("diffusion_model.").removesuffix(".weight"): change(patched, k) for k in keys}


def merged(
    base: str, name: str, weights: dict[str, Tensor], core: bool = False, strength: float = 1.0
) -> dict[str, Tensor]:
    """The `weights`, by the host's keys, with the file in them; `core`: by the host's own loader."""
    import comfy.lora
    import comfy.sd
    import comfy.utils
    import folder_paths

    original = model(base, small=True)
    if core:
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name))
        patched: Any = comfy.sd.load_lora_for_models(original, None, tensors, strength, 0)[0]
    else:
        patched = execute(original, name, strength)[0]
    return {
        key: comfy.lora.calculate_weight(patches, weights[key].clone(), key)
        for key, patches in patched.patches.items()
    }


def run(base: str, name: str, strength: float = 1.0, low_vram: bool = False) -> dict[str, Any]:
    """A forward of the small network with the LoRA in it, and what is left when it is out again."""
    original = model(base, small=True)
    before = {k: v.clone() for k, v in original.model.state_dict().items()}
    patched = execute(original, name, strength)[0] if name else original.clone()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 16, 16, generator=generator)
    context = torch.randn(1, 7, 24, generator=generator)
    y = torch.randn(1, 48, generator=generator) if base == "SDXL" else None
    if low_vram:
        patched.load(torch.device("cpu"), lowvram_model_memory=1, force_patch_weights=False)
    else:
        patched.patch_model(torch.device("cpu"))
    delayed = patched.model.lowvram_patch_counter
    out = patched.model.diffusion_model(x, torch.tensor([500.0]), context=context, y=y)
    patched.unpatch_model(torch.device("cpu"))
    after = original.model.state_dict()
    return {
        "out": out,
        "restored": all(torch.equal(before[k], after[k]) for k in before),
        "patches left": len(original.patches),
        "delayed": delayed,
    }


def twice(base: str, first: str, second: str, core_first: bool = False) -> list[str]:
    import comfy.sd
    import comfy.utils
    import folder_paths

    if core_first:
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", first))
        patched, _ = comfy.sd.load_lora_for_models(model(base), None, tensors, 1.0, 0)
    else:
        patched = execute(model(base), first, 1.0)[0]
    return execute(patched, second, 1.0)[2].split("\n")


def cached(name: str) -> list[Any]:
    """[times the file was read for two loads, fingerprint, files kept]"""
    import folder_paths

    reads: list[Any] = []
    true_open, path = pack().open_lora, folder_paths.get_full_path_or_raise("loras", name)
    pack().open_lora = lambda p: reads.append(p) or true_open(p)
    try:
        pack().read(path)
        pack().read(path)
    finally:
        pack().open_lora = true_open
    return [len(reads), node().fingerprint_inputs(lora_name=name), len(pack()._files)]


def shown(base: str, name: str) -> list[Any]:
    """What the server is asked to show on the node."""
    sent: list[Any] = []
    instance = SimpleNamespace(send_progress_text=lambda text, node_id: sent.append([text, node_id]))
    true = sys.modules.get("server")
    fake: Any = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    sys.modules["server"] = fake
    try:
        report = execute(model(base), name, 1.0)[2]
    finally:
        if true is None:
            del sys.modules["server"]
        else:
            sys.modules["server"] = true
    return [sent, report]


def corpus(which: str) -> dict[str, Any]:
    """See lora_corpus.py: `corpus`, `converted`, `quantized` or `dora_of_parts`."""
    import folder_paths
    import lora_corpus

    found = getattr(lora_corpus, which)(execute, Path(folder_paths.get_folder_paths("loras")[-1]))
    return {**found, **lora_corpus.suffixes()}


def info() -> dict[str, Any]:
    """As the server sends it: its classes of strings are plain ones then."""
    return json.loads(json.dumps(node().GET_NODE_INFO_V1()))


def main(functions: dict[str, Any] | None = None) -> None:
    """`functions`: of another script, which takes these beside its own."""
    host, folder, loras = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing()
    import folder_paths
    import nodes

    folder_paths.add_model_folder_path("loras", loras)
    send(answers, [asyncio.run(nodes.load_custom_node(folder)), None])
    serve(answers, functions or globals())


if __name__ == "__main__":
    main()
