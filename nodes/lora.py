"""The LoRA loader: says what a file is and what of it fits the model, and lets the host patch the weights."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import comfy.lora
import comfy.sd
import folder_paths
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..training.formats import Layer, LoraFile, open_lora
from ..training.known_loras import advice
from ..training.lora_bases import named
from ..training.lora_report import base, key_format, recommended, remarks, span
from . import bypass
from .api import advanced, prompt_server, schema
from .splus import attach

log = logging.getLogger("comfyui_tcd")

KEPT_FILES = 2
_files: OrderedDict[tuple[str, int, int], LoraFile] = OrderedDict()

FIRST = ("conv_in", "input_blocks.0.0")
"""The only layer whose shape inpaint and edit models change."""
SUFFIXES = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}


class Matched(NamedTuple):
    """What of a file is for which weights of a model."""

    tensors: dict[str, Tensor]  # under keys that the host knows
    targets: dict[str, Layer]  # by the key of the weight
    left: list[Layer]  # without a counterpart, or of another shape


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


def host_keys(layer: Layer) -> list[str]:
    """The keys under which the host may know a layer; diffusers' dotted attention is known by none."""
    flat = layer.name.replace(".", "_")
    if layer.part == "unet":
        return [f"lora_unet_{flat}", layer.raw, layer.name]
    return [f"lora_te1_{flat}", f"lora_te_{flat}"] if layer.part == "te1" else [f"lora_te2_{flat}"]


def match(layers: list[Layer], key_map: Mapping[str, Any], state: Mapping[str, Any]) -> Matched:
    """The weight of each layer. ValueError where one has another shape: the LoRA is of another model."""
    found = Matched({}, {}, [])
    wrong: list[str] = []
    for layer in layers:
        key = next((k for k in host_keys(layer) if k in key_map), None)
        target = key_map[key] if key else None
        weight = state.get(target) if isinstance(target, str) else None  # else a slice of one
        if target is None or (not fits(layer, weight) and layer.name in FIRST):
            found.left.append(layer)
            continue
        if not fits(layer, weight):
            shapes = [list(x or ()) for x in (layer.shape, getattr(weight, "shape", None))]
            wrong.append(f"{layer.name} is for {shapes[0]}, the weight is {shapes[1]}")
        found.targets[target if isinstance(target, str) else target[0]] = layer
        tensors = {f"{key}.{SUFFIXES.get(role, role)}": t for role, t in layer.tensors.items()}
        if layer.alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(layer.alpha)
        found.tensors.update(tensors)
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(layers)} layers do not fit: {wrong[0]}")
    return found


def fits(layer: Layer, weight: Any) -> bool:
    """By shape, where that can be told: packed weights (quantized to integers) have another."""
    if weight is None or layer.shape is None or not weight.is_floating_point() or not weight.ndim:
        return True
    return layer.shape == (weight.shape[0], weight.numel() // max(weight.shape[0], 1))


def already(patcher: Any, matched: Matched) -> bool:
    """Tell whether these very factors are in the model, whoever loaded them and from whichever file."""
    some = [(k, x.tensors["down"]) for k, x in matched.targets.items() if "down" in x.tensors][:3]
    beside = bypass.factors(patcher)
    return bool(some) and all(
        any(_same(there, down) for there in [*_merged(patcher, key), *beside.get(key, ())])
        for key, down in some
    )


def _merged(patcher: Any, key: str) -> list[Any]:
    """The down-factors that are merged into a weight, from the host's adapters: up, down, alpha, ..."""
    all_weights = [getattr(patch[1], "weights", None) for patch in patcher.patches.get(key, ())]
    return [w[1] for w in all_weights if isinstance(w, tuple | list) and len(w) > 1]


def _same(there: Any, down: Tensor) -> bool:
    return isinstance(there, Tensor) and there.shape == down.shape and torch.equal(there.to(down), down)


def model_name(model: Any) -> str:
    """Call a MODEL as `lora_bases` does, or as ComfyUI's class where that does not know it."""
    kind = type(model.model.model_config).__name__
    return named(kind) or kind


def apply(
    model: Any, clip: Any, file: LoraFile, strength: float, beside: bool = False
) -> tuple[Any, Any, list[str]]:
    """Load a LoRA: (MODEL, CLIP, report lines). ValueError names the file, what it is, and what to do.

    `beside`: the model's layers are left as they are, and the LoRA runs beside them (`bypass`).
    """
    name, kind = file.path.name, model_name(model)
    is_for = f"a LoRA for {base(file)}" if file.bases else "a LoRA for a model that is not known"
    try:
        key_map = comfy.lora.model_lora_keys_unet(model.model, {})
        unet = match(file.unet, key_map, model.model.state_dict())
        te = Matched({}, {}, file.text_encoders)
        if clip is not None and file.text_encoders:
            stage = clip.cond_stage_model
            te = match(te.left, comfy.lora.model_lora_keys_clip(stage, {}), stage.state_dict())
    except ValueError as error:
        raise ValueError(
            f"{name}: {is_for}, but the model is {kind}; {error}. Load it with a model that it was made for"
        ) from error
    if not unet.targets and not te.targets:
        count = f"none of its {len(file.layers)} layers is in this model ({kind})"
        if not file.unet:
            count = "it has layers of text encoders only; connect CLIP"
        raise ValueError(f"{name}: {is_for}, {key_format(file)} keys; {count}")
    twice = already(model, unet)
    patched, patched_clip = comfy.sd.load_lora_for_models(
        model, clip if te.targets else None, {**unet.tensors, **te.tensors}, strength, strength
    )
    lost = [k for k in unet.targets if len(patched.patches.get(k, ())) <= len(model.patches.get(k, ()))]
    if lost:
        raise ValueError(f"{name}: ComfyUI did not take {len(lost)} layers that it knows, such as {lost[0]}")
    if file.needs_target:
        try:
            attach(patched, name, file.extra, strength)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    lines = report(file, unet, te, clip, twice)
    if beside:
        all_of = sum(len(p) - len(model.patches.get(k, ())) for k, p in patched.patches.items())
        moved = bypass.move(patched, model, name)
        merged = f"; {all_of - moved} that cannot are merged" if moved < all_of else ""
        lines.insert(2, f"bypass: {moved} layers run beside the model's weights{merged}")
    return patched, patched_clip if te.targets else clip, lines


def report(file: LoraFile, unet: Matched, te: Matched, clip: Any, twice: bool) -> list[str]:
    """What the node shows: what was found, what fits, what is recommended; warnings also go to the log."""
    used = [*unet.targets.values(), *te.targets.values()]
    keys = sum(len(layer.tensors) for layer in used)
    tip = advice(file)
    alpha = span((x.alpha for x in file.layers), "none")
    lines = [
        f"{file.path.name}: {base(file)}, rank {span(x.rank for x in file.layers)}, alpha {alpha}, "
        f"{key_format(file)} keys",
        f"matched {keys} of {file.keys} keys, {len(used)} of {len(file.layers)} layers",
        f"recommended: {recommended(tip)}" if tip else "recommended settings: not known for this file",
    ]
    warnings = remarks(file)
    if unet.left:
        warnings.append(f"{len(unet.left)} layers are not in this model, such as {unet.left[0].raw}")
    if te.left:
        why = "CLIP is not connected" if clip is None else "they are not in this CLIP"
        warnings.append(f"{len(te.left)} layers of text encoders are not used: {why}")
    if twice:
        warnings.append("this LoRA is in the model already: the strengths add up")
    for text in warnings:
        log.warning("%s: %s", file.path.name, text)
    return [*lines, *(f"warning: {text}" for text in warnings)]


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
