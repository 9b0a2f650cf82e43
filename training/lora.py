"""LoRA by peft on a network that stays whole: put in, switched off for the teacher, taken out again without a
trace.

Files hold kohya's keys (`lora_unet_<module with underscores>.lora_down.weight`, `.lora_up.weight`, `.alpha`)
with diffusers' names for the modules of a UNet, which ComfyUI, diffusers and A1111 read; other networks keep
the names that they have in ComfyUI. `merge_lora` reads the original names of a UNet's modules as well.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_tensors, save_tensors
from .unet_layers import diffusers_names

ADAPTER = "tcd"
PREFIX = "lora_unet_"

# The first and last layers and the embeddings of time and size stay as they are, as in the published LCM and
# TCD LoRAs.
_KEPT = re.compile(
    r"^(input_blocks\.0\.|out\.|time_embed|label_emb|time_embedding|add_embedding|conv_in|conv_out)"
)
_ATTENTION = re.compile(r"(^|\.)(to_q|to_k|to_v|to_out\.0)$")


def target_layers(network: nn.Module, targets: str) -> list[str]:
    """Full names of the layers to adapt: every Linear and Conv2d inside the blocks (`all`), without
    convolutions (`linear`), or the attention projections (`attention`). By class, so that a host's own
    subclasses count."""
    kinds = (nn.Linear,) if targets != "all" else (nn.Linear, nn.Conv2d)
    names = [n for n, m in network.named_modules() if isinstance(m, kinds) and not _KEPT.match(n)]
    if targets == "attention":
        names = [n for n in names if _ATTENTION.search(n)]
    if not names:
        raise ValueError(
            f"targets = {targets!r} matches no layer of {type(network).__name__}; choose all or linear"
        )
    return names


def ranks_of(network: nn.Module, names: list[str], rank: int) -> dict[str, int]:
    """Return the rank that each layer gets: `rank`, or the smaller side of a layer's weight where that is
    less. Beyond it the factors only waste memory.

    Raises ValueError for a rank that no layer can have.
    """
    room: dict[str, int] = {}
    for name in names:
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        room[name] = min(weight.shape[0], weight[0].numel())
    most = max(room.values())
    if rank > most:
        raise ValueError(f"rank {rank} is larger than every layer; lower rank to {most} or less")
    return {name: min(rank, side) for name, side in room.items()}


def told_of_ranks(network: nn.Module, targets: str, rank: int) -> str:
    """Say how many layers are too small for the rank, and which ranks they get; empty where none is."""
    found = ranks_of(network, target_layers(network, targets), rank)
    less = sorted(r for r in found.values() if r < rank)
    if not less:
        return ""
    span = f"{less[0]} to {less[-1]}" if less[0] < less[-1] else str(less[0])
    return f"{len(less)} of {len(found)} layers are smaller than rank {rank} and get rank {span}"


class Lora:
    """The adapters of one network. Make it with `injected`, which also takes them out."""

    def __init__(
        self, network: nn.Module, layers: dict[str, Any], alpha: float, names: Mapping[str, str]
    ) -> None:
        self.network = network
        self.layers = layers
        self.alpha = alpha
        self.names = names  # of the layers in files

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable factors by name: `<layer>.lora_down`, `<layer>.lora_up`, in the order of the network."""
        named: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            named[f"{name}.lora_down"] = layer.lora_A[ADAPTER].weight
            named[f"{name}.lora_up"] = layer.lora_B[ADAPTER].weight
        return named

    @contextmanager
    def off(self) -> Generator[None, None, None]:
        """The teacher: the network without its adapters. Gradient flags are left alone (peft's own switch
        flips them).
        """
        before = [layer._disable_adapters for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer._disable_adapters = True
            yield
        finally:
            for layer, was in zip(self.layers.values(), before, strict=True):
                layer._disable_adapters = was


@contextmanager
def injected(
    network: nn.Module, rank: int, alpha: float, targets: str, seed: int
) -> Generator[Lora, None, None]:
    """Put LoRA layers into `network`, and take them out whatever happens. Up-factors start at zero: the
    student is the teacher.

    A layer smaller than the rank gets the rank that it can have, at the same scale `alpha / rank`.
    Raises ValueError for a rank that no layer can have, or when another adapter is in there already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if getattr(network, "peft_config", None) is not None:
        raise ValueError(f"{type(network).__name__} has peft adapters already; unload them first")
    names = target_layers(network, targets)
    smaller = {f"^{re.escape(n)}": r for n, r in ranks_of(network, names, rank).items() if r < rank}
    scaled = {n: alpha * r / rank for n, r in smaller.items()}
    wanted = {n: p.requires_grad for n, p in network.named_parameters()}
    originals = {n: network.get_submodule(n) for n in names}
    portable = diffusers_names(n for n, _ in network.named_modules())
    pattern = "^(" + "|".join(map(re.escape, names)) + ")$"
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=pattern, bias="none",  # pyright: ignore
        rank_pattern=smaller, alpha_pattern=scaled,
    )  # fmt: skip
    try:
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):  # peft draws factors; the host's own random numbers stay
            inject_adapter_in_model(config, network, ADAPTER)
        layers = {n: network.get_submodule(n) for n in names}
        lora = Lora(network, layers, alpha, {n: portable[n] for n in names})
        _initialise(lora, seed)
        _take_inputs_as_they_come(lora)
        yield lora
    finally:
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
        if hasattr(network, "peft_config"):
            del network.peft_config
        for n, p in network.named_parameters():
            p.requires_grad_(wanted[n])
            p.grad = None


def _initialise(lora: Lora, seed: int) -> None:
    """Factors in float32 whatever the base's dtype (small updates round away in bf16), from the run's own
    seed.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in lora.parameters().items():
        parameter.data = parameter.data.float()
        if name.endswith("lora_down"):
            bound = (
                1.0 / parameter[0].numel() ** 0.5
            )  # kaiming_uniform with a = sqrt(5), torch's own for linear layers
            parameter.data.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def _take_inputs_as_they_come(lora: Lora) -> None:
    """Each input in its own dtype, times the float32 factor rounded to it. peft would make a float32 copy of
    every input instead, and keep it for the backward pass beside the one that the network has.
    """
    for layer in lora.layers.values():
        layer.cast_input_dtype_enabled = False
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            # by class: blocks that are compiled then share what is compiled for one of them
            factor.__class__ = _RoundedLinear if isinstance(factor, nn.Linear) else _RoundedConv  # pyright: ignore


class _RoundedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype))


