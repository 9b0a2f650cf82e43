"""Runs in ComfyUI's interpreter: files with random weights in place of those that the workflows load.

    python workflow_standins.py COMFYUI MODELS [FILE ...]

They have the keys of the published files, for the host's own classes name them. The sizes are those that the
host fixes (text encoders, VAE, CLIP vision) or recognizes the model by (320 channels, the context's width);
what it reads from the file is smaller: every level of a UNet has 320 channels, so the convolutions that join
levels of unlike width are not there. ControlNets and the inpainting UNet are published with diffusers' keys,
for which the host knows full sizes only; here they have the keys that it converts these to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Shapes = Mapping[str, Any]  # tensors on the meta device

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
}
SDXL: dict[str, Any] = {
    **UNET,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
SD15: dict[str, Any] = {
    **UNET,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "context_dim": 768,
}
SD35: dict[str, Any] = {
    "input_size": None,
    "in_channels": 16,
    "depth": 4,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 256},
    },
    "num_patches": 64 * 64,
    "pos_embed_max_size": 64,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0, 1],
}
CONTROLNET = "controlnet/controlnet-{}-sdxl-1.0.fp16.safetensors"
RANK = 4
SOURCE = 1 << 22
"""Random numbers that every weight is cut from."""


def shapes(build: Callable[..., Any], **given: Any) -> dict[str, Any]:
    import torch

    with torch.device("meta"):
        return dict(build(**given).state_dict())


def unet(config: dict[str, Any], channels: int = 4) -> dict[str, Any]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return shapes(UNetModel, **{**config, "in_channels": channels}, **host_layers())


def host_layers() -> dict[str, Any]:
    import comfy.ops
    import torch

    return {"device": "meta", "dtype": torch.float16, "operations": comfy.ops.disable_weight_init}


def checkpoint(kind: str) -> dict[str, Any]:
    """A whole checkpoint with the keys of the published one."""
    return joined(kind, {"SDXL": SDXL, "SD15": SD15}[kind], autoencoder(4))


def autoencoder(channels: int) -> dict[str, Any]:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    vae = {
        "double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    return shapes(AutoencoderKL, ddconfig=vae, embed_dim=channels)


def flow_checkpoint() -> dict[str, Any]:
    """SD3.5 medium with four of its blocks, 256 wide; without T5, of 5 GB, which the host can do without."""
    import torch
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
    from comfy.text_encoders.sd3_clip import SD3ClipModel

    parts = {
        "model.diffusion_model": shapes(MMDiT, **SD35, **host_layers()),
        "text_encoders": shapes(SD3ClipModel, t5=False, device="meta", dtype=torch.float16),
        "first_stage_model": {k: v for k, v in autoencoder(16).items() if "quant_conv" not in k},
    }
    return {f"{part}.{k}": v for part, found in parts.items() for k, v in found.items()}


def joined(kind: str, config: dict[str, Any], vae: Shapes) -> dict[str, Any]:
    """UNet, text encoders and VAE under the keys of a checkpoint."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models
    import torch

    text = {"SDXL": comfy.sdxl_clip.SDXLClipModel, "SD15": comfy.sd1_clip.SD1ClipModel}[kind]
    encoders = shapes(text, device="meta", dtype=torch.float16)
    parts = {f"model.diffusion_model.{k}": v for k, v in unet(config).items()}
    parts |= getattr(comfy.supported_models, kind)(config).process_clip_state_dict_for_saving(encoders)
    return parts | {f"first_stage_model.{k}": v for k, v in vae.items()}


def controlnet() -> dict[str, Any]:
    from comfy.cldm.cldm import ControlNet

    config = {k: v for k, v in SDXL.items() if k not in ("out_channels", "transformer_depth_output")}
    return shapes(ControlNet, **config, hint_channels=3, **host_layers())


def lora(config: dict[str, Any]) -> dict[str, Any]:
    """The layers that the published TCD LoRAs adapt, under their names in diffusers."""
    import comfy.utils
    import torch

    weights = unet(config)
    kept = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
    kept += ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
    found: dict[str, Any] = {}
    for name, key in comfy.utils.unet_to_diffusers(config).items():
        layer = name.removesuffix(".weight")
        if key not in weights or layer == name or not layer.endswith(kept):
            continue
        out, *inside = weights[key].shape
        base = f"lora_unet_{layer.replace('.', '_')}"
        found[f"{base}.lora_down.weight"] = torch.empty(RANK, *inside, device="meta")
        found[f"{base}.lora_up.weight"] = torch.empty(out, RANK, *([1] * (len(inside) - 1)), device="meta")
        found[f"{base}.alpha"] = torch.tensor(float(RANK))
    return found


