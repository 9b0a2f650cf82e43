"""TCD Dataset: pictures with captions, encoded once, as training data in place of the teacher's own pictures.

A caption is a text file beside the picture, of the same name. What the VAE and the text encoder make of them
is kept in safetensors shards in output/tcd_datasets, by their weights: with others, it is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..training.backbone import fingerprint
from ..training.checkpoint import load_tensors, save_tensors, write_text
from ..training.text import read_text
from .api import schema
from .lora import show
from .prompts import cut, stack
from .runs import DATASETS, NAME, inside_input

Dataset = io.Custom("TCD_DATASET")
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SHARD = 256
"""Pictures a shard."""
TEXT = "text."
SHOWN = 20


def captioned(folder: Path, width: int, height: int) -> tuple[list[tuple[Path, str]], list[str]]:
    """The pictures that can be used, with their captions, and what is wrong with the others."""
    good: list[tuple[Path, str]] = []
    wrong: list[str] = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES):
        fault = picture_fault(path, width, height)
        try:
            caption = caption_of(path)
        except ValueError as error:
            fault, caption = fault or f"its caption {error}", ""
        if fault is None:
            good.append((path, caption))
        else:
            wrong.append(f"{path.name}: {fault}")
    return good, wrong


def caption_of(picture: Path) -> str:
    """Read the text file beside a picture, as one line. ValueError begins with the file's name: there is
    none, nothing in it, or what is no text.
    """
    path = picture.with_suffix(".txt")
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    caption = " ".join(read_text(path, path.name).split())
    if not caption:
        raise ValueError(f"{path.name} is empty")
    return caption


def picture_fault(path: Path, width: int, height: int) -> str | None:
    """What is wrong with a picture: no picture, cut off, or smaller than it is wanted."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            size = image.size
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be read as a picture ({error})"
    if size[0] < width or size[1] < height:
        return f"{size[0]}x{size[1]} pixels, smaller than {width}x{height}"
    return None


def pixels(path: Path, width: int, height: int) -> Tensor:
    """A picture as the host has them, `[1, H, W, 3]`: scaled to cover the size, cut to it in the middle."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image = ImageOps.fit(
            ImageOps.exif_transpose(opened).convert("RGB"), (width, height), Image.Resampling.LANCZOS
        )
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255)[None]


def text_tensors(conditioning: Sequence[Any], caption: str) -> dict[str, Tensor]:
    """Return what the text encoder made of one caption, each tensor as a batch of one: `cross_attn`, and the
    tensors beside it.
    """
    if len(conditioning) != 1:
        raise ValueError(f"the caption {caption[:60]!r} has a schedule of prompts; use plain text")
    cross, extra = conditioning[0]
    tensors = {"cross_attn": cross, **{k: v for k, v in extra.items() if isinstance(v, Tensor)}}
    return {name: value[None].cpu() for name, value in tensors.items()}


def conditioning_of(shard: Mapping[str, Tensor], row: int) -> list[Any]:
    """Return one caption of a shard as the host's CONDITIONING entry."""
    texts = {k.removeprefix(TEXT): v for k, v in shard.items() if k.startswith(TEXT)}
    extra = {name: value[0] for name, value in cut(texts, [row]).items()}
    return [extra.pop("cross_attn"), extra]


def shards_of(dataset: Mapping[str, Any]) -> Iterator[tuple[Tensor, list[Any]]]:
    """Yield the VAE's latents `[N, ...]` and the CONDITIONING of each shard: those in memory (`loaded`), then
    those in files (`shards`).
    """
    yield from dataset.get("loaded", ())
    for path in dataset.get("shards", ()):
        tensors, _ = load_tensors(Path(path))
        rows = range(len(tensors["latents"]))
        yield tensors["latents"], [conditioning_of(tensors, row) for row in rows]


def shape_of(dataset: Mapping[str, Any], form: Any) -> tuple[int, ...]:
    """Give the shape of one latent. ValueError where the model of this latent format has others."""
    shape = tuple(dataset["latent_shape"])
    channels, dimensions = form.latent_channels, getattr(form, "latent_dimensions", 2)
    if shape[0] != channels or len(shape) != 1 + dimensions:
        raise ValueError(
            f"dataset: its latents are {list(shape)}, but this model's have {channels} channels and "
            f"{dimensions} dimensions; encode the pictures with the model's own VAE"
        )
    return shape


def encode_shard(
    items: Sequence[tuple[Path, str]], vae: Any, clip: Any, size: tuple[int, int], bar: Any
) -> Any:
    """Return the tensors of one shard; texts of unlike length are kept as `stack` keeps them."""
    latents: list[Tensor] = []
    texts: list[dict[str, Tensor]] = []
    for path, caption in items:
        latents.append(vae.encode(pixels(path, *size)[..., :3]).float().cpu())
        texts.append(text_tensors(clip.encode_from_tokens_scheduled(clip.tokenize(caption)), caption))
        bar.update(1)
        comfy.model_management.throw_exception_if_processing_interrupted()
    return {"latents": torch.cat(latents)} | {TEXT + k: v for k, v in stack(texts).items()}


