"""TCD Dataset from Latents: lists of LATENT and CONDITIONING, as ComfyUI's own data set nodes make them.

A node of its own, because a node takes lists in all of its inputs or in none: TCD Distill would get its model
as a list too, and run once for each latent without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from .api import schema
from .dataset import SHOWN, Dataset
from .lora import show

Sample = tuple[Tensor, Any]
"""A latent `[1, C, ...]` and the entry of a CONDITIONING that belongs to it, which is nowhere altered."""


def samples_of(latents: Sequence[Any], conditioning: Sequence[Any]) -> list[Sample]:
    """Pair every picture of the LATENTs with its prompt; a single prompt serves all, as in core's trainer.

    ValueError names what does not pair, and what a LATENT holds that a distillation cannot keep.
    """
    prompts = [list(entries) for entries in conditioning]
    if sum(map(len, prompts)) == 1:
        (only,) = (entry for entries in prompts for entry in entries)
        prompts = [[only] * len(pictures(latent, i)) for i, latent in enumerate(latents)]
    if len(prompts) != len(latents):
        raise ValueError(
            f"conditioning: {len(prompts)} for {len(latents)} latents; connect both outputs of one node, "
            "such as Load Training Dataset, or a single prompt for all"
        )
    found: list[Sample] = []
    for i, (latent, entries) in enumerate(zip(latents, prompts, strict=True)):
        rows = pictures(latent, i).split(1)
        if len(rows) != len(entries):
            raise ValueError(
                f"conditioning {i + 1}: {len(entries)} prompts for {len(rows)} pictures; each picture needs "
                "one plain prompt, without a schedule"
            )
        found += zip(rows, entries, strict=True)
    return found


def pictures(latent: Any, index: int) -> Tensor:
    """Give the samples `[B, C, ...]` of a LATENT. ValueError for nested ones and those with a mask."""
    samples = latent["samples"]
    if samples.is_nested:
        raise ValueError(f"latent {index + 1}: it holds several latents at once, which no run can learn")
    if latent.get("noise_mask") is not None:
        raise ValueError(
            f"latent {index + 1}: it has a noise mask, but a run learns whole pictures; encode it without"
        )
    return samples


def sorted_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Keep the samples of the size that most have, with finite numbers, and say what is wrong with others."""
    sizes = Counter(tuple(latent.shape[1:]) for latent, _ in samples)
    size = sizes.most_common(1)[0][0]  # of equally frequent ones the first
    good: list[Sample] = []
    wrong: list[str] = []
    for i, (latent, entry) in enumerate(samples):
        if latent.shape[1:] != size:
            wrong.append(f"latent {i + 1}: its size is {_size(latent.shape[1:])}, of most {_size(size)}")
        elif not latent.isfinite().all():
            wrong.append(f"latent {i + 1}: not all of its numbers are finite")
        else:
            good.append((latent, entry))
    return good, wrong


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


class TCDDatasetFromLatents(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_DatasetFromLatents",
            display_name="TCD Dataset from Latents",
            category="TCD/training",
            description="Latents and conditionings of ComfyUI's own data set nodes (Make Training Dataset, "
            "Load Training Dataset, Resolution Bucket) as training data for TCD Distill. Batches and lists "
            "are both taken.",
            search_aliases=["tcd", "dataset", "data set", "latents", "training dataset", "bucket", "train"],
            is_input_list=True,
            inputs=[
                io.Latent.Input("latents", tooltip="Encoded with the model's own VAE."),
                io.Conditioning.Input(
                    "conditioning", tooltip="One for each latent, in the same order; or a single one for all."
                ),
                io.Combo.Input(
                    "faulty",
                    options=["stop", "skip"],
                    default="stop",
                    tooltip="With latents of another size than most (a run has one size) or with numbers "
                    "that are not finite: stop and name them, or leave them out and name them in the report.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For TCD Distill."),
                io.String.Output(display_name="report", tooltip="What is in it, and what was left out."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, latents: list[Any], conditioning: list[Any], faulty: list[str]) -> io.NodeOutput:
        samples = samples_of(latents, conditioning)
        if not samples:
            raise ValueError("latents: there is none; connect a data set that is not empty")
        good, wrong = sorted_out(samples)
        listed = "\n".join(wrong[:SHOWN] + [f"and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN))
        if wrong and (faulty[0] == "stop" or not good):
            raise ValueError(
                f"latents: {len(wrong)} of {len(samples)} cannot be used; leave them out of the data set, or "
                f"set faulty to skip:\n{listed}"
            )
        loaded = torch.cat([latent for latent, _ in good]).float().cpu()
        report = f"{len(good)} latents of {_size(loaded.shape[1:])}, {len(wrong)} left out"
        text = f"{report}\n{listed}" if wrong else report
        show(text, cls.hidden.unique_id if cls.hidden else None)
        shards = [(loaded, [entry for _, entry in good])]
        return io.NodeOutput({"loaded": shards, "latent_shape": list(loaded.shape[1:])}, text)


NODES: list[type[io.ComfyNode]] = [TCDDatasetFromLatents]
