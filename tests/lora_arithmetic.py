"""What the keys of kohya and LyCORIS mean for a layer, as LyCORIS documents it. Written without the code
under test; tests/lora/test_lycoris.py compares it with LyCORIS itself.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By layer: its tensors by suffix, such as `lora_up.weight` and `alpha`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        base, _, end = key.partition(".")
        found.setdefault(base, {})[end] = tensor.float()
    return found


def tucker(core: Tensor, out: Tensor, inner: Tensor) -> Tensor:
    """`out` [rank, out], `inner` [rank, in], `core` [rank, rank, ...]."""
    return torch.einsum("ij...,ip,jr->pr...", core, out, inner)


def change(parts: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """What is added to a weight of `shape`, before DoRA."""
    for name in ("diff", "w_norm"):
        if name in parts:
            return parts[name].reshape(shape)
    rank = 0
    if "lora_up.weight" in parts:
        up, down = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"]
        rank = down.shape[0]
        if "lora_mid.weight" in parts:
            delta = tucker(parts["lora_mid.weight"], up.T, down.flatten(1))
        else:
            delta = up @ down.flatten(1)
    elif "hada_w1_a" in parts:
        rank = parts["hada_w1_b"].shape[0]
        one, two = (
            tucker(parts[f"hada_t{i}"], parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"])
            if f"hada_t{i}" in parts
            else parts[f"hada_w{i}_a"] @ parts[f"hada_w{i}_b"]
            for i in (1, 2)
        )
        delta = one * two
    elif any(name.startswith("lokr") for name in parts):
        factors: list[Tensor] = []
        for i in (1, 2):
            if f"lokr_w{i}" in parts:
                factors.append(parts[f"lokr_w{i}"])
                continue
            a, b = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
            rank = b.shape[0]
            factors.append(tucker(parts["lokr_t2"], a, b) if i == 2 and "lokr_t2" in parts else a @ b)
        one, two = factors
        delta = torch.kron(one.reshape(*one.shape, *[1] * (two.ndim - 2)), two.contiguous())
    else:
        return torch.zeros(shape)
    scale = float(parts["alpha"]) / rank if rank and "alpha" in parts else 1.0
    return scale * delta.reshape(shape)


def merged(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """The weight with the layer in it at strength 1."""
    new = weight + change(parts, weight.shape)
    if "dora_scale" not in parts:
        return new
    magnitude = parts["dora_scale"]
    if magnitude.shape[0] == magnitude.numel():
        return magnitude * new / new.flatten(1).norm(dim=1).reshape(magnitude.shape)
    return magnitude * new / new.transpose(0, 1).flatten(1).norm(dim=1).reshape(magnitude.shape)


def bias(parts: Mapping[str, Tensor], before: Tensor) -> Tensor:
    return before + parts.get("diff_b", parts.get("b_norm", torch.zeros_like(before)))
