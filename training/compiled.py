"""The blocks of a network compiled by torch: minutes at the start of a run for faster steps after it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .memory import blocks_of, forwards

FORMS = 512
"""Of one block: by shape, with adapters and without, with gradients and without, by the options of a host."""


@contextmanager
def compiled(network: nn.Module, backend: Any = "inductor") -> Generator[None, None, None]:
    """The blocks of `network` (see `blocks_of`), each compiled when it is first called; afterwards as before.

    ValueError where the network has no blocks, or is called under a mode that looks at every operator, which
    torch does not compile; RuntimeError where torch cannot compile a block, with the way out.
    """
    from torch import _dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException
    from torch.utils._python_dispatch import _get_current_dispatch_mode as watched  # pyright: ignore

    blocks = blocks_of(network)
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks to compile; set compile = false")
    if watched() is not None:
        raise ValueError(
            f"{type(network).__name__} is not compiled, as its blocks overwrite tensors, which has to be "
            "watched here (flow models in ComfyUI); set compile = false"
        )
    if not hasattr(dynamo.config, "accumulated_recompile_limit"):
        raise ValueError(f"torch {torch.__version__} is too old for compile = true; set compile = false")
    limits = dynamo.config.patch(recompile_limit=FORMS, accumulated_recompile_limit=FORMS * len(blocks))
    try:
        with (
            limits,
            forwards(blocks, lambda block: torch.compile(block.forward, dynamic=False, backend=backend)),
        ):
            yield
    except TorchDynamoException as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            raise error.__cause__ from None  # a smaller plan may do
        cause = " ".join(str(error).split())[:300]
        raise RuntimeError(
            f"torch cannot compile a block of this model: {cause}; set compile = false"
        ) from error
