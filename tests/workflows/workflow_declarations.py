"""The workflows, one function each; its name is the file's, its docstring the picture's caption."""

from __future__ import annotations

from workflow_graph import Graph, Output
from workflow_models import (
    ANIMAGINE,
    CANNY,
    DEPTH,
    HYPER,
    INPAINTING,
    IP_ADAPTER,
    PAPERCUT,
    SD15,
    SDXL,
    TCD_SD15,
    TCD_SDXL,
    VIT_H,
)
from workflow_parts import (
    FEW_STEPS,
    Loaded,
    add_lora,
    empty,
    input_image,
    load,
    prompts,
    sampler,
    save,
    saved_as,
)


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
        g.note(FEW_STEPS)
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
        g.note(FEW_STEPS)
    with g.group("4 Image", "image"):
        save(g, latent, it.vae)


def tcd_sd15_text_to_image(g: Graph) -> None:
    """Stable Diffusion 1.5 in 4 steps"""
    it = Loaded(g, SD15, TCD_SD15)
    words = prompts(g, it.clip, "portrait of an old fisherman, wool cap, soft window light, photograph")
    with g.group("3 Sample", "sample"):
        latent = sampler(g, it.model, words, empty(g, 512, 512))["LATENT"]
        g.note(f"512x512, the size that SD 1.5 was trained on.\n\n{FEW_STEPS}")
    with g.group("4 Image", "image"):
        save(g, latent, it.vae)


STRENGTH = (
    "**strength 0.5**: as in the TCD authors' demo and on the ControlNet's card. Nearer to 1 the picture "
    "follows the {} more closely."
)


def _controlled(
    g: Graph, words: tuple[Output, Output], image: Output, vae: Output, what: str
) -> tuple[Output, Output]:
    net = DEPTH if what == "depth map" else CANNY
    loaded = g.node("ControlNetLoader", models=(net,), control_net_name=net.name)
    applied = g.node(
        "ControlNetApplyAdvanced",
        positive=words[0],
        negative=words[1],
        control_net=loaded["CONTROL_NET"],
        image=image,
        strength=0.5,
        start_percent=0.0,
        end_percent=1.0,
        vae=vae,
    )
    g.note(f"{STRENGTH.format(what)}\n\n{saved_as(net)}")
    return applied["positive"], applied["negative"]


def tcd_sdxl_controlnet_depth(g: Graph) -> None:
    """SDXL with a depth ControlNet, 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "a reading room in an old library, wooden shelves, warm lamps, photograph")
    with g.group("3 Depth", "input"):
        why = (
            "A **depth map**: near is bright, far is dark. Load one of yours; the image that is chosen here "
            "only shows where it goes. Packs such as comfyui_controlnet_aux make depth maps from photographs."
        )
        image, _ = input_image(g, "Depth map", why)
    with g.group("4 ControlNet", "model"):
        conditions = _controlled(g, words, image, it.vae, "depth map")
    with g.group("5 Sample", "sample"):
        latent = sampler(g, it.model, conditions, empty(g))["LATENT"]
        g.note(FEW_STEPS)
    with g.group("6 Image", "image"):
        save(g, latent, it.vae)


def tcd_sdxl_controlnet_canny(g: Graph) -> None:
    """SDXL with a canny ControlNet, 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "a small robot made of brass and glass, studio photograph, shallow focus")
    with g.group("3 Edges", "input"):
        why = "Any image: its edges are kept, all else is painted anew. Lower thresholds keep more edges."
        image, _ = input_image(g, "Image", why)
        edges = g.node("Canny", image=image, low_threshold=0.4, high_threshold=0.8)["IMAGE"]
        g.node("PreviewImage", "Edges", images=edges)
    with g.group("4 ControlNet", "model"):
        conditions = _controlled(g, words, edges, it.vae, "edges")
    with g.group("5 Sample", "sample"):
        latent = sampler(g, it.model, conditions, empty(g))["LATENT"]
        g.note(FEW_STEPS)
    with g.group("6 Image", "image"):
        save(g, latent, it.vae)


