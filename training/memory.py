"""Memory: blocks that are computed again in the backward pass instead of being kept, what a forward pass
keeps, and the plan that fits: the fastest of those that give the same result.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_unflatten

from .config import DistillConfig

GIB = 2**30
# By the names of their classes: in ldm and ComfyUI, in diffusers, in flow transformers of two kinds of block.
BLOCKS = frozenset(
    {
        *("ResBlock", "VideoResBlock", "SpatialTransformer", "SpatialVideoTransformer"),
        *("ResnetBlock2D", "Transformer2DModel"),
        *("JointBlock", "DoubleStreamBlock", "SingleStreamBlock", "DiTBlock", "MMDiTBlock"),
        *("JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock", "HiDreamImageBlock"),
    }
)
SMALLER = "lower rank, the size of the pictures, or set targets = attention; or free memory"


# Recomputing.


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks to recompute: the outermost of a known class, else the members of the longest ModuleList."""
    found = _outermost(network)
    if not found:
        lists = [m for m in network.modules() if isinstance(m, nn.ModuleList)]
        found = list(max(lists, key=len, default=[]))
    return found


def _outermost(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if type(child).__name__ in BLOCKS else _outermost(child)
    return found


@contextmanager
def recomputed(network: nn.Module) -> Generator[None, None, None]:
    """The blocks of `network` keep their inputs only, and compute the rest again for gradients.

    Gradients are those of `Tensor.backward`; `torch.autograd.grad` cannot be asked for them. ValueError where
    the network has no blocks.
    """
    blocks = blocks_of(network)
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no blocks to recompute; set checkpointing = none")
    with forwards(blocks, lambda block: _recomputing(block.forward)):
        yield


@contextmanager
def forwards(
    modules: Sequence[nn.Module], made: Callable[[Any], Callable[..., Any]]
) -> Generator[None, None, None]:
    """Each of `modules` with the forward that `made` makes for it; afterwards as before, whatever happens."""
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = made(module)
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        call = _Call(forward, args, kwargs)
        anchor = torch.zeros((), requires_grad=True)  # parameters may be all that needs a gradient
        tensors: tuple[Tensor, ...] = _Recompute.apply(call, anchor, *call.tensors)
        call.tensors = []
        return tree_unflatten(_filled(call.rest_out, tensors), call.spec_out)

    return run


_TENSOR = object()
"""Stands for a tensor among the leaves of a call's arguments or result."""


def _apart(leaves: list[Any]) -> tuple[list[Any], list[Tensor]]:
    rest = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return rest, [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _filled(rest: list[Any], tensors: Iterable[Tensor]) -> list[Any]:
    left = iter(tensors)
    return [next(left) if leaf is _TENSOR else leaf for leaf in rest]


class _Call:
    """A call of a block, that can be made again with other tensors.

    A host's options change from block to block: they are kept as they were, dictionaries taken apart.
    """

    def __init__(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.forward = forward
        self.given: tuple[Any, Any] | None = (args, kwargs)
        leaves, self.spec = tree_flatten((args, kwargs))
        self.rest, self.tensors = _apart(leaves)
        self.rest_out: list[Any] = []
        self.spec_out = self.spec

    def first(self) -> tuple[Tensor, ...]:
        """The result's tensors. The block gets the very options, as what it writes may be for the next."""
        assert self.given is not None
        (args, kwargs), self.given = self.given, None
        leaves, self.spec_out = tree_flatten(self._run(args, kwargs))
        self.rest_out, tensors = _apart(leaves)
        # autograd lets nobody overwrite a view that it has not seen being made
        return tuple(t.clone() if t._is_view() else t for t in tensors)  # pyright: ignore[reportPrivateUsage]

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = tree_unflatten(_filled(self.rest, tensors), self.spec)
        return _apart(tree_flatten(self._run(args, kwargs))[0])[1]

    def _run(self, args: Any, kwargs: Any) -> Any:
        """With copies of the tensors, as hosts overwrite (`x += y`) what a block is given."""
        return self.forward(*map(_copy, args), **{k: _copy(v) for k, v in kwargs.items()})


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class _Recompute(torch.autograd.Function):
    """By a backward pass within the backward pass, whose graph is an ordinary one: torch's own checkpoint
    keeps tensors by hooks, past which hosts overwrite them.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, _anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return call.first()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        tensors = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            outputs = ctx.call.again(tensors)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return None, None, *(t.grad if n else None for t, n in zip(tensors, needed, strict=True))


# Metering.


class Kept(NamedTuple):
    """Bytes that a forward pass keeps for its backward pass."""

    whole: int  # everything
    inputs: int  # if blocks are recomputed
    block: int  # of the largest block, while it is recomputed
    blocks: int  # how many there are


def kept_by(network: nn.Module, forward: Callable[[], object]) -> Kept:
    """Meter `forward` without keeping anything, so that there is no backward pass after it.

    Memory is counted once, however many tensors share it; the network's own is not counted.
    """
    weak: dict[int, StorageWeakRef] = {}  # holds an address, so that no other tensor gets it
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    whole: dict[int, int] = {}
    inputs: dict[int, int] = {}
    block: dict[int, int] = {}
    depth = largest = 0

    def count(tensor: Tensor, *where: dict[int, int]) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            ref = StorageWeakRef(storage)
            weak.setdefault(ref.cdata, ref)
            for sizes in where:
                sizes[ref.cdata] = storage.nbytes()

    def pack(tensor: Tensor) -> Tensor:
        count(tensor, whole, block if depth else inputs)
        return torch.empty(0)

    def enter(_block: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal depth
        depth += 1
        for tensor in _apart(tree_flatten((args, kwargs))[0])[1]:
            count(tensor, inputs)

    def leave(_block: nn.Module, _args: Any, _out: Any) -> None:
        nonlocal depth, largest
        depth -= 1
        largest = max(largest, sum(block.values()))
        block.clear()

    blocks = blocks_of(network)
    hooks = [b.register_forward_pre_hook(enter, with_kwargs=True) for b in blocks]
    hooks += [b.register_forward_hook(leave) for b in blocks]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return Kept(sum(whole.values()), sum(inputs.values()), largest, len(blocks))


# Plans.


class Needs(NamedTuple):
    """Of a run, in bytes beside the frozen weights: `fixed` whatever the batch, `kept` for one sample."""

    fixed: int  # the LoRA, gradients, moments, averages
    kept: Kept


def state_bytes(config: DistillConfig) -> int:
    """Of a trained parameter: weight, gradient, average (and target) in float32, and two moments."""
    moments = 2 if config.optimizer == "adamw8bit" else 8
    return 4 * (3 + (config.target == "ema")) + moments


class Plan(NamedTuple):
    """How a step is computed. The result is the same, to rounding."""

    recompute: bool
    batch: int  # samples a forward
    accumulation: int  # forwards a step
    need: int  # bytes beside the frozen weights, as estimated

    def applied(self, config: DistillConfig) -> DistillConfig:
        """The settings as they will run."""
        return replace(config, batch=self.batch, accumulation=self.accumulation)

    def settings(self) -> str:
        """What to set for it."""
        blocks = "blocks" if self.recompute else "none"
        return f"checkpointing = {blocks}, batch = {self.batch}, accumulation = {self.accumulation}"

    def __str__(self) -> str:
        blocks = "blocks recomputed" if self.recompute else "everything kept"
        return f"batch {self.batch} x {self.accumulation}, {blocks}, {self.need / GIB:.2f} GiB for training"


def plans(needs: Needs, config: DistillConfig, count: int = 1) -> list[Plan]:
    """From the fastest to the smallest, for each of `count` processes: everything kept, blocks recomputed,
    smaller batches.
    """
    kept, total = needs.kept, config.batch * config.accumulation
    mine = config.batch // count
    batches = [b for b in range(mine, 0, -1) if mine % b == 0]

    def plan(recompute: bool, batch: int) -> Plan:
        sample = kept.inputs + kept.block if recompute else kept.whole
        return Plan(recompute, batch * count, total // (batch * count), needs.fixed + batch * sample)

    never = config.checkpointing == "none" or (config.checkpointing == "auto" and not kept.blocks)
    if never:
        return [plan(False, b) for b in batches]
    first = [plan(False, batches[0])] if config.checkpointing == "auto" else []
    return first + [plan(True, b) for b in batches]


def fitting(able: Sequence[Plan], free: int | None) -> list[Plan]:
    """The plans from the first that fits into `free` bytes on; all where that is not known.

    MemoryError says what is missing where not even the smallest fits.
    """
    for i, plan in enumerate(able):
        if free is None or plan.need <= free:
            return list(able[i:])
    least = min(plan.need for plan in able)
    raise MemoryError(
        f"training needs {least / GIB:.2f} GiB beside the model, {(free or 0) / GIB:.2f} are free: {SMALLER}"
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes that a run may take on `device`; None where nothing tells."""
    gc.collect()  # an error that is over may hold a graph
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        import psutil  # of peft

        return int(psutil.virtual_memory().available)
    return None
