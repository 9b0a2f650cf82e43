"""Which weights of a model the layers of a LoRA file are for, and the patches that the host makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ..training.formats import LoraFile
from ..training.lora_keys import suffix
from ..training.lora_layer import Layer, by_output
from . import bypass

Target = str | tuple[Any, ...]
"""The key of a weight; or (key, (dimension, start, length) or None[, function]) for a part of one."""
DORA = ".dora_scale"
FIRST = ("conv_in", "input_blocks.0.0")
"""The only layer whose shape inpaint and edit models change."""


class Space(NamedTuple):
    """A network that can be patched, and the host's names of its weights."""

    network: Any
    keys: Mapping[str, Target]


class Matched(NamedTuple):
    """What of a file is for which weights."""

    patches: list[dict[Target, Any]]  # as the host makes them
    used: list[Layer]
    left: list[Layer]  # without a counterpart, or of another shape
    extra: set[str]  # keys of the file that are of no layer, but of use to the host

    @property
    def keys(self) -> int:
        """Number of the file's tensors that are used."""
        return sum(len(layer.keys) for layer in self.used) + len(self.extra)


def host_keys(layer: Layer) -> Iterator[str]:
    """Yield the keys under which the host may know a layer: first the file's own. Diffusers' dotted
    attention, and peft's names of other models than SD3, are known to no host.
    """
    flat = layer.name.replace(".", "_")
    yield layer.raw
    if layer.part == "unet":
        yield from (f"lora_unet_{flat}", layer.name, f"diffusion_model.{layer.name}")
        yield from (f"transformer.{layer.name}", f"lora_transformer_{flat}")
        return
    yield f"lora_{layer.part}_{flat}"
    if layer.part == "te1":
        yield f"lora_te_{flat}"
    for clip in {"te1": ("clip_l", "clip_h"), "te2": ("clip_g",)}.get(layer.part, ()):
        yield f"text_encoders.{clip}.transformer.{layer.name}"


def match(file: LoraFile, unet: Space, text: Space | None) -> Matched:
    """Find the weights of every layer: by our own reading of the keys, and for what is left over by the
    host's, to which the file is given as it is. ValueError where a weight has another shape: the LoRA is of
    another model.
    """
    spaces = [unet] if text is None else [unet, text]
    converted = comfy.lora_convert.convert_lora(dict(file.tensors))
    patches: list[dict[Target, Any]] = []
    used: list[Layer] = []
    done: set[str] = set()
    # A layout that the host converts first is the host's alone: it renames keys by rules that are not ours.
    for space in spaces if converted.keys() == file.tensors.keys() else ():
        layers = file.unet if space is unet else file.text_encoders
        made, these, unfit = _matched(layers, space)
        patches.append(made)
        used += these
        done.update(key for layer in (*these, *unfit) for key in layer.keys)
    made, read = _by_the_host(file, converted, spaces, done)
    patches.append(made)
    used += [layer for layer in file.layers if read.intersection(layer.keys)]
    known = {id(layer) for layer in used}
    left = [layer for layer in file.layers if id(layer) not in known]
    return Matched([p for p in patches if p], used, left, read.intersection(file.extra))


def _matched(layers: list[Layer], space: Space) -> tuple[dict[Target, Any], list[Layer], list[Layer]]:
    """Make the patches of the layers that the host has names for: (patches, used layers, those whose shape
    may differ and does). ValueError where another shape differs.
    """
    tensors: dict[str, Tensor] = {}
    targets: dict[str, Target] = {}
    places: list[tuple[Layer, list[Target]]] = []
    unfit: list[Layer] = []
    for layer in layers:
        key = next((k for k in host_keys(layer) if k in space.keys and k not in targets), None)
        if key is None:
            continue
        target = space.keys[key]
        if not fits(layer, shape_of(space.network, target)):
            unfit.append(layer)
            continue
        targets[key] = target
        tensors |= {f"{key}.{suffix(role)}": tensor for role, tensor in layer.tensors.items()}
        if layer.alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(layer.alpha)
        bias = _bias(target)
        if bias and "diff_b" in layer.tensors and not isinstance(target, str):
            # The host looks for biases of whole weights only.
            targets[f"{key}.bias"], tensors[f"{key}.bias.diff"] = bias, tensors.pop(f"{key}.diff_b")
        places.append((layer, [target, bias]))
    wrong = [layer for layer in unfit if layer.name not in FIRST]
    if wrong:
        key = next(k for k in host_keys(wrong[0]) if k in space.keys)
        shape = shape_of(space.network, space.keys[key])
        raise ValueError(
            f"{len(wrong)} of {len(layers)} layers do not fit: {wrong[0].name} is for "
            f"{list(wrong[0].shape or ())}, the weight is {list(shape or ())}"
        )
    made, _ = patches_of(tensors, targets)
    return made, [layer for layer, here in places if any(t in made for t in here)], unfit


