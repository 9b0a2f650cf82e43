"""What a saved LoRA says of itself: kohya's `ss_*` keys, ModelSpec 1.0.1, and how it is to be sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from .config import DistillConfig

RATIO = 8  # pixels per latent, of Stable Diffusion


class Family(NamedTuple):
    """How others name a kind of model."""

    base: str  # ss_base_model_version
    architecture: str  # modelspec.architecture, without /lora
    implementation: str


_STABILITY = "https://github.com/Stability-AI/generative-models"
# By the width of the text encoding and whether there is an embedding of sizes.
FAMILIES = {
    (768, False): Family("sd_v1", "stable-diffusion-v1", "diffusers"),
    (1024, False): Family("sd_v2", "stable-diffusion-v2", "diffusers"),
    (2048, True): Family("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", _STABILITY),
}


def family(network: nn.Module) -> Family | None:
    """The kind of a UNet with ldm's or diffusers' names; None for others."""
    widths = {m.in_features for n, m in network.named_modules() if _text_key(n) and isinstance(m, nn.Linear)}
    sized = any(n in ("label_emb", "add_embedding") for n, _ in network.named_children())
    return FAMILIES.get((widths.pop(), sized)) if len(widths) == 1 else None


def _text_key(name: str) -> bool:
    return name.endswith("attn2.to_k")


def recommended(config: DistillConfig) -> tuple[int, float, float]:
    """Steps, cfg and gamma to sample with: where s lay in training decides."""
    steps, gamma = {
        "zero": (4, 1.0),
        "phases": (config.s_steps, 0.0),
        "near": (config.s_steps, 0.3),
        "uniform": (4, 0.3),
    }[config.s_range]
    return steps, 1.0, gamma


def about(
    config: DistillConfig, network: nn.Module, latent_shape: Sequence[int], title: str
) -> dict[str, str]:
    """Metadata of a LoRA that `config` made of `network`, all text."""
    steps, cfg, gamma = recommended(config)
    height, width = (RATIO * n for n in latent_shape[-2:])
    kind = family(network)
    texts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_output_name": title,
        "ss_learning_rate": str(config.learning_rate),
        "ss_max_train_steps": str(config.steps),
        "ss_seed": str(config.seed),
        "ss_resolution": f"({width}, {height})",
        "ss_training_comment": "Trajectory Consistency Distillation",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title,
        "modelspec.description": "Few-step LoRA by Trajectory Consistency Distillation",
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.usage_hint": f"TCD sampler, {steps} steps, cfg {cfg:g}, gamma {gamma:g}",
        "tcd.recommended_steps": str(steps),
        "tcd.recommended_cfg": str(cfg),
        "tcd.recommended_gamma": str(gamma),
        "modelspec.architecture": f"{type(network).__name__.lower()}/lora",
        "modelspec.implementation": "diffusers",
    }
    if kind is not None:
        texts["ss_base_model_version"] = kind.base
        texts["ss_v2"] = str(kind.base == "sd_v2")
        texts["modelspec.architecture"] = f"{kind.architecture}/lora"
        texts["modelspec.implementation"] = kind.implementation
    return texts
