"""One run by several processes (torchrun, accelerate launch), each with its share of every batch. Only the
first writes.

Data and noise are functions of (seed, step, sample), so the number of processes changes nothing but the
speed, and a resume may have another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

Stored = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and metadata, as a safetensors file holds them."""


_MOST = 2**62


@dataclass(frozen=True)
class Crew:
    """This process's place among `count` that work on one run. `ALONE` needs no torch.distributed."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def check(self, batch: int) -> None:
        """ValueError for a batch that cannot be shared out."""
        if batch % self.count:
            raise ValueError(
                f"batch {batch} cannot be shared by {self.count} processes; choose a multiple of {self.count}"
            )

    def share(self, start: int, size: int) -> slice:
        """This process's part of `size` samples from `start` on."""
        mine = size // self.count
        return slice(start + self.rank * mine, start + (self.rank + 1) * mine)

    def rows(self, total: int) -> Tensor:
        """The rows of a whole that this process computes: as many in each; the last may repeat the first."""
        mine = -(-total // self.count)
        return torch.arange(self.rank * mine, (self.rank + 1) * mine) % total

    def mean(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """The mean loss of all; gradients become the mean of all. One exchange."""
        if self.count == 1:
            return loss
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads] + [loss.reshape(1).to(grads[0])])
        with exchange():
            dist.all_reduce(flat)
        flat /= self.count
        for grad, mean in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
        return flat[-1]

    def least(self, value: int | None) -> int | None:
        """The smallest of all processes' values; None where none has one."""
        if self.count == 1:
            return value
        least = torch.tensor(_MOST if value is None else value)
        with exchange():
            dist.all_reduce(least, dist.ReduceOp.MIN)
        return None if int(least) == _MOST else int(least)

    def gathered(self, mine: Tensor, total: int) -> Tensor:
        """`[N, total, ...]` of every process's `[N, rows, ...]`; CPU tensors."""
        if self.count == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        with exchange():
            dist.all_gather(parts, mine.contiguous())
        return torch.cat(parts, dim=1)[:, :total]

    def told(self, make: Callable[[], Stored]) -> Stored:
        """What `make` gives in the first process, in all of them: the others may be on machines without the
        run's folder.
        """
        if self.count == 1:
            return make()
        tensors, metadata = make() if self.first else ({}, {})
        kinds = [(k, str(v.dtype).removeprefix("torch."), list(v.shape)) for k, v in tensors.items()]
        metadata, kinds = json.loads(_text(json.dumps([metadata, kinds])))
        for name, dtype, shape in kinds:
            if not self.first:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            tensors[name] = tensors[name].contiguous()
            if tensors[name].numel():
                with exchange():
                    dist.broadcast(tensors[name].reshape(-1).view(torch.uint8), 0)
        return tensors, metadata

    def agree(self, given: Mapping[str, str]) -> None:
        """Check that every process was given the same. ValueError in all of them where one was not, and
        in that one with the names of what differs.
        """
        _, first = self.told(lambda: ({}, dict(given)))
        other = [name for name, value in given.items() if first.get(name) != value]
        if self.least(int(not other)) == 0:
            which = (
                f"process {self.rank} has another {', '.join(other)}" if other else "another process has not"
            )
            raise ValueError(
                f"every process needs the same inputs as the first, but {which}; start all of them with "
                "the same command and the same files"
            )


ALONE = Crew()


def _text(text: str) -> str:
    """The first process's text, in all."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    length = torch.tensor(len(data))
    with exchange():
        dist.broadcast(length, 0)
        data = data if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0)
    return bytes(data.tolist()).decode()


@contextmanager
def exchange() -> Generator[None, None, None]:
    """A process that is gone, as an error that says so."""
    try:
        yield
    except RuntimeError as error:  # dist.DistBackendError is one
        raise ConnectionError(
            f"another process of this run has ended ({str(error).splitlines()[0]}); see its own message, and "
            "start the same command again to go on from the last checkpoint"
        ) from error


def own_device(environment: Mapping[str, str] = os.environ) -> None:
    """Each process of a machine takes an accelerator of its own. Before a model is loaded onto one."""
    if torch.cuda.is_available() and "LOCAL_RANK" in environment:
        torch.cuda.set_device(int(environment["LOCAL_RANK"]))


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Generator[Crew, None, None]:
    """The crew that a launcher made this process one of, by its environment; without one, `ALONE`.

    Each on its `own_device`.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"  # shards and checkpoints travel as CPU tensors
    dist.init_process_group(backend, timeout=timedelta(hours=2))  # the first may be validating
    try:
        yield Crew(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