def tcd_sdxl_ip_adapter(g: Graph) -> None:
    """SDXL with an image as prompt (IP-Adapter), 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "best quality, wearing sunglasses on a beach")
    with g.group("3 Image as prompt", "input"):
        image, _ = input_image(
            g, "Reference", "The subject and style of this image go into the picture.", 512
        )
    with g.group("4 IP-Adapter", "model"):
        adapter = g.node("IPAdapterModelLoader", models=(IP_ADAPTER,), ipadapter_file=IP_ADAPTER.name)
        vision = g.node("CLIPVisionLoader", models=(VIT_H,), clip_name=VIT_H.name)
        applied = g.node(
            "IPAdapterAdvanced",
            model=it.model,
            ipadapter=adapter["IPADAPTER"],
            image=image,
            clip_vision=vision["CLIP_VISION"],
            weight=0.5,
            weight_type="linear",
            combine_embeds="concat",
            start_at=0.0,
            end_at=1.0,
            embeds_scaling="V only",
        )
        g.note(
            "Needs the pack **ComfyUI_IPAdapter_plus**, which the Manager installs.\n\n**weight 0.5**: as in "
            f"the TCD authors' demo; image and words count alike.\n\n{saved_as(IP_ADAPTER, VIT_H)}"
        )
    with g.group("5 Sample", "sample"):
        latent = sampler(g, applied["MODEL"], words, empty(g))["LATENT"]
        g.note(FEW_STEPS)
    with g.group("6 Image", "image"):
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
        latent = sampler(g, it.model, words, empty(g, 832, 1216), steps=8)["LATENT"]
        g.note(
            "**steps 8**: as in the TCD authors' demo. The further a model is from the one that the LoRA was "
            "distilled on, the more steps help; 4 work.\n\n**cfg 1**, **gamma 0.3**: as with SDXL."
        )
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
        model = add_lora(g, style["MODEL"], TCD_SDXL)["MODEL"]
        g.note(
            "Both LoRAs at **strength 1**, as in the TCD authors' demo; their order does not matter. If the "
            "style is too strong, lower the style's strength, not TCD's.\n\n"
            f"{saved_as(SDXL, PAPERCUT, TCD_SDXL)}"
        )
    words = prompts(g, style["CLIP"], "papercut of a fox in a birch forest, snow, layered paper")
    with g.group("3 Sample", "sample"):
        latent = sampler(g, model, words, empty(g))["LATENT"]
        g.note(FEW_STEPS)
    with g.group("4 Image", "image"):
        save(g, latent, checkpoint["VAE"])


def tcd_sdxl_inpainting(g: Graph) -> None:
    """SDXL inpainting in 8 steps"""
    with g.group("1 Model", "model"):
        checkpoint = load(g)
        unet = g.node("UNETLoader", models=(INPAINTING,), unet_name=INPAINTING.name, weight_dtype="default")
        model = add_lora(g, unet["MODEL"], TCD_SDXL)["MODEL"]
        g.note(
            "The inpainting UNet is SDXL's with inputs for the mask and the masked image; text encoders and "
            f"VAE come from SDXL.\n\n{saved_as(SDXL, INPAINTING, TCD_SDXL)}"
        )
    words = prompts(g, checkpoint["CLIP"], "a tabby cat sleeping, photograph")
    with g.group("3 Image and mask", "input"):
        image, mask = input_image(
            g,
            "Image with mask",
            "Load an image, then paint over what should change: right click, **Open in MaskEditor**. Without "
            "a mask nothing changes. A square image is not cropped.",
        )
        masked = g.node(
            "InpaintModelConditioning",
            positive=words[0],
            negative=words[1],
            vae=checkpoint["VAE"],
            pixels=image,
            mask=mask,
            noise_mask=True,
        )
    with g.group("4 Sample", "sample"):
        conditions = masked["positive"], masked["negative"]
        latent = sampler(g, model, conditions, masked["latent"], steps=8, denoise=0.99)["LATENT"]
        g.note(
            "**steps 8**, **gamma 0.3**, **denoise 0.99**: as in the TCD authors' demo. This model wants a "
            "trace of the image in the initial noise, so keep denoise below 1.\n\n**cfg 1**: no guidance."
        )
    with g.group("5 Image", "image"):
        save(g, latent, checkpoint["VAE"])


def tcd_sdxl_image_to_image(g: Graph) -> None:
    """SDXL from an image, 4 steps"""
    it = Loaded(g)
    words = prompts(g, it.clip, "a watercolour of a summer meadow, loose brush strokes")
    with g.group("3 Image", "input"):
        image, _ = input_image(g, "Image", "The picture starts from this image with noise on it.")
        pixels = g.node("VAEEncode", pixels=image, vae=it.vae)
    with g.group("4 Sample", "sample"):
        latent = sampler(g, it.model, words, pixels["LATENT"], denoise=0.6)["LATENT"]
        g.note(
            "**denoise 0.6**: how far back to noise the image is taken; 0.4 keeps its shapes, 0.8 little "
            f"more than its colours. All steps are spent on that part.\n\n{FEW_STEPS}"
        )
    with g.group("5 Image", "image"):
        save(g, latent, it.vae)


def tcd_sdxl_hires_split_sigmas(g: Graph) -> None:
    """One run over two sizes: 4 steps at 1024, 4 at 1536"""
    it = Loaded(g)
    words = prompts(g, it.clip, "a mountain village at dusk, lit windows, fog in the valley, matte painting")
    with g.group("3 Steps", "sample"):
        steps = g.node("TCD_Scheduler", model=it.model, steps=8, denoise=1.0)
        halves = g.node("SplitSigmas", sigmas=steps["SIGMAS"], step=4)
        method = g.node("TCD_Sampler", gamma=0.3)
        g.note(
            "**steps 8**, split after 4: the first half composes at 1024x1024, the second adds detail at "
            "1536x1536, for the cost of one run.\n\n**gamma 0.3**, **cfg 1** as with one size; the "
            "step from one size to the other starts from fresh noise."
        )

    def half(model_latent: Output, sigmas: Output, title: str) -> tuple[Output, Output]:
        node = g.node(
            "SamplerCustom",
            title,
            model=it.model,
            add_noise=True,
            noise_seed=0,
            cfg=1.0,
            positive=words[0],
            negative=words[1],
            sampler=method["SAMPLER"],
            sigmas=sigmas,
            latent_image=model_latent,
        )
        return node["output"], node["denoised_output"]

    with g.group("4 First half", "sample"):
        _, clean = half(empty(g), halves["high_sigmas"], "1024x1024")
        bigger = g.node("LatentUpscaleBy", samples=clean, upscale_method="bicubic", scale_by=1.5)["LATENT"]
        g.note("**denoised_output** is the predicted picture without noise: only that can be enlarged.")
    with g.group("5 Second half", "sample"):
        latent, _ = half(bigger, halves["low_sigmas"], "1536x1536")
        g.note("**add_noise**: the enlarged picture gets the noise of the sigma at which the halves meet.")
    with g.group("6 Image", "image"):
        save(g, latent, it.vae)


def tcd_hyper_sd_unified_lora(g: Graph) -> None:
    """Hyper-SD's unified LoRA: 1 step, and 4"""
    it = Loaded(g, SDXL, HYPER)
    words = prompts(g, it.clip, "a photo of a corgi on a skateboard, city street, sunny")
    with g.group("3 Sample", "sample"):
        latent = empty(g)
        one = sampler(g, it.model, words, latent, steps=1, gamma=1.0, title="1 step")["LATENT"]
        four = sampler(g, it.model, words, latent, steps=4, gamma=0.5, title="4 steps")["LATENT"]
        g.note(
            "Hyper-SD's *1step* LoRA is for 1 to 8 steps of the TCD sampler.\n\n**1 step, gamma 1**: the "
            "example of its card (eta 1, guidance off). A single step draws no noise, so gamma has no effect "
            "in it.\n\n**4 steps, gamma 0.5**: with several steps a lower gamma gives more detail, says the "
            "card; where to stop is for you to see.\n\n**cfg 1**: guidance off."
        )
    with g.group("4 Image, 1 step", "image"):
        save(g, one, it.vae)
    with g.group("5 Image, 4 steps", "image"):
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
            latent_image=empty(g),
            denoise=1.0,
        )
        g.note(FEW_STEPS)
    with g.group("5 Image", "image"):
        save(g, sampled["LATENT"], it.vae)


