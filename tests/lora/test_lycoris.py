"""Files that LyCORIS itself makes: read and converted, their layers compute what LyCORIS' own do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_arithmetic import bias, grouped, merged
from test_oracles import network
from torch import Tensor, nn
from torch.nn import functional

from comfyui_tcd.training.formats import convert, open_lora

KINDS: dict[str, dict[str, Any]] = {
    "LoCon": {"algo": "locon"},
    "LoCon, Tucker": {"algo": "locon", "use_tucker": True},
    "LoCon, rsLoRA": {"algo": "locon", "rs_lora": True},
    "DoRA of outputs": {"algo": "locon", "dora_wd": True, "wd_on_output": True},
    "DoRA of inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "LoHa": {"algo": "loha"},
    "LoHa, Tucker": {"algo": "loha", "use_tucker": True},
    "LoKr": {"algo": "lokr", "factor": 4},
    "LoKr, Tucker": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "LoKr, both": {"algo": "lokr", "factor": 4, "decompose_both": True},
    "full": {"algo": "full"},
    "norms": {"algo": "locon", "train_norm": True},
}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A UNet with a LyCORIS network of random weights in its attention and convolutions, and its file."""
    from lycoris import LycorisNetwork, create_lycoris

    model = network("SD 1.5")
    LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    shape = {"linear_dim": 2, "linear_alpha": 3.0, "conv_dim": 2, "conv_alpha": 3.0}
    net: Any = create_lycoris(model, 1.0, **shape, **KINDS[request.param])
    net.apply_to()
    torch.manual_seed(1)
    for name, weight in sorted(net.named_parameters()):
        if "dora" in name:
            weight.data *= 1 + 0.2 * torch.randn(weight.shape)
        elif not name.endswith("scalar"):
            weight.data = weight.data + 0.1 * torch.randn(weight.shape)
    path = tmp_path_factory.mktemp("lycoris") / "lora.safetensors"
    net.save_weights(str(path), torch.float32, {})
    return net, path


def plain(layer: nn.Module, x: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    """Compute a layer with its weight and bias changed by `parts`."""
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    weight = merged(parts, layer.weight)
    moved = None if layer.bias is None else bias(parts, layer.bias)
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, moved)
    if isinstance(layer, nn.Conv2d):
        return functional.conv2d(x, weight, moved, layer.stride, layer.padding)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(x, layer.num_groups, weight, moved, layer.eps)
    return functional.layer_norm(x, layer.normalized_shape, weight, moved, layer.eps)


def example(layer: Any) -> Tensor:
    """Draw an input for a layer."""
    generator = torch.Generator().manual_seed(2)
    if isinstance(layer, nn.Linear):
        return torch.randn(5, layer.in_features, generator=generator)
    if isinstance(layer, nn.LayerNorm):
        return torch.randn(5, *layer.normalized_shape, generator=generator)
    channels = layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.in_channels
    return torch.randn(2, channels, 4, 4, generator=generator)


@torch.no_grad()
def test_a_file_means_what_lycoris_computes(made: tuple[Any, Path]):
    net, path = made
    file = open_lora(path)
    assert file.extra == {}
    layers = grouped(convert(file, "kohya")[0])
    # LyCORIS takes some layers' weights away, so these are of the same network without it.
    as_made = {f"lora_unet_{n.replace('.', '_')}": m for n, m in network("SD 1.5").named_modules()}
    seen: set[str] = set()
    for module in net.loras:
        base = module.lora_name.replace("lycoris_", "lora_unet_")
        seen.add(base)
        layer = as_made[base]
        x = example(layer)
        before, theirs = layer(x), module(x)
        ours = plain(layer, x, layers[base])
        assert (ours - theirs).norm() <= 1e-3 * (theirs - before).norm(), base
        assert (theirs - before).norm() > 1e-3 * before.norm(), base
    assert seen == set(layers) and len(seen) > 50
