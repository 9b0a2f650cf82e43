"""TCF(S+), Eq. 24: a network that is also told the target time s."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..samplers import Point, Predict, placed

PREFIX = "tcd_s_embed."
_TIME = ("time_embed", "time_embedding")


class TargetEmbedding(nn.Module):
    """An embedding of s, added to the network's embedding of t. Its last layer starts at zero: at step 0
    nothing changes.
    """

    def __init__(self, width: int, sinusoids: int = 128, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale  # timesteps per unit of time: 1 for discrete schedules, 1000 for flow
        self.frequencies, self.width = sinusoids // 2, width
        self.net = nn.Sequential(nn.Linear(sinusoids, width), nn.SiLU(), nn.Linear(width, width))
        for p in self.net[2].parameters():
            nn.init.zeros_(p)
        self.s: Tensor | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], scale: float = 1.0) -> TargetEmbedding:
        """The embedding that a file's `tensors` hold. ValueError if they are not one."""
        own = {k.removeprefix(PREFIX): v.float() for k, v in tensors.items() if k.startswith(PREFIX)}
        width, sinusoids = (*own.get("net.0.weight", torch.empty(1, 2)).shape, 2)[:2]
        with torch.random.fork_rng(devices=[]):  # the host's own random numbers stay as they were
            made = cls(width, sinusoids, scale)
        if {k: v.shape for k, v in made.state_dict().items()} != {k: v.shape for k, v in own.items()}:
            raise ValueError(
                f"its {PREFIX} tensors are no embedding of s: {sorted(own)}; the file is damaged"
            )
        made.load_state_dict(own)
        return made.requires_grad_(False)

    def forward(self, s: Tensor) -> Tensor:
        """`s [B]` in the schedule's time; returns `[B, width]`."""
        rates = torch.exp(
            -math.log(10000) / self.frequencies * torch.arange(self.frequencies, device=s.device)
        )
        angles = (s.float() * self.scale)[:, None] * rates
        out: Tensor = self.net(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return out

    def told(self, predict: Predict) -> Predict:
        """`predict`, with the target's time handed to the network at each call."""

        def with_s(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            self.s = placed(target.t.float(), x.device).expand(len(x))
            try:
                return predict(x, now, target)
            finally:
                self.s = None

        return with_s


@contextmanager
def attached(
    network: nn.Module, scale: float = 1.0, tensors: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Generator[TargetEmbedding, None, None]:
    """`attach`, and take it off again."""
    embedding, hook = attach(network, scale, tensors, seed)
    try:
        yield embedding
    finally:
        hook.remove()


def attach(
    network: nn.Module, scale: float = 1.0, tensors: Mapping[str, Tensor] | None = None, seed: int = 0
) -> tuple[TargetEmbedding, RemovableHandle]:
    """Hang an embedding of s on `network`'s time embedding: the embedding, and what takes it off.

    New, its first layer is a function of `seed`; or it is what a file's `tensors` hold.
    Raises ValueError where the network has no time embedding to add to.
    """
    place = next((m for name, m in network.named_children() if name in _TIME), None)
    if place is None:
        raise ValueError(
            f"student = tcfs needs a time embedding to add to; {type(network).__name__} has none of "
            f"{', '.join(_TIME)}"
        )
    linears = [m for m in place.modules() if isinstance(m, nn.Linear)]
    if tensors is not None:
        embedding = TargetEmbedding.of(tensors, scale)
    else:
        with torch.random.fork_rng(devices=[]):  # the host's own random numbers stay as they were
            torch.manual_seed(seed)
            embedding = TargetEmbedding(linears[-1].out_features, scale=scale)
    embedding.to(linears[-1].weight.device)

    def add(_module: nn.Module, _args: object, emb: Tensor) -> Tensor:
        return emb if embedding.s is None else emb + embedding(embedding.s).to(emb)

    return embedding, place.register_forward_hook(add)
