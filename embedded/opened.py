"""The embedded model as `tcd train` takes it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

from torch import Tensor

from .live import training_prompts
from .model import EmbeddedModel


@dataclass(frozen=True)
class Opened:
    """See `training.cli.Opened`. Without prompts, the data's own are drawn."""

    backbone: EmbeddedModel
    seed: int
    metadata: dict[str, str] = field(default_factory=lambda: {"tcd.teacher": "embedded"})
    preset: str = "embedded"

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return (
            self.backbone.encode(prompts)
            if prompts
            else self.backbone.encode_labels(training_prompts(self.seed))
        )


def open_model(args: argparse.Namespace) -> Opened:
    return Opened(EmbeddedModel.load(), args.seed or 0)
