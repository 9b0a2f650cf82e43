"""TCD Save LoRA: a trained LoRA as a file of any key format in output/loras, where lists of LoRAs look."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..training.checkpoint import save_tensors, sweep
from ..training.distill import LORA
from ..training.formats import FORMATS, LoraFile, convert, open_lora
from ..training.lora_keys import suffix
from .api import advanced, schema
from .lora import show
from .runs import NAME, check_name, loras_folder, run_folder

FORMS = ("kohya", "kohya-ldm", "peft", "diffusers")


def opened(lora: Mapping[str, Tensor] | None, path: str) -> LoraFile:
    """The LoRA of a file or run of TCD Distill, or else of a LORA_MODEL."""
    if path.strip():
        return open_lora(source(path.strip()))
    if not lora:
        raise ValueError("nothing to save: connect lora (LORA_MODEL) or path of TCD Distill")
    with TemporaryDirectory(prefix="tcd-", dir=folder_paths.get_temp_directory()) as scratch:
        file = Path(scratch) / "LORA_MODEL.safetensors"
        save_tensors(file, lora, getattr(lora, "metadata", {}))
        return open_lora(file)


def source(path: str) -> Path:
    """A file in the output folder, by its path or the name of its run. ValueError for any other."""
    output = Path(folder_paths.get_output_directory()).resolve()
    if NAME.fullmatch(path) and (run_folder(path) / LORA).is_file():
        return run_folder(path) / LORA
    found = (output / path).resolve()
    if not found.is_relative_to(output) or not found.is_file():
        raise ValueError(
            f"path {path!r}: no such file in ComfyUI's output folder and no run of that name in "
            "output/tcd_training; connect path of TCD Distill"
        )
    return found


def converted(file: LoraFile, form: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """In the format `form`; a network that has no names in other formats keeps those of the host."""
    if form == "kohya" and file.architecture is None and all(f.startswith("kohya") for f in file.formats):
        own = {f"{x.raw}.{suffix(role)}": t for x in file.layers for role, t in x.tensors.items()}
        return {**own, **file.extra}, dict(file.metadata)
    return convert(file, form)


def free_name(folder: Path, name: str) -> Path:
    """`name.safetensors`, or `name-2.safetensors` ...: nothing is overwritten."""
    path, number = folder / f"{name}.safetensors", 2
    while path.exists():
        path, number = folder / f"{name}-{number}.safetensors", number + 1
    return path


def save(file: LoraFile, name: str, form: str, notes: str) -> Path:
    """Write `file` into output/loras, whole or not at all. ValueError for a name that is no file name."""
    check_name(name, "name")
    tensors, metadata = converted(file, form)
    metadata |= {
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if notes.strip():
        metadata |= {"modelspec.description": notes.strip(), "ss_training_comment": notes.strip()}
    path = free_name(loras_folder(), name)
    sweep(path.parent, path.name)
    save_tensors(path, tensors, metadata)
    return path


class TCDSaveLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_SaveLora",
            display_name="TCD Save LoRA",
            category="TCD/training",
            description="Saves a trained LoRA with its metadata to output/loras, with the keys of other "
            "programs if need be. Nothing is overwritten: the second file of a name gets a -2.",
            search_aliases=["tcd", "save lora", "export lora", "kohya", "peft", "diffusers", "convert"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "name", default="tcd-lora", tooltip="Of the file in output/loras, without .safetensors."
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMS),
                    default=FORMS[0],
                    tooltip="; ".join(f"{f}: {FORMATS[f].title}" for f in FORMS)
                    + ". kohya: ComfyUI, A1111 and diffusers read it.",
                ),
                io.LoraModel.Input("lora", optional=True, tooltip="Of TCD Distill, or of another trainer."),
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip="Of a LoRA in the output folder, or the name of a run of TCD Distill; goes "
                    "before lora, and brings its metadata.",
                ),
                advanced(
                    io.String.Input(
                        "notes",
                        default="",
                        multiline=True,
                        optional=True,
                        tooltip="Kept in the file's metadata: how to use it, what it was made of.",
                    )
                ),
            ],
            outputs=[io.String.Output(display_name="saved", tooltip="Path of the file.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, name: str, format: str, lora: Any = None, path: str = "", notes: str = ""
    ) -> io.NodeOutput:
        file = opened(lora, path)
        saved = save(file, name.strip(), format, notes)
        text = f"saved as loras/{saved.name}: {len(file.layers)} layers, {FORMATS[format].title}"
        show(text, cls.hidden.unique_id if cls.hidden else None)
        return io.NodeOutput(str(saved))


NODES: list[type[io.ComfyNode]] = [TCDSaveLora]
