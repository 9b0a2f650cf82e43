"""LoRAs beside the weights: a layer's output gets up(down(x)) added, and the weight stays as it is.

Merged into a weight of 8 bits or less, most of a LoRA is lost when the sum is rounded again, and the host
keeps a copy of every weight that it changes.

ComfyUI's own `load_bypass_lora_for_models` is not used. It keeps only the last of two LoRAs on a model, drops
layers that are a part of a fused weight, ignores DoRA's magnitude, and is not in every ComfyUI that this pack
serves.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import PatcherInjection
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

_count = itertools.count(1)
_CONVOLVE = (functional.conv1d, functional.conv2d, functional.conv3d)
# Layers that the host may compute past their module (`comfy.ops.linear_input_act`), so that no hook runs.
_INPUT_ACT = re.compile(r"(\bffn|\bnet)\.2$|\.fc2$|\.down_proj$")


class Beside(NamedTuple):
    """One LoRA layer."""

    module: str  # of the host's model
    up: Tensor
    down: Tensor
    scale: float  # strength * alpha / rank
    rows: tuple[int, int] | None  # (first, number) of the outputs, where it is for a part of a fused weight


def move(patched: Any, before: Any, name: str) -> int:
    """Make hooks of the patches that `patched` has and `before`, of which it is a clone, has not.

    Returns how many. What is no plain LoRA (LoKr, LoHa, DoRA, differences of weights and biases), and layers
    that no hook can reach, stay patches.
    """
    found: list[Beside] = []
    for key, patches in list(patched.patches.items()):
        old = len(before.patches.get(key, ()))
        rows = [_beside(patched.model, key, patch) for patch in patches[old:]]
        found += [row for row in rows if row is not None]
        stay = [*patches[:old], *(p for p, row in zip(patches[old:], rows, strict=True) if row is None)]
        if stay:
            patched.patches[key] = stay
        else:
            del patched.patches[key]
    if found:
        hooks = Hooks(found)
        key = f"{name} (bypass {next(_count)})"
        patched.set_injections(key, [Injection(hooks)])
    if patched.patches.keys() == before.patches.keys() and _same_patches(patched, before):
        patched.patches_uuid = before.patches_uuid  # so that the host does not load the weights again
    return len(found)


def _same_patches(one: Any, other: Any) -> bool:
    return all(len(patches) == len(other.patches[key]) for key, patches in one.patches.items())


def _beside(model: nn.Module, key: str, patch: Any) -> Beside | None:
    """Read a patch of the host: strength, adapter, weight's strength, slice, function. None: it stays one."""
    strength, adapter, of_weight, part, function = patch
    weights = getattr(adapter, "weights", None)
    if getattr(adapter, "name", "") != "lora" or function is not None or of_weight != 1.0:
        return None
    if not isinstance(weights, tuple | list) or any(x is not None for x in weights[3:]):
        return None  # Tucker's middle factor, DoRA's magnitude, another shape of the weight
    module = model.get_submodule(key.removesuffix(".weight")) if key.endswith(".weight") else None
    if module is None or not _reachable(key.removesuffix(".weight"), module):
        return None
    convolution = isinstance(module, _ConvNd)
    if part is not None and (part[0] != 0 or convolution):
        return None
    up, down, alpha = weights[:3]
    scale = float(strength) * (1.0 if alpha is None else float(alpha) / down.shape[0])
    rows = None if part is None else (int(part[1]), int(part[2]))
    return Beside(key.removesuffix(".weight"), up.flatten(1), down, scale, rows)


def _reachable(name: str, module: nn.Module) -> bool:
    """Whether a hook of the module sees its input and can add to its output."""
    if isinstance(module, _ConvNd):
        return module.groups == 1 and module.padding_mode == "zeros" and not module.transposed
    layout = getattr(getattr(module, "weight", None), "_layout_cls", "")
    if layout == "TensorWiseINT8Layout" and _INPUT_ACT.search(name):
        return False
    return isinstance(module, nn.Linear) or "Linear" in type(module).__name__


class Hooks:
    """The hooks of one LoRA. Clones of a model share them; only the clone that put them in takes them out.

    The host ejects a clone when it is thrown away, even if another is at work on the same modules.
    """

    def __init__(self, rows: list[Beside]) -> None:
        self.rows = rows
        # By model, of which there is one for each card: whose hooks they are, and the handles.
        self._there: weakref.WeakKeyDictionary[nn.Module, tuple[Any, list[Any]]] = weakref.WeakKeyDictionary()

    def inject(self, patcher: Any) -> None:
        self._remove(patcher.model)
        handles = [
            patcher.model.get_submodule(row.module).register_forward_hook(_hook(row)) for row in self.rows
        ]
        self._there[patcher.model] = weakref.ref(patcher), handles

    def eject(self, patcher: Any) -> None:
        owner, _ = self._there.get(patcher.model, (lambda: None, []))
        if owner() in (patcher, None):
            self._remove(patcher.model)

    def _remove(self, model: nn.Module) -> None:
        _, handles = self._there.pop(model, (None, []))
        for handle in handles:
            handle.remove()


class Injection(PatcherInjection):
    """The host's injection that is known as ours."""

    def __init__(self, hooks: Hooks) -> None:
        super().__init__(inject=hooks.inject, eject=hooks.eject)
        self.rows = hooks.rows


def _hook(row: Beside) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Make the hook that adds a LoRA to a layer's output. It keeps the factors where the layer computes."""
    kept: dict[Any, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = inputs[0]
        place = x.device, x.dtype, torch.is_inference_mode_enabled()
        if place not in kept:
            kept[place] = _at(row.up, x), _at(row.down, x)
        up, down = kept[place]
        if isinstance(module, _ConvNd):
            change = _convolved(module, x, up, down)
        else:
            change = functional.linear(functional.linear(x, down.flatten(1)), up)
        change = (change * row.scale).to(out.dtype)
        if row.rows is not None:
            first, number = row.rows
            change = functional.pad(change, (first, out.shape[-1] - first - number))
        return out + change

    return hook


def _at(factor: Tensor, x: Tensor) -> Tensor:
    """Put a factor where `x` is; outside of inference mode as a tensor that autograd may keep."""
    factor = factor.to(x.device, x.dtype)
    return factor.clone() if factor.is_inference() and not torch.is_inference_mode_enabled() else factor


def _convolved(module: _ConvNd, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`down` strides, pads and dilates as the layer does; `up` is 1x1, as kohya's and peft's are."""
    dims = len(module.kernel_size)
    convolve: Any = _CONVOLVE[dims - 1]
    down = down.reshape(len(down), -1, *module.kernel_size)
    inner = convolve(x, down, None, module.stride, module.padding, module.dilation)
    return convolve(inner, up.reshape(*up.shape, *(1,) * dims))


def factors(patcher: Any) -> Mapping[str, list[Tensor]]:
    """The down-factors that run beside a model's layers, by the key of the weight."""
    found: dict[str, list[Tensor]] = {}
    for injections in getattr(patcher, "injections", {}).values():
        for injection in injections:
            for row in getattr(injection, "rows", ()):
                if isinstance(row, Beside):
                    found.setdefault(f"{row.module}.weight", []).append(row.down)
    return found
