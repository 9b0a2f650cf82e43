"""The student: the teacher's network with adapters in, and with an embedding of s for TCF(S+)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..samplers import FlowSchedule, Predict
from .backbone import Backbone, Cond, in_parts
from .config import DistillConfig
from .lora import Lora, injected, save_lora
from .narrow import widened_again
from .splus import PREFIX, TargetEmbedding, attached


@dataclass(frozen=True)
class Student:
    """A network with its adapters in: teacher and student in one."""

    backbone: Backbone
    lora: Lora
    embedding: TargetEmbedding | None
    rows: int  # at once, where there is no backward pass

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return all that is trained, by name."""
        named = self.lora.parameters()
        if self.embedding is not None:
            named |= {PREFIX + k: p for k, p in self.embedding.named_parameters()}
        return named

    def predictor(self, cond: Cond) -> Predict:
        """Return one evaluation of the student under `cond`."""
        return in_parts(self._predictor, cond, self.rows)

    def _predictor(self, cond: Cond) -> Predict:
        predict = self.backbone.predictor(cond)
        return predict if self.embedding is None else self.embedding.told(predict)


@contextmanager
def student_on(backbone: Backbone, config: DistillConfig) -> Generator[Student, None, None]:
    """Put adapters into the network, and take them out whatever happens: the base is left as it was."""
    network = backbone.network
    with (
        widened_again(network),
        injected(network, config.rank, config.alpha, config.targets, config.seed) as lora,
    ):
        if config.student == "tcfs":
            scale = 1000.0 if isinstance(backbone.schedule, FlowSchedule) else 1.0
            with attached(network, scale, seed=config.seed) as embedding:
                yield Student(backbone, lora, embedding, 2 * config.batch)
        else:
            yield Student(backbone, lora, None, 2 * config.batch)


@contextmanager
def swapped(trained: Mapping[str, nn.Parameter], other: Mapping[str, Tensor]) -> Generator[None, None, None]:
    """Put `other` in place of the trained weights for a while; storage changes hands, nothing is copied."""
    mine = {k: p.data for k, p in trained.items()}
    try:
        for k, p in trained.items():
            p.data = other[k]
        yield
    finally:
        for k, p in trained.items():
            p.data = mine[k]


def save(path: Path, weights: Mapping[str, Tensor], lora: Lora, metadata: Mapping[str, str]) -> None:
    """Write the LoRA (and the embedding of s) of `weights` as a file that loaders read."""
    factors = {k: v for k, v in weights.items() if not k.startswith(PREFIX)}
    extra = {k: v for k, v in weights.items() if k.startswith(PREFIX)}
    save_lora(path, factors, lora.alpha, metadata, extra, lora.names)