def tcd_gamma_by_steps_grid(g: Graph) -> None:
    """Choose gamma and steps by looking: a grid of both beside the teacher"""
    it = Loaded(g)
    words = prompts(
        g,
        it.clip,
        "a heron among reeds at sunrise, mist, fine feathers, photograph",
        "A prompt like those that you will use: what is best differs with model and subject. Only the "
        "teacher sees the negative prompt.",
        "blurry, low quality",
    )
    with g.group("3 Compare", "sample"):
        latent = empty(g)
        compared = g.node(
            "TCD_CompareGrid",
            model=it.model,
            positive=words[0],
            negative=words[1],
            latent_image=latent,
            vae=it.vae,
            seed=0,
            steps="2, 4, 8",
            gammas="0, 0.3, 0.6",
            cfg=1.0,
            lora_name="none",
            reference_sampler="dpmpp_2m",
            reference_scheduler="karras",
            reference_steps=30,
            reference_cfg=5.0,
            reference_model=it.checkpoint["MODEL"],
        )
        g.note(
            "One seed and noise for all cells.\n\n**steps 2, 4, 8**: the columns. **gamma 0, 0.3, 0.6**: "
            "the rows; more steps take more gamma.\n\n**cfg 1**: for the cells; the teacher has 5.\n\n"
            "**reference**: the checkpoint without the LoRA, 30 steps of dpmpp_2m, for the first column. "
            "Distances are those to it. Choose none to save its time.\n\n"
            "The sheet and a table of the figures are written to the output folder."
        )
    with g.group("4 Pictures", "image"):
        g.node("PreviewImage", "All pictures, in full size", images=compared["images"])


