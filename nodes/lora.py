"""The LoRA loader: says what a file is and what of it fits the model, and lets the host patch the weights."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
from comfy_api.v0_0_2 import io

from ..training.formats import LoraFile, open_lora
from ..training.known_loras import advice
from ..training.lora_bases import named
from ..training.lora_report import base, key_format, recommended, remarks, span
from . import bypass
from .api import advanced, prompt_server, schema
from .lora_match import Matched, Space, already, match
from .splus import attach

log = logging.getLogger("comfyui_tcd")

TWICE = "this LoRA is in the model already: the strengths add up"
KEPT_FILES = 2
_files: OrderedDict[tuple[str, int, int], LoraFile] = OrderedDict()


def read(path: str) -> LoraFile:
    """The file; from memory if it was read before and has not changed."""
    stat = Path(path).stat()
    key = (path, stat.st_mtime_ns, stat.st_size)
    if key not in _files:
        _files[key] = open_lora(Path(path))
        while len(_files) > KEPT_FILES:
            _files.popitem(last=False)
    _files.move_to_end(key)
    return _files[key]


def model_name(model: Any) -> str:
    """Call a MODEL as `lora_bases` does, or as ComfyUI's class where that does not know it."""
    kind = type(model.model.model_config).__name__
    return named(kind) or kind


def apply(
    model: Any, clip: Any, file: LoraFile, strength: float, beside: bool = False
) -> tuple[Any, Any, list[str]]:
    """Patch copies of the model and of CLIP: (MODEL, CLIP, report lines). CLIP is returned as it is where the
    file has nothing for it. ValueError names the file, what it is, and what to do.

    `beside`: the model's layers are left as they are, and the LoRA runs beside them (`bypass`).
    """
    name, kind = file.path.name, model_name(model)
    is_for = f"a LoRA for {base(file)}" if file.bases else "a LoRA for a model that is not known"
    unet = Space(model.model, comfy.lora.model_lora_keys_unet(model.model, {}))
    text = None
    if clip is not None:
        stage = clip.cond_stage_model
        text = Space(stage, comfy.lora.model_lora_keys_clip(stage, {}))
    try:
        matched = match(file, unet, text)
    except ValueError as error:
        raise ValueError(
            f"{name}: {is_for}, but the model is {kind}; {error}. Load it with a model that it was made for"
        ) from error
    if not matched.patches:
        count = f"none of its {len(file.layers)} layers is in this model ({kind})"
        if not file.unet:
            count = "it has layers of text encoders only; connect CLIP"
        raise ValueError(f"{name}: {is_for}, {key_format(file)} keys; {count}")
    twice = already(model, matched)
    patched, patched_clip, lost = _patched(model, clip, matched, strength)
    if file.needs_target:
        try:
            attach(patched, name, file.extra, strength)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    warnings = [TWICE] if twice else []
    if lost:
        warnings.insert(0, f"{len(lost)} weights that it changes are not in this model, such as {lost[0]}")
    lines = report(file, matched, clip, warnings)
    if beside:
        all_of = sum(len(p) - len(model.patches.get(k, ())) for k, p in patched.patches.items())
        moved = bypass.move(patched, model, name)
        merged = f"; {all_of - moved} that cannot are merged" if moved < all_of else ""
        lines.insert(2, f"bypass: {moved} layers run beside the model's weights{merged}")
    return patched, patched_clip, lines


def _patched(model: Any, clip: Any, matched: Matched, strength: float) -> tuple[Any, Any, list[str]]:
    """Patch copies of the model and of CLIP: (MODEL, CLIP, keys of weights that neither has)."""
    patched, patched_clip = model.clone(), None if clip is None else clip.clone()
    of_clip: set[Any] = set()
    lost: list[str] = []
    for made in matched.patches:
        taken = set(patched.add_patches(made, strength))
        if patched_clip is not None:
            of_clip.update(patched_clip.add_patches(made, strength))
        lost += [t if isinstance(t, str) else t[0] for t in made if t not in taken | of_clip]
    return patched, patched_clip if of_clip else clip, lost


def report(file: LoraFile, matched: Matched, clip: Any, more: list[str]) -> list[str]:
    """Say what was found, what fits, what is recommended, and what to beware of, also in the log."""
    tip = advice(file)
    alpha = span((x.alpha for x in file.layers), "none (scale 1)")
    lines = [
        f"{file.path.name}: {base(file)}, rank {span(x.rank for x in file.layers)}, alpha {alpha}, "
        f"{key_format(file)} keys",
        f"matched {matched.keys} of {file.keys} keys, {len(matched.used)} of {len(file.layers)} layers",
        f"recommended: {recommended(tip)}" if tip else "recommended settings: not known for this file",
    ]
    extra = {k: t for k, t in file.extra.items() if k not in matched.extra}
    warnings = remarks(replace(file, extra=extra))
    if left := [layer for layer in matched.left if layer.part == "unet"]:
        warnings.append(f"{len(left)} layers are not in this model, such as {left[0].raw}")
    if left := [layer for layer in matched.left if layer.part != "unet"]:
        why = "CLIP is not connected" if clip is None else "they are not in this CLIP"
        warnings.append(f"{len(left)} layers of text encoders are not used: {why}")
    warnings += more
    for warning in warnings:
        log.warning("%s: %s", file.path.name, warning)
    return [*lines, *(f"warning: {warning}" for warning in warnings)]


def show(text: str, node: str | None) -> None:
    """On the node, where a server runs that can."""
    server = prompt_server()
    if node and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node)


class TCDLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_LoraLoader",
            display_name="TCD LoRA Loader",
            category="TCD/loaders",
            description="Loads TCD, LCM, Hyper-SD and other LoRAs with keys of any common format, and says "
            "what the file is, how much of it fits the model, and how its authors sample with it.",
            search_aliases=[
                "tcd",
                "lora",
                "load lora",
                "lcm",
                "hyper-sd",
                "distillation",
                "few step",
                "peft",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRA was made for."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="For LoRAs with layers of text encoders; distilled ones have none.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="A .safetensors file of the folder models/loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="1: as it was distilled. Lower if the model is not the one it was distilled on. "
                    "0: the model is returned unchanged.",
                ),
                advanced(
                    io.Boolean.Input(
                        "bypass",
                        default=False,
                        optional=True,
                        tooltip="Run the LoRA beside the weights instead of merging it into them: for "
                        "models of 8 bits or less, whose weights are rounded again after a merge. Takes no "
                        "copy of the weights and a little more time per step. A checkpoint saved from this "
                        "MODEL is without the LoRA.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.String.Output(display_name="report", tooltip="What was found, as on the node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = "", **_: Any) -> str:
        path = folder_paths.get_full_path("loras", lora_name)
        stat = Path(path).stat() if path else None
        return f"{path} {stat.st_mtime_ns} {stat.st_size}" if stat else lora_name

    @classmethod
    def execute(
        cls, model: Any, lora_name: str, strength: float, clip: Any = None, bypass: bool = False
    ) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model, clip, f"{lora_name}: strength 0, not applied")
        file = read(folder_paths.get_full_path_or_raise("loras", lora_name))
        patched, patched_clip, lines = apply(model, clip, file, strength, bypass)
        text = "\n".join(lines)
        show(text, cls.hidden.unique_id if cls.hidden else None)
        return io.NodeOutput(patched, patched_clip, text)


NODES: list[type[io.ComfyNode]] = [TCDLoraLoader]
