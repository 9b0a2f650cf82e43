"""The published files that the workflows load."""

from __future__ import annotations

from workflow_graph import Model

HUB = "https://huggingface.co"


def _hub(name: str, repository: str, path: str, directory: str) -> Model:
    return Model(name, f"{HUB}/{repository}/resolve/main/{path}", directory)


SDXL = _hub(
    "sd_xl_base_1.0.safetensors",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "sd_xl_base_1.0.safetensors",
    "checkpoints",
)
SD15 = _hub(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "Comfy-Org/stable-diffusion-v1-5-archive",
    "v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
)
SD35 = _hub(
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
    "Comfy-Org/stable-diffusion-3.5-fp8",
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
    "checkpoints",
)
ANIMAGINE = _hub(
    "animagine-xl-3.0.safetensors",
    "cagliostrolab/animagine-xl-3.0",
    "animagine-xl-3.0.safetensors",
    "checkpoints",
)
# Published under a name that says nothing; saved under one that does.
TCD_SDXL = _hub("tcd-sdxl-lora.safetensors", "h1t/TCD-SDXL-LoRA", "pytorch_lora_weights.safetensors", "loras")
TCD_SD15 = _hub("tcd-sd15-lora.safetensors", "h1t/TCD-SD15-LoRA", "pytorch_lora_weights.safetensors", "loras")
HYPER = _hub(
    "Hyper-SDXL-1step-lora.safetensors", "ByteDance/Hyper-SD", "Hyper-SDXL-1step-lora.safetensors", "loras"
)
PAPERCUT = _hub("papercut.safetensors", "TheLastBen/Papercut_SDXL", "papercut.safetensors", "loras")
DEPTH = _hub(
    "controlnet-depth-sdxl-1.0.fp16.safetensors",
    "diffusers/controlnet-depth-sdxl-1.0",
    "diffusion_pytorch_model.fp16.safetensors",
    "controlnet",
)
CANNY = _hub(
    "controlnet-canny-sdxl-1.0.fp16.safetensors",
    "diffusers/controlnet-canny-sdxl-1.0",
    "diffusion_pytorch_model.fp16.safetensors",
    "controlnet",
)
INPAINTING = _hub(
    "sdxl-inpainting-0.1.fp16.safetensors",
    "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "diffusion_models",
)
IP_ADAPTER = _hub(
    "ip-adapter_sdxl_vit-h.safetensors",
    "h94/IP-Adapter",
    "sdxl_models/ip-adapter_sdxl_vit-h.safetensors",
    "ipadapter",
)
VIT_H = _hub(
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "h94/IP-Adapter",
    "models/image_encoder/model.safetensors",
    "clip_vision",
)
EVERY = (
    SDXL, SD15, SD35, ANIMAGINE, TCD_SDXL, TCD_SD15, HYPER, PAPERCUT, DEPTH, CANNY, INPAINTING, IP_ADAPTER,
    VIT_H,
)  # fmt: skip
