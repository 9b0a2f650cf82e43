"""Workflows with an image in, or two sizes; a function each, as in workflows_from_text."""

from __future__ import annotations

from workflow_graph import Graph, Output
from workflow_models import CANNY, DEPTH, INPAINTING, IP_ADAPTER, SDXL, TCD_SDXL, VIT_H
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
    with g.group("6 Image", "image"):
        save(g, latent, it.vae)


def tcd_sdxl_inpainting(g: Graph) -> None:
    """SDXL inpainting in 8 steps"""
    with g.group("1 Model", "model"):
        checkpoint = load(g)
        unet = g.node("UNETLoader", models=(INPAINTING,), unet_name=INPAINTING.name, weight_dtype="default")
        g.note(
            "The inpainting UNet is SDXL's with inputs for the mask and the masked image; text encoders and "
            f"VAE come from SDXL.\n\n{saved_as(SDXL, INPAINTING, TCD_SDXL)}"
        )
        model = add_lora(g, unet["MODEL"], TCD_SDXL)["MODEL"]
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
        why = (
            "**steps 8**, **gamma 0.3**, **denoise 0.99**: as in the TCD authors' demo. This model wants a "
            "trace of the image in the initial noise, so keep denoise below 1.\n\n**cfg 1**: no guidance."
        )
        latent = sampler(g, model, conditions, masked["latent"], why, steps=8, denoise=0.99)["LATENT"]
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
        why = (
            "**denoise 0.6**: how far back to noise the image is taken; 0.4 keeps its shapes, 0.8 little "
            f"more than its colours. All steps are spent on that part.\n\n{FEW_STEPS}"
        )
        latent = sampler(g, it.model, words, pixels["LATENT"], why, denoise=0.6)["LATENT"]
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
        latent = empty(g)
        g.note("**denoised_output** is the predicted picture without noise: only that can be enlarged.")
        _, clean = half(latent, halves["high_sigmas"], "1024x1024")
    with g.group("5 Second half", "sample"):
        bigger = g.node("LatentUpscaleBy", samples=clean, upscale_method="bicubic", scale_by=1.5)["LATENT"]
        g.note("**add_noise**: the enlarged picture gets the noise of the sigma at which the halves meet.")
        latent, _ = half(bigger, halves["low_sigmas"], "1536x1536")
    with g.group("6 Image", "image"):
        save(g, latent, it.vae)
