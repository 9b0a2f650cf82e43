"""Columns that many workflows share."""

from __future__ import annotations

from typing import Any

from workflow_graph import Graph, Model, Node, Output
from workflow_models import SDXL, TCD_SDXL

INPUT_IMAGE = "example.png"
"""Comes with ComfyUI."""
FEW_STEPS = (
    "**steps 4**: TCD LoRAs give a picture from 2 steps, and more detail with more: 8, 20, 50.\n\n"
    "**cfg 1**: guidance is distilled into the LoRA. Up to 2 strengthens the prompt; above 1 each step costs "
    "twice, and only then the negative prompt counts.\n\n"
    "**gamma 0.3**: the share of fresh noise in each step, the authors' default. 0 is sharp and "
    "deterministic, 1 samples as LCM does. Raise it with the number of steps."
)


def saved_as(*models: Model) -> str:
    """What to download to where; says so where the published name is another."""
    lines = ["**Files** (the host offers to download what is missing)"]
    for model in models:
        theirs = model.url.rsplit("/", 1)[1]
        rename = "" if theirs == model.name else f", published as **{theirs}**: rename it"
        lines.append(f"- [{model.name}]({model.url}) in **models/{model.directory}**{rename}")
    return "\n".join(lines)


class Loaded:
    """MODEL with the few-step LoRA, and CLIP and VAE of its checkpoint."""

    def __init__(self, g: Graph, checkpoint: Model = SDXL, lora: Model = TCD_SDXL, *others: Model) -> None:
        with g.group("1 Model", "model"):
            self.checkpoint = load(g, checkpoint)
            g.note(saved_as(checkpoint, lora, *others), "Files")
            self.lora = add_lora(g, self.checkpoint["MODEL"], lora)
        self.model, self.clip, self.vae = self.lora["MODEL"], self.checkpoint["CLIP"], self.checkpoint["VAE"]


def load(g: Graph, checkpoint: Model = SDXL) -> Node:
    return g.node("CheckpointLoaderSimple", models=(checkpoint,), ckpt_name=checkpoint.name)


def add_lora(g: Graph, model: Output, lora: Model) -> Node:
    return g.node("TCD_LoraLoader", models=(lora,), model=model, lora_name=lora.name, strength=1.0)


def prompts(
    g: Graph, clip: Output, text: str, why: str = "", negative: str = "", number: int = 2
) -> tuple[Output, Output]:
    """(positive, negative)"""
    with g.group(f"{number} Prompt", "prompt"):
        positive = g.node("CLIPTextEncode", "Prompt", clip=clip, text=text)
        no = g.node("CLIPTextEncode", "Negative prompt", clip=clip, text=negative)
        if why:
            g.note(why)
    return positive["CONDITIONING"], no["CONDITIONING"]


def empty(g: Graph, width: int = 1024, height: int = 1024) -> Output:
    return g.node("EmptyLatentImage", width=width, height=height, batch_size=1)["LATENT"]


def sampler(
    g: Graph,
    model: Output,
    conditions: tuple[Output, Output],
    latent: Output,
    why: str = FEW_STEPS,
    title: str = "",
    **given: float,
) -> Node:
    """TCD_KSampler at the authors' settings, or those that are given, under a note on why."""
    g.note(why)
    settings: dict[str, Any] = {"steps": 4, "cfg": 1.0, "gamma": 0.3, "denoise": 1.0, **given}
    sockets = {"model": model, "positive": conditions[0], "negative": conditions[1], "latent_image": latent}
    return g.node("TCD_KSampler", title, seed=0, **sockets, **settings)


def save(g: Graph, latent: Output, vae: Output, title: str = "") -> None:
    image = g.node("VAEDecode", samples=latent, vae=vae)["IMAGE"]
    g.node("SaveImage", title, images=image, filename_prefix=f"TCD/{g.name}")


def input_image(g: Graph, title: str, why: str, side: int = 1024) -> tuple[Output, Output]:
    """An image of the user, scaled and cropped to a square; (image, mask)."""
    loaded = g.node("LoadImage", title, image=INPUT_IMAGE)
    scaled = g.node(
        "ImageScale",
        image=loaded["IMAGE"],
        upscale_method="lanczos",
        width=side,
        height=side,
        crop="center",
    )
    g.note(why)
    return scaled["IMAGE"], loaded["MASK"]
