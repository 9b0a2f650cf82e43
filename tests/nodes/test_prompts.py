"""Prompts of unlike shapes in one batch of tensors: `nodes/prompts.py`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from comfyui_tcd.training.backbone import concat, repeat, take


@pytest.fixture
def prompts(nodes: Any) -> Any:
    return import_module("comfyui_tcd.nodes.prompts")


def row(seed: int, tokens: int, constants: int = 0, **more: Tensor) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    text, pooled = torch.randn(1, tokens, 4, generator=draw), torch.randn(1, 3, generator=draw)
    numbers = {"uncond": torch.zeros(1), "constants": torch.tensor([constants])}
    return {"text": text, "pooled": pooled, **numbers, **more}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_each_prompt_comes_back_as_it_was(prompts: Any):
    """Also after it was taken from a batch, repeated, and joined to others."""
    mask = torch.tensor([[1, 1, 0]])
    rows = [row(0, 5), row(1, 2, quoted=torch.ones(1, 3)), row(2, 0), row(3, 5, mask=mask)]
    batch = prompts.stack(rows)
    assert batch["text"].shape == (4, 5, 4) and batch["mask"].dtype == torch.long
    assert all(equal(prompts.cut(batch, [i]), rows[i]) for i in range(4))
    some = take(batch, torch.tensor([3, 1]))
    assert equal(prompts.cut(some, [0]), rows[3]) and equal(prompts.cut(some, [1]), rows[1])
    both = concat([some, repeat(take(batch, slice(1, 2)), 2)])
    assert equal(prompts.cut(both, [3]), rows[1])


def test_prompts_of_one_shape_are_kept_as_they_are(prompts: Any):
    rows = [row(0, 5), row(1, 5)]
    batch = prompts.stack(rows)
    assert equal(batch, concat(rows))
    (group,) = prompts.grouped(batch)
    assert group.rows.tolist() == [0, 1] and equal(group.cond, concat(rows))


def test_a_call_has_rows_of_one_shape_and_of_one_set_of_constants(prompts: Any):
    rows = [row(0, 5), row(1, 2), row(2, 5), row(3, 2, constants=1), row(4, 2, quoted=torch.ones(1, 3))]
    groups = prompts.grouped(prompts.stack(rows))
    assert [g.rows.tolist() for g in groups] == [[0, 2], [1], [3], [4]]
    assert all(equal(g.cond, concat([rows[i] for i in g.rows])) for g in groups)


def test_batches_of_unlike_prompts_can_be_joined(prompts: Any):
    one, other = [row(0, 3), row(1, 4)], [row(2, 6, quoted=torch.ones(1, 2))]
    made = prompts.alike(prompts.stack(one), prompts.stack(other))
    assert [len(m["text"]) for m in made] == [2, 1]
    joined = concat(made)
    assert all(equal(prompts.cut(joined, [i]), r) for i, r in enumerate([*one, *other]))


def test_unlike_numbers_of_dimensions_are_refused(prompts: Any):
    with pytest.raises(ValueError, match="mask has the shapes"):
        prompts.stack([row(0, 3, mask=torch.ones(1, 3)), row(1, 3, mask=torch.ones(1, 1, 3))])
