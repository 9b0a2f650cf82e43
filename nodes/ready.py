"""A MODEL made ready for training: its weights in memory, as tensors that autograd accepts, and its operators
with their gradients.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import comfy.cli_args
import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from .gradients import training_operators

log = logging.getLogger("comfyui_tcd")

Aside = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the host's other models, such as a VAE, can be used during a training."""

CORE_LOADERS = "Load Checkpoint or Load Diffusion Model"
UNSAFE = {
    "fp16_accumulation": "--fast fp16_accumulation sums products in 16 bits, which spoils gradients: it is "
    "switched off while this node trains",
    "fp8_matrix_mult": "--fast fp8_matrix_mult rounds what the teacher predicts with fp8 weights to 8 bits; "
    "start ComfyUI without it to train",
}
"""Options of ComfyUI's --fast that change a training, with what is done or to be done about each."""


class Ready(NamedTuple):
    """A MODEL that can be trained, until its context ends."""

    patcher: Any
    """The MODEL to use: the connected one, or its copy without dynamic VRAM."""
    aside: Aside
    remarks: list[str]
    """What the user should know of this run, a sentence each."""


@contextmanager
def ready(model: Any) -> Generator[Ready, None, None]:
    """Load the MODEL whole, with its patches in, and make it trainable; leave it as it was.

    ValueError, before anything is touched, for a model that cannot be trained, and where the host has to keep
    a part of the weights outside of the card.
    """
    refuse(model)
    remarks = unsafe_options()
    with whole(model) as patcher, exact_sums():
        if patcher is not model:
            gib = comfy.model_management.module_size(patcher.model) / 2**30
            remarks.append(f"a second copy of the weights, {gib:.2f} GiB, is kept for the run (dynamic VRAM)")
        network = patcher.model.diffusion_model
        was = network.training
        patcher.pre_run()
        try:
            flow = isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)
            kept = Overwritable() if flow else nullcontext()
            with (
                training_operators(),
                torch.inference_mode(False),
                torch.enable_grad(),
                trainable(network),
                kept,
            ):
                network.eval()
                yield Ready(patcher, kept.left if isinstance(kept, Overwritable) else nullcontext, remarks)
        finally:
            network.train(was)
            patcher.cleanup()


def refuse(model: Any) -> None:
    """Raise ValueError for weights or layers that have no gradient here, and name the way out."""
    network = model.model.diffusion_model
    for name, tensor in _tensors(network):
        # A subclass of Tensor keeps its numbers elsewhere: to alias or hash its storage ends the process.
        if type(tensor) not in (Tensor, nn.Parameter):
            layout = str(getattr(tensor, "_layout_cls", "")) or f"{tensor.dtype}"
            raise ValueError(
                f"this model's weights are quantized ({name} is a {type(tensor).__name__}, {layout}), which "
                "TCD Distill cannot train through; load the same model in bf16 or fp16, or with weight_dtype "
                "fp8_e4m3fn in Load Diffusion Model, which takes as little memory"
            )
    if any(type(module).__module__.partition(".")[0] == "cublas_ops" for module in network.modules()):
        raise ValueError(
            "the layers that --fast cublas_ops puts into this model have no gradient; start ComfyUI without "
            "cublas_ops to train"
        )


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


def unsafe_options() -> list[str]:
    """The remarks of `UNSAFE` for the options that ComfyUI was started with; they also go to the log."""
    chosen = {feature.value for feature in getattr(comfy.cli_args.args, "fast", None) or ()}
    found = [text for name, text in UNSAFE.items() if name in chosen]
    for text in found:
        log.warning("%s", text)
    return found


@contextmanager
def exact_sums() -> Generator[None, None, None]:
    """Let products of float16 matrices be summed in float32, as torch does by default."""
    matmul = torch.backends.cuda.matmul
    was = getattr(matmul, "allow_fp16_accumulation", False)  # not in torch before 2.7
    try:
        if was:
            matmul.allow_fp16_accumulation = False
        yield
    finally:
        if was:
            matmul.allow_fp16_accumulation = True