def text_lora() -> dict[str, Any]:
    """Layers of both text encoders, as a style LoRA has them."""
    import torch

    found: dict[str, Any] = {}
    for encoder, width, layers in (("te1", 768, 12), ("te2", 1280, 32)):
        for i in range(layers):
            base = f"lora_{encoder}_text_model_encoder_layers_{i}_self_attn_q_proj"
            found[f"{base}.lora_down.weight"] = torch.empty(RANK, width, device="meta")
            found[f"{base}.lora_up.weight"] = torch.empty(width, RANK, device="meta")
            found[f"{base}.alpha"] = torch.tensor(float(RANK))
    return found


def ip_adapter(layers: int, width: int) -> dict[str, Any]:
    """`layers` of cross-attention, on a context of `width`."""
    import torch

    projected = {"proj.weight": (4 * width, 1024), "proj.bias": (4 * width,)}
    projected |= {"norm.weight": (width,), "norm.bias": (width,)}
    found = {f"image_proj.{k}": torch.empty(v, device="meta") for k, v in projected.items()}
    for i in range(layers):
        for name in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * i + 1}.{name}.weight"] = torch.empty(320, width, device="meta")
    return found


def clip_vision() -> dict[str, Any]:
    import json

    import comfy.clip_vision
    from comfy.clip_model import CLIPVisionModelProjection

    config = json.loads(Path(comfy.clip_vision.__file__).with_name("clip_vision_config_h.json").read_text())
    layers = host_layers()
    return shapes(
        lambda: CLIPVisionModelProjection(config, *(layers[k] for k in ("dtype", "device", "operations")))
    )


def filled(layout: Shapes) -> dict[str, Any]:
    """Random weights in half precision: a layer's output is about as large as its input."""
    import torch

    source = torch.randn(SOURCE, generator=torch.Generator().manual_seed(len(layout))).half()

    def fill(name: str, like: Any) -> Any:
        if like.device.type != "meta":
            return like
        if not like.is_floating_point():
            return torch.arange(like.numel()).reshape(like.shape)
        if like.ndim < 2:
            return torch.full(like.shape, float(name.endswith("weight")), dtype=torch.float16)
        repeats = -(-like.numel() // SOURCE)
        random = source.repeat(repeats)[: like.numel()] if repeats > 1 else source[: like.numel()]
        return (random * (like[0].numel() ** -0.5)).reshape(like.shape)

    return {name: fill(name, like) for name, like in layout.items()}


def write(path: Path, layout: Shapes) -> None:
    """A file of random weights."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(filled(layout), path)


FILES: dict[str, Callable[[], Shapes]] = {
    "checkpoints/sd_xl_base_1.0.safetensors": lambda: checkpoint("SDXL"),
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors": lambda: checkpoint("SD15"),
    "checkpoints/sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": flow_checkpoint,
    "diffusion_models/sdxl-inpainting-0.1.fp16.safetensors": lambda: unet(SDXL, channels=9),
    CONTROLNET.format("depth"): controlnet,
    "loras/tcd-sdxl-lora.safetensors": lambda: lora(SDXL),
    "loras/tcd-sd15-lora.safetensors": lambda: lora(SD15),
    "loras/papercut.safetensors": lambda: {**lora(SDXL), **text_lora()},
    "ipadapter/ip-adapter_sdxl_vit-h.safetensors": lambda: ip_adapter(70, 2048),
    "ipadapter/ip-adapter_sd15.safetensors": lambda: ip_adapter(16, 768),
    "clip_vision/CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": clip_vision,
}
SAME = {
    "checkpoints/animagine-xl-3.0.safetensors": "checkpoints/sd_xl_base_1.0.safetensors",
    "loras/Hyper-SDXL-1step-lora.safetensors": "loras/tcd-sdxl-lora.safetensors",
    CONTROLNET.format("canny"): CONTROLNET.format("depth"),
}


def make(host: Any, models: Path, *names: str, script: str = __file__) -> None:
    """Run this file: all of FILES and SAME, or those of FILES that are named. Or another such script."""
    command = [host.python, script, host.path, models, *names]
    done = subprocess.run(command, cwd=host.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def main(models: Path, names: Sequence[str]) -> None:
    for name in names or FILES:
        write(models / name, FILES[name]())
    for name, source in () if names else SAME.items():
        os.link(models / source, models / name)


def in_host(main: Callable[[Path, Sequence[str]], None]) -> None:
    """`main` with the script's second argument and those after it, in the host that the first names."""
    host, out, *names = sys.argv[1:]
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing()
    main(Path(out), names)


if __name__ == "__main__":
    in_host(main)
