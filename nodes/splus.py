"""TCF(S+) students, Eq. 24: the sampler says the time s of each call, a patch of the model adds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..training.splus import TargetEmbedding

TARGET = "tcd_target"
"""Of the transformer options: s, in timesteps."""


class TargetPatch:
    """The host's `emb_patch`: adds the embedding of s to that of t, and refuses a call that says no s."""

    reads = TARGET
    """Known by this and not by its class: a second copy of the pack has a class of its own."""

    def __init__(self, name: str, embedding: TargetEmbedding, strength: float) -> None:
        self.name, self.embedding, self.strength = name, embedding, strength

    def __deepcopy__(self, memo: Any) -> TargetPatch:
        return self  # the host copies a model's options with each clone; the embedding is for all of them

    def to(self, place: Any) -> TargetPatch:
        """As the host asks. A dtype is for the network: the sinusoids need float32."""
        if not isinstance(place, torch.dtype):
            self.embedding.to(place)
        return self

    def __call__(self, emb: Tensor, model_channels: int, transformer_options: Mapping[str, Any]) -> Tensor:
        if TARGET not in transformer_options:
            raise ValueError(
                f"{self.name}: a TCF(S+) student has to be told the time s of each step, which this sampler "
                "does not do; use the node TCD Sampler, or the sampler tcd_sss"
            )
        s = torch.full([emb.shape[0]], transformer_options[TARGET], device=emb.device)
        return emb + (self.strength * self.embedding(s)).to(emb)


def attach(patcher: Any, name: str, tensors: Mapping[str, Tensor], strength: float) -> None:
    """Patch a clone of a model. ValueError, without the file's name, if the model cannot be told s."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = patcher.model.diffusion_model
    if not isinstance(network, UNetModel):
        raise ValueError(
            "a TCF(S+) student, whose embedding of s is for a UNet of Stable Diffusion: "
            f"{type(network).__name__} cannot be told s. Load one trained with student = tcf1 or tcf2"
        )
    embedding = TargetEmbedding.of(tensors)
    width = network.time_embed[-1].out_features
    if embedding.width != width:
        raise ValueError(
            f"a TCF(S+) student of another model: its embedding of s has {embedding.width} channels, "
            f"the model's embedding of time {width}"
        )
    patcher.set_model_emb_patch(TargetPatch(name, embedding, strength))


def wants_target(extra_args: Mapping[str, Any]) -> bool:
    """Whether the model of a run is a TCF(S+) student."""
    patches = _transformer_options(extra_args).get("patches", {}).get("emb_patch", ())
    return any(getattr(patch, "reads", None) == TARGET for patch in patches)


def telling(extra_args: Mapping[str, Any], s: float) -> dict[str, Any]:
    """`extra_args` of a run for one call of the model, which says s; those given stay as they are."""
    options = {**_transformer_options(extra_args), TARGET: s}
    return {
        **extra_args,
        "model_options": {**extra_args["model_options"], "transformer_options": options},
    }


def _transformer_options(extra_args: Mapping[str, Any]) -> Mapping[str, Any]:
    return extra_args.get("model_options", {}).get("transformer_options", {})