def encoded(folder: Path, items: list[tuple[Path, str]], vae: Any, clip: Any, size: tuple[int, int]) -> Path:
    """The folder of shards of `items`: made, or found as it was made before."""
    made_from = {
        "format": 2,  # of the shards
        "vae": fingerprint(vae.first_stage_model if hasattr(vae, "first_stage_model") else vae.model),
        "clip": fingerprint(clip.cond_stage_model),
        "size": list(size),
        "files": [[p.name, p.stat().st_mtime_ns, p.stat().st_size, caption] for p, caption in items],
    }
    key = sha256(json.dumps(made_from).encode()).hexdigest()
    name = folder.name if NAME.fullmatch(folder.name) else "pictures"
    target = Path(folder_paths.get_output_directory()) / DATASETS / f"{name}-{key[:12]}"
    done = target / "dataset.json"  # written last
    if done.is_file() and json.loads(done.read_text("utf-8")) == made_from:
        return target
    bar = comfy.utils.ProgressBar(len(items))
    for first in range(0, len(items), SHARD):
        part = items[first : first + SHARD]
        tensors = encode_shard(part, vae, clip, size, bar)
        save_tensors(target / f"shard-{first // SHARD:05d}.safetensors", tensors, {"count": str(len(part))})
    write_text(done, json.dumps(made_from))
    return target


def folders() -> list[str]:
    """The folders below the input folder."""
    root = Path(folder_paths.get_input_directory())
    found = sorted(p.relative_to(root).as_posix() for p in root.glob("*/")) if root.is_dir() else []
    return found or ["(put a folder of pictures into ComfyUI's input folder)"]


class TCDDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_Dataset",
            display_name="TCD Dataset",
            category="TCD/training",
            description="Pictures with captions (picture.png, picture.txt) of a folder in ComfyUI's input "
            "folder, encoded once, for TCD Distill. Not needed: without it, TCD Distill learns from the "
            "teacher's own pictures.",
            search_aliases=["tcd", "dataset", "data set", "images", "captions", "train"],
            inputs=[
                io.Combo.Input("folder", options=folders(), tooltip="In ComfyUI's input folder."),
                io.Vae.Input("vae", tooltip="The model's own."),
                io.Clip.Input("clip", tooltip="The model's own; encodes the captions."),
                io.Int.Input(
                    "width", default=1024, min=8, max=8192, step=8, tooltip="In pixels. Pictures are scaled "
                    "down to cover the size and cut in the middle."
                ),
                io.Int.Input("height", default=1024, min=8, max=8192, step=8, tooltip="In pixels."),
                io.Combo.Input(
                    "faulty",
                    options=["stop", "skip"],
                    default="stop",
                    tooltip="With pictures that cannot be read or are too small, and those whose caption is "
                    "missing, empty or no UTF-8 text: stop and name them, or leave them out and name them in "
                    "the report.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For TCD Distill."),
                io.String.Output(display_name="report", tooltip="What is in it, and what was left out."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **_: Any) -> str:
        root = inside_input(folder, "folder") if folder else None
        if root is None or not root.is_dir():
            return folder
        stats = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(root.iterdir())]
        return sha256(repr(stats).encode()).hexdigest()

    @classmethod
    def execute(cls, folder: str, vae: Any, clip: Any, width: int, height: int, faulty: str) -> io.NodeOutput:
        root = inside_input(folder, "folder")
        items, wrong = captioned(root, width, height)
        listed = "\n".join(wrong[:SHOWN] + [f"and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN))
        if wrong and faulty == "stop":
            raise ValueError(
                f"folder {folder!r}: {len(wrong)} pictures cannot be used; mend them, or set faulty to "
                f"skip:\n{listed}"
            )
        if not items:
            raise ValueError(f"folder {folder!r} has no picture with a caption that can be used\n{listed}")
        target = encoded(root, items, vae, clip, (width, height))
        shards = sorted(str(p) for p in target.glob("shard-*.safetensors"))
        latents = load_tensors(Path(shards[0]))[0]["latents"]
        report = f"{len(items)} pictures, {len(wrong)} left out"
        text = f"{report}\n{listed}" if wrong else report
        show(text, cls.hidden.unique_id if cls.hidden else None)
        return io.NodeOutput({"shards": shards, "latent_shape": list(latents.shape[1:])}, text)


NODES: list[type[io.ComfyNode]] = [TCDDataset]
