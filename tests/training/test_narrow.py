"""Narrow weights of the base: the same gradients, and no wide copy of a weight kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from comfyui_tcd.training import narrow as module
from comfyui_tcd.training.lora import injected
from comfyui_tcd.training.narrow import narrow_layers, widened_again

FP8 = torch.float8_e4m3fn


class Linear(nn.Linear):
    """Casts its weight as hosts do."""

    comfy_cast_weights = True

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)  # pyright: ignore
        return linear(input, self.weight.to(input.dtype), bias)


class Conv2d(nn.Conv2d):
    comfy_cast_weights = True

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        weight = self.weight.to(input.dtype)
        return conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Conv2d(4, 16, 3, stride=2, padding=1)
        self.grouped = Conv2d(16, 16, 3, padding=2, dilation=2, groups=4, bias=False)
        self.linear = Linear(16, 64)
        self.back = Linear(64, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.first(x)).tanh()
        return self.back(self.linear(x.movedim(1, -1)).tanh())


@pytest.fixture(params=[FP8, torch.bfloat16, torch.float16], ids=["8 bits", "bfloat16", "float16"])
def network(request: pytest.FixtureRequest) -> Net:
    torch.manual_seed(3)
    return Net().requires_grad_(False).to(request.param)


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the LoRA's factors and of x."""
    with injected(network, 4, 4.0, "linear", 1) as lora:  # peft's own convolution knows no dilation
        for name, factor in lora.parameters().items():
            if name.endswith("lora_up"):
                factor.data.normal_(generator=torch.Generator().manual_seed(7))
        network(x).square().sum().backward()
        return [p.grad for p in lora.parameters().values() if p.grad is not None] + [
            g for g in [x.grad] if g is not None
        ]


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """By autograd for the backward pass, beside parameters and the input."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()} | {x.untyped_storage().data_ptr()}
    found: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = network(x)  # alive, so that no storage is used twice
    assert out.requires_grad
    return sum(size for where, size in found.items() if where not in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_output_and_gradients(network: Net, dtype: torch.dtype):
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = gradients(network, x.clone().requires_grad_())
    with widened_again(network):
        found = gradients(network, x.clone().requires_grad_())
        ours = network(x.requires_grad_())
    assert len(found) == len(expected) == 5
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)
    assert torch.equal(ours, network(x))


def test_no_wide_weight_is_kept(network: Net):
    x = torch.randn(1, 4, 4, 4, requires_grad=True)
    wide = 4 * sum(m.weight.numel() for m in (network.first, network.grouped, network.linear, network.back))
    plain = kept_bytes(network, x)
    with widened_again(network):
        assert plain - kept_bytes(network, x) >= wide


def test_layers_are_as_before_also_after_an_error(network: Net):
    before = {n: dict(m.__dict__) for n, m in network.named_modules()}
    with pytest.raises(KeyError), widened_again(network):
        raise KeyError
    assert {n: dict(m.__dict__) for n, m in network.named_modules()} == before


def scaled(layer: Any) -> None:
    layer.scale_weight = torch.tensor(2.0)


def functions(layer: Any) -> None:
    layer.weight_function = [lambda w: w]


def circular(layer: Any) -> None:
    layer.padding_mode = "circular"


@pytest.mark.parametrize("change", [scaled, functions, circular])
def test_a_layer_that_does_more_than_cast_is_left_alone(network: Net, change: Callable[[Any], None]):
    assert len(narrow_layers(network)) == 4
    change(network.first)
    assert network.first not in narrow_layers(network) and len(narrow_layers(network)) == 3


def test_other_weights_are_left_alone():
    assert not narrow_layers(Net())
    half = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3)).half()
    assert not narrow_layers(half), "of a host that does not cast"
    assert len(narrow_layers(half.to(FP8))) == 2


def test_a_weight_as_wide_as_its_input_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch):
    network = Net().requires_grad_(False).bfloat16()
    monkeypatch.setattr(module, "_Linear", None)
    x = torch.randn(1, 4, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with widened_again(network):
        network(x).sum().backward()
    assert x.grad is not None