TEACHING = "\n".join(
    (
        "portrait of a woman with freckles, window light",
        "an old man laughing, black and white photograph",
        "a child with a red balloon in a park",
        "a tabby cat on a sofa",
        "a sheepdog running through snow",
        "an eagle over a mountain lake",
        "a market street in the rain, neon signs",
        "a wooden cabin in a pine forest, autumn",
        "a desert canyon at sunset",
        "a castle on a hill, fantasy painting",
        "a bowl of ramen, steam, close-up",
        "a bouquet of peonies, oil painting",
        "a vintage car on a coast road",
        "a glass teapot on a marble table",
        "an astronaut on a beach, digital art",
        "a dragon asleep in a library, illustration",
        "a city skyline at night, long exposure",
        "a watercolour of a harbour with sailing boats",
        "a chess board, macro photograph",
        "a field of sunflowers under storm clouds",
    )
)


def tcd_distill_your_checkpoint(g: Graph) -> None:
    """Distil your own checkpoint, then sample with the result"""
    with g.group("1 Your checkpoint", "model"):
        checkpoint = load(g, SD15)
        g.note(
            "**Your checkpoint** goes here: any that is sampled with cfg, without a few-step LoRA. Set the "
            "size in TCD Distill to what it was trained on.\n\nTo see it all in minutes, even on a CPU, put "
            "TCD Embedded Model (lora none) in its place, and words that it knows.\n\n"
            f"{saved_as(SD15)}"
        )
    with g.group("2 Distil", "sample"):
        distilled = g.node(
            "TCD_Distill",
            model=checkpoint["MODEL"],
            clip=checkpoint["CLIP"],
            vae=checkpoint["VAE"],
            prompts=TEACHING,
            run_name="my-tcd-lora",
            width=512,
            height=512,
        )
        g.note(
            "No data set is needed: the teacher paints what the student learns from.\n\n**prompts**: like "
            "those that the LoRA will be used with. These are few; some hundreds serve well.\n\n**0**: the "
            "preset's value for this kind of model. For SD 1.5: 3000 steps, rank 64, cfg 4 to 9 of the "
            "teacher.\n\nCancel keeps what is there; queued again, it goes on, as long as nothing else has "
            "changed. The LoRA is my-tcd-lora in every list of LoRAs after a refresh."
        )
    with g.group("3 Validation", "image"):
        g.node("PreviewImage", "1, 2, 4, 8 steps, teacher", images=distilled["validation"])
    words = prompts(g, checkpoint["CLIP"], "a lighthouse on a cliff, waves, evening sun", number=4)
    with g.group("5 Sample", "sample"):
        latent = sampler(g, distilled["MODEL"], words, empty(g, 512, 512))["LATENT"]
        g.note(FEW_STEPS)
    with g.group("6 Image", "image"):
        save(g, latent, checkpoint["VAE"])


WORKFLOWS = (
    tcd_embedded_no_download,
    tcd_sdxl_text_to_image,
    tcd_sd15_text_to_image,
    tcd_sdxl_controlnet_depth,
    tcd_sdxl_controlnet_canny,
    tcd_sdxl_ip_adapter,
    tcd_animagine_xl,
    tcd_sdxl_style_lora_papercut,
    tcd_sdxl_inpainting,
    tcd_sdxl_image_to_image,
    tcd_sdxl_hires_split_sigmas,
    tcd_hyper_sd_unified_lora,
    tcd_sdxl_plain_ksampler,
    tcd_gamma_by_steps_grid,
    tcd_distill_your_checkpoint,
)
