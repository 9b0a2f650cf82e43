"""Workflows from text to image: a function's name is the file's, its docstring the caption of the picture."""

from __future__ import annotations

from workflow_graph import Graph
from workflow_models import ANIMAGINE, HYPER, PAPERCUT, SD15, SDXL, TCD_SD15, TCD_SDXL
from workflow_parts import FEW_STEPS, Loaded, add_lora, empty, load, prompts, sampler, save, saved_as


def tcd_embedded_no_download(g: Graph) -> None:
    """The pack's own small model: no download, a CPU will do"""
    with g.group("1 Model", "model"):
        embedded = g.node("TCD_EmbeddedModel", lora="tcd", batch_size=4)
        g.note(
            "A text-to-image model of 16x16 pixel portraits that comes with this pack, to try TCD on any "
            "machine. It has Stable Diffusion's parts, small.\n\n"
            "**lora**: tcd samples in few steps. Choose none for the teacher that it was distilled from: it "
            "needs some 20 steps, cfg 3 and gamma 0."
        )
    words = prompts(
        g,
        embedded["CLIP"],
        "happy person, red hair, glasses, brown hat, night background",
        "Words between commas; the message about an unknown word lists them all. What is not said stays "
        "open. Try: sad person, long blue hair, sunglasses, mint background.",
    )
    with g.group("3 Sample", "sample"):
        latent = sampler(g, embedded["MODEL"], words, embedded["LATENT"])["LATENT"]
    with g.group("4 Image", "image"):
        image = g.node("VAEDecode", samples=latent, vae=embedded["VAE"])["IMAGE"]
        # 16 pixels a side are hard to see.
        big = g.node(
            "ImageScale", image=image, upscale_method="nearest-exact", width=256, height=256, crop="disabled"
        )
        g.node("SaveImage", images=big["IMAGE"], filename_prefix=f"TCD/{g.name}")


def tcd_sdxl_text_to_image(g: Graph) -> None:
    """SDXL in 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "a lighthouse on a cliff in a storm, waves, dramatic light, oil painting")
    with g.group("3 Sample", "sample"):
        latent = sampler(g, it.model, words, empty(g))["LATENT"]
    with g.group("4 Image", "image"):
        save(g, latent, it.vae)


def tcd_sd15_text_to_image(g: Graph) -> None:
    """Stable Diffusion 1.5 in 4 steps"""
    it = Loaded(g, SD15, TCD_SD15)
    words = prompts(g, it.clip, "portrait of an old fisherman, wool cap, soft window light, photograph")
    with g.group("3 Sample", "sample"):
        why = f"512x512, the size that SD 1.5 was trained on.\n\n{FEW_STEPS}"
        latent = sampler(g, it.model, words, empty(g, 512, 512), why)["LATENT"]
    with g.group("4 Image", "image"):
        save(g, latent, it.vae)


def tcd_animagine_xl(g: Graph) -> None:
    """A community model: Animagine XL in 8 steps"""
    it = Loaded(g, ANIMAGINE)
    words = prompts(
        g,
        it.clip,
        "1girl, silver hair, school uniform, cherry blossoms, looking back, masterpiece, best quality",
        "Animagine is prompted with tags. The TCD LoRA of SDXL works with models that were "
        "trained from SDXL.",
    )
    with g.group("3 Sample", "sample"):
        why = (
            "**steps 8**: as in the TCD authors' demo. The further a model is from the one that the LoRA was "
            "distilled on, the more steps help; 4 work.\n\n**cfg 1**, **gamma 0.3**: as with SDXL."
        )
        latent = sampler(g, it.model, words, empty(g, 832, 1216), why, steps=8)["LATENT"]
    with g.group("4 Image", "image"):
        save(g, latent, it.vae)


def tcd_sdxl_style_lora_papercut(g: Graph) -> None:
    """A style LoRA beside the TCD LoRA, 4 steps"""
    with g.group("1 Model", "model"):
        checkpoint = load(g)
        style = g.node(
            "LoraLoader",
            "Style",
            models=(PAPERCUT,),
            model=checkpoint["MODEL"],
            clip=checkpoint["CLIP"],
            lora_name=PAPERCUT.name,
            strength_model=1.0,
            strength_clip=1.0,
        )
        g.note(
            "Both LoRAs at **strength 1**, as in the TCD authors' demo; their order does not matter. If the "
            "style is too strong, lower the style's strength, not TCD's.\n\n"
            f"{saved_as(SDXL, PAPERCUT, TCD_SDXL)}"
        )
        model = add_lora(g, style["MODEL"], TCD_SDXL)["MODEL"]
    words = prompts(g, style["CLIP"], "papercut of a fox in a birch forest, snow, layered paper")
    with g.group("3 Sample", "sample"):
        latent = sampler(g, model, words, empty(g))["LATENT"]
    with g.group("4 Image", "image"):
        save(g, latent, checkpoint["VAE"])


def tcd_hyper_sd_unified_lora(g: Graph) -> None:
    """Hyper-SD's unified LoRA: 1 step, and 4"""
    it = Loaded(g, SDXL, HYPER)
    words = prompts(g, it.clip, "a photo of a corgi on a skateboard, city street, sunny")
    with g.group("3 Sample, 1 step", "sample"):
        latent = empty(g)
        why = (
            "Hyper-SD's *1step* LoRA is for 1 to 8 steps of the TCD sampler.\n\n**1 step, gamma 1**: the "
            "example of its card (eta 1, guidance off). A single step draws no noise, so gamma has no effect "
            "in it.\n\n**cfg 1**: guidance off."
        )
        one = sampler(g, it.model, words, latent, why, "1 step", steps=1, gamma=1.0)["LATENT"]
    with g.group("4 Sample, 4 steps", "sample"):
        why = (
            "**4 steps, gamma 0.5**: with several steps a lower gamma gives more detail, says the card; "
            "where to stop is for you to see.\n\n**cfg 1**: guidance off."
        )
        four = sampler(g, it.model, words, latent, why, "4 steps", steps=4, gamma=0.5)["LATENT"]
    with g.group("5 Image, 1 step", "image"):
        save(g, one, it.vae)
    with g.group("6 Image, 4 steps", "image"):
        save(g, four, it.vae)


def tcd_sdxl_plain_ksampler(g: Graph) -> None:
    """Core's KSampler with TCD's sampler and scheduler, 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "still life with pears and a blue jug, side light, classical painting")
    with g.group("3 Settings", "sample"):
        model = g.node("TCD_Settings", model=it.model, gamma=0.3)["MODEL"]
        g.note(
            "For graphs and nodes that sample with **KSampler**: TCD Settings writes gamma on the model, and "
            "the sampler **tcd_sss** reads it there. The scheduler **tcd_grid** takes the timesteps that the "
            "LoRA was distilled on.\n\nThe picture is the one of TCD Sampler with the same settings."
        )
    with g.group("4 Sample", "sample"):
        latent = empty(g)
        g.note(FEW_STEPS)
        sampled = g.node(
            "KSampler",
            model=model,
            seed=0,
            steps=4,
            cfg=1.0,
            sampler_name="tcd_sss",
            scheduler="tcd_grid",
            positive=words[0],
            negative=words[1],
            latent_image=latent,
            denoise=1.0,
        )
    with g.group("5 Image", "image"):
        save(g, sampled["LATENT"], it.vae)