class _RoundedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), None)


def lora_tensors(
    named: Mapping[str, Tensor], alpha: float, names: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> dict[str, Tensor]:
    """Return kohya's keys for factors under the names of `Lora.parameters`; `names` are `Lora.names`.

    `alpha` is that of the highest rank; layers of a lower rank have one that gives the same scale.
    """
    out: dict[str, Tensor] = {}
    ranks = {k: v.shape[0] if k.endswith(".lora_down") else v.shape[1] for k, v in named.items()}
    highest = max(ranks.values())
    for name, value in named.items():
        layer, _, factor = name.rpartition(".")
        key = PREFIX + names.get(layer, layer).replace(".", "_")
        out[f"{key}.{factor}.weight"] = value.detach().to(dtype)
        out[f"{key}.alpha"] = torch.tensor(alpha * ranks[name] / highest)
    return out


def save_lora(
    path: Path,
    named: Mapping[str, Tensor],
    alpha: float,
    metadata: Mapping[str, str],
    extra: Mapping[str, Tensor],
    names: Mapping[str, str] | None = None,
) -> None:
    """A LoRA file with its metadata; `extra` holds what else the student needs (the embedding of s). An
    all-zero LoRA is refused. `names` (`Lora.names`) are what files call the layers.
    """
    ups = [v for k, v in named.items() if k.endswith("lora_up")]
    if not any(bool(v.any()) for v in ups):
        raise ValueError(
            f"{path}: every lora_up is zero, so nothing was learnt; raise steps or learning_rate"
        )
    factors = lora_tensors(named, alpha, names or {})
    save_tensors(path, {**factors, **{k: v.half() for k, v in extra.items()}}, metadata)


def load_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a kohya-keyed LoRA file."""
    tensors, metadata = load_tensors(path)
    if not any(k.endswith(".lora_down.weight") for k in tensors):
        raise ValueError(f"{path}: no LoRA keys (`...lora_down.weight`) in this file")
    return tensors, metadata


@torch.no_grad()
def merge_lora(network: nn.Module, tensors: Mapping[str, Tensor], strength: float = 1.0) -> int:
    """Add `strength alpha / rank up down` to the weights of `network`, in place; returns the number of
    layers.

    Raises ValueError if the file names a layer that the network does not have: it was made for another model.
    """
    modules = dict(network.named_modules())
    portable = diffusers_names(modules)
    layers = {PREFIX + n.replace(".", "_"): modules[own] for own in modules for n in (own, portable[own])}
    fitting: list[tuple[Tensor, Tensor, Tensor, float]] = []
    for key, down in tensors.items():
        if not key.endswith(".lora_down.weight"):
            continue
        base = key.removesuffix(".lora_down.weight")
        weight, up = getattr(layers.get(base), "weight", None), tensors.get(f"{base}.lora_up.weight")
        if (
            not isinstance(weight, Tensor)
            or up is None
            or (up.shape[0], down[0].numel()) != (weight.shape[0], weight[0].numel())
        ):
            raise ValueError(
                f"LoRA key {base!r} fits no layer of {type(network).__name__}: the file is for another model"
            )
        alpha = float(tensors.get(f"{base}.alpha", torch.tensor(down.shape[0])))
        fitting.append((weight, up, down, strength * alpha / down.shape[0]))
    for weight, up, down, scale in fitting:  # only now that all fit: half a LoRA must not stay behind
        delta = up.to(weight.device).float().flatten(1) @ down.to(weight.device).float().flatten(1)
        weight += (scale * delta).reshape(weight.shape).to(weight)
    return len(fitting)
