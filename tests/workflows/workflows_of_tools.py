"""Workflows that compare and distil; a function each, as in workflows_from_text."""

from __future__ import annotations

from workflow_graph import Graph, Node
from workflow_models import SD15, SD35
from workflow_parts import Loaded, empty, load, prompts, sampler, save, saved_as


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
        g.note(
            "One seed and noise for all cells.\n\n**steps 2, 4, 8**: the columns. **gamma 0, 0.3, 0.6**: "
            "the rows; more steps take more gamma.\n\n**cfg 1**: for the cells; the teacher has 5.\n\n"
            "**reference**: the checkpoint without the LoRA, 30 steps of dpmpp_2m, for the first column. "
            "Distances are those to it. Choose none to save its time.\n\n"
            "The sheet and a table of the figures are written to the output folder."
        )
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


def distil(
    g: Graph, checkpoint: Node, why: str, name: str, side: int, cfg_min: float = 0.0, cfg_max: float = 0.0
) -> Node:
    """The columns of a distillation and of what it shows."""
    with g.group("2 Distil", "sample"):
        g.note(why)
        distilled = g.node(
            "TCD_Distill",
            model=checkpoint["MODEL"],
            clip=checkpoint["CLIP"],
            vae=checkpoint["VAE"],
            prompts=TEACHING,
            run_name=name,
            width=side,
            height=side,
            cfg_min=cfg_min,
            cfg_max=cfg_max,
        )
    with g.group("3 Validation", "image"):
        g.node("PreviewImage", "1, 2, 4, 8 steps, teacher", images=distilled["validation"])
    return distilled


def tcd_distill_your_checkpoint(g: Graph) -> None:
    """Distil your own checkpoint, then sample with the result"""
    with g.group("1 Your checkpoint", "model"):
        checkpoint = load(g, SD15)
        g.note(
            "**Your checkpoint** goes here: any that is sampled with cfg, without a few-step LoRA. Set the "
            "size in TCD Distill to what it was trained on.\n\nTo see it all in minutes, even on a CPU, put "
            "TCD Embedded Model (lora none) in its place: width and height 16, its LATENT to TCD Sampler, "
            "and words that it knows.\n\n"
            f"{saved_as(SD15)}"
        )
    why = (
        "No data set is needed: the teacher paints what the student learns from.\n\n**prompts**: like "
        "those that the LoRA will be used with. These are few; some hundreds serve well.\n\n**0**: the "
        "preset's value for this kind of model. For SD 1.5: 3000 steps, rank 64, cfg 4 to 9 of the "
        "teacher.\n\nCancel keeps what is there; queued again, it goes on, as long as nothing else has "
        "changed. The LoRA is my-tcd-lora in every list of LoRAs after a refresh."
    )
    distilled = distil(g, checkpoint, why, "my-tcd-lora", 512)
    words = prompts(g, checkpoint["CLIP"], "a lighthouse on a cliff, waves, evening sun", number=4)
    with g.group("5 Sample", "sample"):
        latent = sampler(g, distilled["MODEL"], words, empty(g, 512, 512))["LATENT"]
    with g.group("6 Image", "image"):
        save(g, latent, checkpoint["VAE"])


def tcd_flux_or_sd3_flow(g: Graph) -> None:
    """Distil a flow model (SD3.5), then sample with the result"""
    with g.group("1 Flow model", "model"):
        checkpoint = load(g, SD35)
        g.note(
            "**A flow model**: SD3, SD3.5, Flux. No LoRA of one that was distilled for this sampler is "
            "published, so this graph makes it.\n\nFor Flux dev put its loaders here, and set cfg_min and "
            "cfg_max to 1: it has guidance in it.\n\n"
            f"{saved_as(SD35)}"
        )
    why = (
        "No data set is needed: the teacher paints what the student learns from.\n\n**prompts**: like "
        "those that the LoRA will be used with; some hundreds serve well.\n\n**cfg_min 3.5, cfg_max 6**: "
        "around the 4.5 that SD3.5 is sampled with.\n\nTCD Distill picks the largest batch that fits. "
        "Cancel keeps what is there; queued again, it goes on."
    )
    distilled = distil(g, checkpoint, why, "my-tcd-flow-lora", 1024, cfg_min=3.5, cfg_max=6.0)
    words = prompts(g, checkpoint["CLIP"], "a lighthouse on a cliff, waves, evening sun", number=4)
    with g.group("5 Sample", "sample"):
        latent = g.node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1)["LATENT"]
        why = (
            "**steps 4**: 1 and 2 give a picture too, where the model alone does not. A nearly straight flow "
            "may be better alone from 4 on: compare.\n\n**cfg 1**: guidance is distilled into the LoRA.\n\n"
            "**gamma 0**: as measured on a small flow model, where 0.3 led further from the teacher."
        )
        latent = sampler(g, distilled["MODEL"], words, latent, why, gamma=0.0)["LATENT"]
    with g.group("6 Image", "image"):
        save(g, latent, checkpoint["VAE"])
