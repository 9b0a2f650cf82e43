"""Adapters of small UNets, written by the libraries that make them, with their own merged weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lora_files import write
from torch import Tensor, nn

TARGETS = ["attn1.to_q", "attn2.to_k", "to_out.0", "conv1", "proj_in", "time_emb_proj"]


class Made(NamedTuple):
    file: Path
    before: dict[str, Tensor]  # weights and biases, by diffusers' names
    after: dict[str, Tensor]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def spread(model: nn.Module) -> None:
    """Give the rows of the weights norms of their own, as training does: then DoRA's norm shows."""
    for _, weight in sorted(model.named_parameters()):
        if weight.ndim > 1:
            weight.data *= torch.exp(0.5 * torch.randn(weight.shape[0], *[1] * (weight.ndim - 1)))


def configs() -> dict[str, Any]:
    """peft's configs, by what they make."""
    from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig

    def lora(**more: Any) -> Any:
        return LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **more)

    some: dict[str, Any] = {"target_modules": TARGETS, "init_weights": False}
    return {
        "LoRA": lora(lora_alpha=10),
        "LoRA, patterns": lora(
            lora_alpha=10, alpha_pattern={"attn1.to_q": 3}, rank_pattern={"attn2.to_k": 2, "conv1": 3}
        ),
        "LoRA, rslora": lora(lora_alpha=10, use_rslora=True, rank_pattern={"conv1": 3}),
        "LoRA, bias": LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_out.0", "conv1"],
            lora_bias=True,
            init_lora_weights=False,
        ),
        "DoRA": lora(lora_alpha=6, use_dora=True),
        "AdaLoRA": AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=10, total_step=10, target_modules=["attn1.to_q", "attn2.to_k"]
        ),
        "LoHa": LoHaConfig(r=4, alpha=6, **some),
        "LoHa, tucker": LoHaConfig(r=4, alpha=6, use_effective_conv2d=True, **some),
        "LoKr": LoKrConfig(r=2, alpha=3, **some),
        "LoKr, both": LoKrConfig(r=2, alpha=3, decompose_both=True, decompose_factor=8, **some),
        "LoKr, tucker": LoKrConfig(r=2, alpha=3, use_effective_conv2d=True, **some),
        "LoKr, full": LoKrConfig(r=512, alpha=128, rank_pattern={"conv1": 256}, **some),
    }


def made(network: Callable[[], Any], config: Any, folder: Path, written: str = "peft") -> Made:
    """Let peft adapt a network; `written`: by peft, or by diffusers in its own or in kohya's keys."""
    from peft import AdaLoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    model = network()
    spread(model)
    before = weights(model)
    peft_model: Any = get_peft_model(model, config)
    for name, weight in sorted(peft_model.named_parameters()):
        if "magnitude" in name:
            weight.data *= 1 + 0.2 * torch.randn(weight.shape)
        elif "lora_" in name and (name.endswith("bias") or isinstance(config, AdaLoraConfig)):
            weight.data = torch.randn(weight.shape)
    state: Any = get_peft_model_state_dict(peft_model.base_model.model, adapter_name="default")
    state = {k: v.detach().clone() for k, v in state.items()}
    if written == "peft":
        peft_model.save_pretrained(str(folder))
        file = folder / "adapter_model.safetensors"
    elif written == "diffusers":
        from diffusers import StableDiffusionPipeline

        about = {k: v for k, v in config.to_dict().items() if not isinstance(v, set)}
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=state, unet_lora_adapter_metadata=about
        )
        file = folder / "pytorch_lora_weights.safetensors"
    else:
        from diffusers.utils import convert_all_state_dict_to_peft, convert_state_dict_to_kohya

        named = convert_all_state_dict_to_peft({f"unet.{k}": v for k, v in state.items()})
        flat: Any = convert_state_dict_to_kohya(named)
        file = write(folder / "kohya.safetensors", flat)
    return Made(file, before, weights(peft_model.merge_and_unload()))
