"""Pictures for the template browser: the embedded model's own, and drawings of the other graphs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from workflow_graph import TITLE, Graph, Node

SIZE = (480, 320)
PAPER, CARD, HEADER, INK, MUTED = "#20232a", "#343841", "#4a505c", "#f2f3f5", "#9aa1ad"
WIRES = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd54f",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "MASK": "#81c784",
    "SIGMAS": "#cdffcd",
    "SAMPLER": "#eceff1",
}
AVATARS = (
    "happy person, red hair, glasses, brown hat, night background",
    "sad person, long blue hair, sunglasses, mint background",
    "happy person, short black hair, beard, yellow top, sky background",
    "happy person, long blond hair, no glasses, no hat, lilac background",
    "happy person, dark skin, long auburn hair, red top, sand background",
    "sad person, short green hair, pale skin, blue top, rose background",
)
NAMES = {
    "CheckpointLoaderSimple": "checkpoint",
    "TCD_LoraLoader": "TCD LoRA",
    "TCD_KSampler": "TCD Sampler",
    "TCD_Sampler": "TCD Sampler",
    "TCD_Scheduler": "TCD Scheduler",
    "TCD_Settings": "TCD Settings",
    "CLIPTextEncode": "prompt",
    "EmptyLatentImage": "latent",
    "EmptySD3LatentImage": "latent",
    "VAEDecode": "decode",
    "VAEEncode": "encode",
    "SaveImage": "image",
    "PreviewImage": "preview",
    "LoadImage": "load image",
    "ImageScale": "scale",
    "LatentUpscaleBy": "enlarge",
    "LoraLoader": "style LoRA",
    "ControlNetLoader": "ControlNet",
    "ControlNetApplyAdvanced": "apply",
    "UNETLoader": "inpainting",
    "InpaintModelConditioning": "condition",
    "IPAdapterModelLoader": "IP-Adapter",
    "IPAdapterAdvanced": "apply",
    "CLIPVisionLoader": "CLIP vision",
    "SplitSigmas": "split",
    "SamplerCustom": "sample",
    "TCD_CompareGrid": "TCD Compare",
    "TCD_Distill": "TCD Distill",
}
SAMPLING = ("TCD_KSampler", "KSampler", "TCD_Sampler", "TCD_Scheduler", "SamplerCustom")


def draw(graph: Graph, caption: str, path: Path) -> None:
    """A JPEG of a few kilobytes."""
    top = avatars() if any(node.type == "TCD_EmbeddedModel" for node in graph.nodes) else diagram(graph)
    sheet = Image.new("RGB", SIZE, PAPER)
    sheet.paste(top, (0, 0))
    pen = ImageDraw.Draw(sheet)
    lines = textwrap.wrap(caption, 40)
    for i, line in enumerate(lines):
        pen.text((16, SIZE[1] - 26 * len(lines) - 10 + 26 * i), line, INK, ImageFont.load_default(21))
    sheet.save(path, quality=85, optimize=True)


def avatars() -> Image.Image:
    """What workflow 1 makes, of other prompts too: 4 steps, gamma 0.3."""
    from comfyui_tcd.embedded.methods import Prompts, sample_student, with_lora
    from comfyui_tcd.embedded.model import EmbeddedModel
    from comfyui_tcd.embedded.prompts import parse_all
    from comfyui_tcd.embedded.sample import TCD_LORA

    student = with_lora(EmbeddedModel.load(), TCD_LORA)
    images = sample_student(student, Prompts.make(parse_all(AVATARS), seed=0), steps=4, gamma=0.3)
    sheet = Image.new("RGB", (SIZE[0], 264), PAPER)
    for i, image in enumerate(images):
        big = Image.fromarray(image.numpy()).resize((112, 112), Image.Resampling.NEAREST)
        sheet.paste(big, (24 + (i % 3) * 160, 14 + (i // 3) * 128))
    return sheet


def diagram(graph: Graph) -> Image.Image:
    """Nodes and links as they stand in the graph, without the notes."""
    graph.place()
    nodes = [node for node in graph.nodes if node.type != "MarkdownNote"]
    width = max(node.pos[0] + node.size[0] for node in nodes)
    height = max(node.pos[1] + node.size[1] for node in nodes)
    scale = min((SIZE[0] - 32) / width, 236 / height) * 2  # drawn twice as large, for smooth lines
    sheet = Image.new("RGB", (SIZE[0] * 2, 264 * 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    shift = (SIZE[0] * 2 - width * scale) / 2, (264 * 2 - (height - TITLE) * scale) / 2 - TITLE * scale / 2

    def at(x: float, y: float) -> tuple[float, float]:
        return x * scale + shift[0], y * scale + shift[1]

    for _, source, out, target, into, type_ in graph.links:  # under the nodes, as in the page
        curve = _curve(graph.nodes[source - 1], out, graph.nodes[target - 1], into)
        pen.line([at(*point) for point in curve], WIRES.get(type_, MUTED), 4)
    for node in nodes:
        (x, y), (w, h) = node.pos, node.size
        pen.rounded_rectangle((*at(x, y - TITLE), *at(x + w, y + h)), 6, CARD)
        header = "#7b3f9e" if node.type in SAMPLING or node.type.startswith("TCD_") else HEADER
        pen.rounded_rectangle((*at(x, y - TITLE), *at(x + w, y + 6)), 6, header)
        name = NAMES.get(node.type, node.type)
        sizes = (ImageFont.load_default(size) for size in range(20, 8, -1))
        label = next(font for font in sizes if font.getlength(name) <= w * scale - 12)
        pen.text((at(x, 0)[0] + 8, at(0, y + 10)[1]), name, MUTED, label)
    return sheet.resize((SIZE[0], 264), Image.Resampling.LANCZOS)


def _curve(source: Node, out: int, target: Node, into: int) -> list[tuple[float, float]]:
    """Between two sockets, as the frontend bends it."""
    a = source.pos[0] + source.size[0], source.pos[1] + 14 + 20 * out
    b = target.pos[0], target.pos[1] + 14 + 20 * into
    reach = max(abs(b[0] - a[0]) / 2, 60)
    points: list[Any] = [a, (a[0] + reach, a[1]), (b[0] - reach, b[1]), b]
    found: list[tuple[float, float]] = []
    for i in range(33):
        t = i / 32
        weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        x, y = (sum(w * p[axis] for w, p in zip(weights, points, strict=True)) for axis in (0, 1))
        found.append((x, y))
    return found