def _bias(target: Target) -> Target:
    """Name the bias of a weight, or the same part of the bias as of the weight."""
    if isinstance(target, str):
        return target.removesuffix(".weight") + ".bias"
    return (target[0].removesuffix(".weight") + ".bias", *target[1:])


def _by_the_host(
    file: LoraFile, converted: Mapping[str, Tensor], spaces: list[Space], done: set[str]
) -> tuple[dict[Target, Any], set[str]]:
    """Let the host read what is not done yet: (patches, keys of the file that it used)."""
    names = {id(tensor): key for key, tensor in file.tensors.items()}
    rest = {k: t for k, t in converted.items() if names.get(id(t)) not in done}
    made, read = patches_of(rest, {k: target for space in spaces for k, target in space.keys.items()})
    return made, {names[id(rest[k])] for k in read if id(rest[k]) in names} if made else set()


class _Read(dict[str, Tensor]):
    """Tensors that remember by `asked` which of them were taken out."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.asked: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            self.asked.add(key)
        return super().get(key, default)


def patches_of(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Target]
) -> tuple[dict[Target, Any], set[str]]:
    """Make patches by the host's own code, and DoRA's by ours: (patches, keys of `tensors` that it used)."""
    dora = {k: t for k, t in tensors.items() if k.endswith(DORA) and by_output(t)}
    read = _Read({k: t for k, t in tensors.items() if k not in dora})
    made = comfy.lora.load_lora(read, dict(targets), log_missing=False) if read else {}
    for key, scale in dora.items():
        target = targets.get(key.removesuffix(DORA), "")
        if isinstance(made.get(target), WeightAdapterBase):
            made[target] = OutputDoRA(set(), (made[target], scale))
            read.asked.add(key)
    return made, read.asked


class OutputDoRA(WeightAdapterBase):
    """DoRA with magnitudes m of output channels: the weight becomes m (W + dW) / |W + dW|, by rows.

    So peft, LyCORIS and OneTrainer train it. The host's own arithmetic divides by |W|, without dW.
    """

    name = "dora"

    def __init__(self, loaded_keys: set[str], weights: tuple[WeightAdapterBase, Tensor]) -> None:
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_shape(self, key: str) -> Any:
        return self.weights[0].calculate_shape(key)

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Change `weight` in place, which may be a part of one, and return it; strength is of the change."""
        adapter, magnitude = self.weights
        before = weight.to(intermediate_dtype, copy=True)
        merged = adapter.calculate_weight(
            before.clone(), key, 1.0, 1.0, offset, function, intermediate_dtype, original_weight
        )
        scale = comfy.model_management.cast_to_device(magnitude, weight.device, intermediate_dtype)
        scale = function(scale.reshape(-1, 1)) / merged.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-12)
        merged *= scale.reshape(-1, *[1] * (merged.ndim - 1))
        weight += (strength * (merged - before)).to(weight.dtype)
        return weight


def shape_of(network: Any, target: Target) -> tuple[int, ...] | None:
    """Shape of a weight or a part of one, as the layer computes with it; None where it cannot be told.

    The state dict of a quantized layer holds what is stored: integers, or rows padded to whole blocks.
    """
    key, part = (target, None) if isinstance(target, str) else target[:2]
    try:
        weight = comfy.utils.get_attr(network, key)
    except AttributeError:
        return None
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or not weight.ndim:
        return None
    shape = list(weight.shape)
    if part is not None:
        shape[part[0]] = part[2]
    return tuple(shape)


def fits(layer: Layer, shape: tuple[int, ...] | None) -> bool:
    """Tell whether a layer's factors make a weight of `shape`; True where that cannot be told."""
    if shape is None or layer.shape is None:
        return True
    return layer.shape == (shape[0], math.prod(shape[1:]))


def already(patcher: Any, matched: Matched) -> bool:
    """Tell whether these very factors are in the model, whoever loaded them and from whichever file."""
    some = [
        (target if isinstance(target, str) else target[0], down)
        for made in matched.patches
        for target, patch in made.items()
        if (down := _down(patch)) is not None
    ][:3]
    beside = bypass.factors(patcher)
    return bool(some) and all(
        any(_same(there, down) for there in [*_merged(patcher, key), *beside.get(key, ())])
        for key, down in some
    )


def _merged(patcher: Any, key: str) -> list[Tensor | None]:
    """List the down-factors that are merged into a weight."""
    return [_down(patch[1]) for patch in patcher.patches.get(key, ())]


def _down(patch: Any) -> Tensor | None:
    """Find the second factor of one of the host's adapters: up, down, alpha, ..."""
    if isinstance(patch, OutputDoRA):
        patch = patch.weights[0]
    weights = getattr(patch, "weights", None)
    there = weights[1] if isinstance(weights, tuple | list) and len(weights) > 1 else None
    return there if isinstance(there, Tensor) else None


def _same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and torch.equal(one.to(other), other)