@contextmanager
def whole(model: Any) -> Generator[Any, None, None]:
    """Load the MODEL onto its device as a whole and yield it; with dynamic VRAM, a copy of it.

    Dynamic VRAM moves weights in and out of the card while the model runs, also those that autograd keeps
    for the backward pass. So the file is read once more into a MODEL of the ordinary kind, with the same
    patches. The copy takes the size of the weights once more, in memory and then on the card, and is freed
    at the end. ValueError where the weights do not fit as a whole, or the file cannot be read again.
    """
    management = comfy.model_management
    patcher = static_copy(model) if is_dynamic(model) else model
    try:
        with torch.inference_mode():
            if patcher is not model:
                unload(model)  # leaves its place on the card to the copy
            management.load_models_gpu([patcher], force_full_load=True)
        parts = getattr(patcher, "lowvram_patch_counter", lambda: 0)()
        if parts or getattr(patcher.model, "model_lowvram", False):
            raise ValueError(
                "the model does not fit into this card's memory as a whole (ComfyUI keeps a part of it "
                "outside), so it cannot be trained; free memory, or load the model in fp8 (weight_dtype of "
                "Load Diffusion Model)"
            )
        with unlisted(patcher):
            yield patcher
    finally:
        if patcher is not model:
            unload(patcher)
            del patcher
            gc.collect()  # modules and their hooks refer to one another


@contextmanager
def unlisted(patcher: Any) -> Generator[None, None, None]:
    """Take a MODEL off the host's list of loaded models, so that nothing moves it while it is trained.

    To decode a validation image the host makes room for the VAE. It would move this model off the card in the
    middle of a run, and put other tensors in place of those that are trained. Off the list, it stays, and the
    VAE gets what memory is left, in tiles if need be.
    """
    loaded = comfy.model_management.current_loaded_models
    ours = [entry for entry in loaded if entry.model is patcher]
    try:
        for entry in ours:
            loaded.remove(entry)
        yield
    finally:
        loaded[:0] = ours


def is_dynamic(model: Any) -> bool:
    """Whether the host moves this MODEL's weights as it runs; older hosts never do."""
    return getattr(model, "is_dynamic", lambda: False)()


def static_copy(model: Any) -> Any:
    """Read the file of a dynamic MODEL again as an ordinary one, with the same patches and options.

    ValueError where the loader did not say how to read it again, and where something is put into the modules
    themselves, which a copy would not have.
    """
    if model.cached_patcher_init is None:
        raise ValueError(
            "this model's loader does not say how to read its file again, which training under dynamic VRAM "
            f"needs; load the model with {CORE_LOADERS} instead"
        )
    if model.injections:
        raise ValueError(
            f"this model carries {', '.join(map(str, model.injections))} in its layers themselves (a LoRA in "
            "bypass mode is such), which would be missing from the teacher; load it without bypass"
        )
    memory = comfy.memory_management
    was = memory.aimdo_enabled
    try:
        # Under this flag layers take the dtype of the file instead of the one the host computes with.
        memory.aimdo_enabled = False
        with torch.inference_mode():
            copy = model.clone(disable_dynamic=True)
    finally:
        memory.aimdo_enabled = was
    copy.size = 0  # that of the dynamic MODEL, whose dtypes may be others
    return copy


def unload(patcher: Any) -> None:
    """Take a MODEL's weights off the device and out of the host's list of loaded models."""
    management = comfy.model_management
    network = patcher.model
    others = [m for m in management.current_loaded_models if getattr(m.model, "model", None) is not network]
    management.free_memory(1e30, patcher.load_device, others)


@contextmanager
def trainable(module: nn.Module) -> Generator[None, None, None]:
    """Weights that the host made in inference mode as ordinary tensors on the same memory, for a while."""
    swapped: list[tuple[dict[str, Any], str, Tensor]] = []
    aliases: dict[int, Tensor] = {}
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
            store[name] = aliases[id(tensor)] = made
        yield
    finally:
        for store, name, tensor in swapped:
            # Whoever put another tensor there since then, the host above all, meant that one to stay.
            if id(tensor) in aliases and store.get(name) is aliases[id(tensor)]:
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
