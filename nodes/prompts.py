"""Prompts of unlike shapes in one batch of tensors: kept with room to spare, used in their own shapes.

Most text encoders of today give as many tokens as a prompt has, and some give a tensor for some prompts only.
A batch of such prompts cannot be one tensor: shorter texts are padded to be kept, with their own sizes beside
them, and every call of the network gets rows of one shape without the padding, as in the host's own
`calc_cond_batch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..training.backbone import Cond, size

ROLE = "uncond"
"""In a batch of prompts: 1 where the row is the unconditional one, which attention patches want to know. This
and what says how rows are used is on the CPU, so that nothing waits for the device to be told.
"""
CONSTANTS = "constants"
"""Which of the backbone's sets of constants goes with a row (a number of tokens, a frame rate)."""
SHAPE = ".shape"
"""Ends the name of a tensor's sizes `[B, 1 + dimensions]`: 1 where a row has it, then its own sizes."""


def stack(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return prompts `[1, ...]` of any shapes as one batch, shorter ones padded with 0.

    Raises ValueError for prompts whose tensors of one name have unlike numbers of dimensions.
    """
    batch: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        found = [row.get(name) for row in rows]
        there = [value for value in found if value is not None]
        shapes = {tuple(value.shape[1:]) for value in there}
        if len(there) == len(rows) and len(shapes) == 1:
            batch[name] = torch.cat(there)
            continue
        if len({len(shape) for shape in shapes}) > 1:
            raise ValueError(f"{name} has the shapes {sorted(shapes)}; encode all prompts the same way")
        room = [max(sizes) for sizes in zip(*shapes, strict=True)]
        absent = there[0].new_zeros(1, *(0 for _ in room))
        batch[name] = torch.cat([padded(absent if value is None else value, room) for value in found])
        sizes = [[0, *(0 for _ in room)] if value is None else [1, *value.shape[1:]] for value in found]
        batch[name + SHAPE] = torch.tensor(sizes)
    return batch


def padded(value: Tensor, room: Sequence[int]) -> Tensor:
    """Return a tensor `[1, ...]` in the first places of a larger one of 0."""
    if list(value.shape[1:]) == list(room):
        return value
    out = value.new_zeros(1, *room)
    if room:
        out[tuple(slice(n) for n in value.shape)] = value
    return out


class Group(NamedTuple):
    """Rows of a batch that fit into one call, in their own shapes."""

    rows: Tensor
    """Their numbers in the batch, on the CPU."""
    cond: dict[str, Tensor]


def grouped(batch: Cond) -> list[Group]:
    """Return the rows of a batch by shapes and constants, each group with the tensors that its rows have."""
    keys = [name for name in batch if name == CONSTANTS or name.endswith(SHAPE)]
    columns = [batch[name].reshape(len(batch[name]), -1).tolist() for name in keys]
    alike: dict[str, list[int]] = {}
    for row in range(size(batch)):
        alike.setdefault(str([column[row] for column in columns]), []).append(row)
    return [Group(torch.tensor(rows), cut(batch, rows)) for rows in alike.values()]


def cut(batch: Cond, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return some rows of one shape without their padding and without what they do not have."""
    found: dict[str, Tensor] = {}
    whole = len(rows) == size(batch)
    for name, value in batch.items():
        if name.endswith(SHAPE):
            continue
        there, *sizes = (
            batch[name + SHAPE][rows[0]].tolist() if name + SHAPE in batch else (1, *value.shape[1:])
        )
        if there:
            part = value if whole else torch.cat([value[row : row + 1] for row in rows])
            found[name] = part[(slice(None), *(slice(n) for n in sizes))]
    return found


def alike(*conds: Cond) -> list[dict[str, Tensor]]:
    """Return batches of prompts with tensors of the same names and room, so that they can be joined."""
    both = stack([cut(cond, [row]) for cond in conds for row in range(size(cond))])
    parts = {name: value.split([size(cond) for cond in conds]) for name, value in both.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(conds))]
