"""A MODEL made ready for training: its weights in memory, as tensors that autograd accepts, and its operators
with their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .gradients import training_operators

Aside = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the host's other models, such as a VAE, can be used during a training."""


@contextmanager
def trainable(module: nn.Module) -> Generator[None, None, None]:
    """Weights that the host made in inference mode as ordinary tensors on the same memory, for a while."""
    swapped: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is not None and tensor.is_inference():
                        swapped.append((store, name, tensor))
        for store, name, tensor in swapped:
            alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
                tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
            )
            made = nn.Parameter(alias, requires_grad=False) if isinstance(tensor, nn.Parameter) else alias
            store[name] = made
        yield
    finally:
        for store, name, tensor in swapped:
            store[name] = tensor


class Overwritable:
    """Where the host's transformers may overwrite (`x += y`) what a backward pass still needs: it is copied
    first.
    """

    def __enter__(self) -> Overwritable:
        self._inner = allow_mutation_on_saved_tensors()
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._inner.__exit__(*error)

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Not there for a while, in which no backward pass is due: it cannot look at a VAE's tensors, which
        are made in inference mode.
        """
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


@contextmanager
def ready(patcher: Any) -> Generator[Aside, None, None]:
    """The MODEL in memory, whole, with its patches in; nothing of the training stays on it. What it gives is
    a context for the host's other models, such as a VAE.

    ValueError where the host keeps a part of the weights elsewhere.
    """
    management = comfy.model_management
    if getattr(patcher, "is_dynamic", lambda: False)():
        raise ValueError(
            "ComfyUI moves this model's weights in and out of the card as it runs (dynamic VRAM), so it "
            "cannot be trained; start ComfyUI with --highvram or --disable-dynamic-vram"
        )
    with torch.inference_mode():
        management.load_models_gpu([patcher], force_full_load=True)
    parts = getattr(patcher, "lowvram_patch_counter", lambda: 0)()
    if parts or getattr(patcher.model, "model_lowvram", False):
        raise ValueError(
            "the model does not fit into this card's memory as a whole (ComfyUI keeps a part of it outside), "
            "so it cannot be trained; free memory, start ComfyUI with --highvram, or load the model in fp8"
        )
    network = patcher.model.diffusion_model
    was = network.training
    patcher.pre_run()
    try:
        flow = isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)
        kept = Overwritable() if flow else nullcontext()
        with training_operators(), torch.inference_mode(False), torch.enable_grad(), trainable(network), kept:
            network.eval()
            yield kept.left if isinstance(kept, Overwritable) else nullcontext
    finally:
        network.train(was)
        patcher.cleanup()
