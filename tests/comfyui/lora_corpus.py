"""Runs in ComfyUI's interpreter: LoRA files under every key and of every adapter that the host itself reads.

Classes of models, keys and suffixes are read out of the host's code, so those of a newer host come along.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.weight_adapter
import comfyui_inside
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH, ROWS, RANK = 36, 16, 2
OURS = ("lokr, tucker", "dora of outputs")
"""Adapters that the host computes otherwise than their makers, or not at all; see test_lora_makers.py."""
numbers = itertools.count()
NAMES = (
    "blocks.0.cross_attn.k.weight",
    "decoder.layers.0.q.weight",
    "double_blocks.0.img_attn.qkv.weight",
    "double_blocks.0.img_attn.proj.weight",
    "double_blocks.0.txt_attn.qkv.weight",
    "double_blocks.0.img_mlp.0.weight",
    "double_blocks.0.img_mod.lin.weight",
    "single_blocks.0.linear1.weight",
    "single_blocks.0.linear2.weight",
    "single_blocks.0.norm.key_norm.scale",
    "single_blocks.0.modulation.lin.weight",
)
CLIP = "transformer.text_model.encoder.layers.0."
CLIP_NAMES = (
    f"{CLIP}self_attn.q_proj",
    f"{CLIP}mlp.fc1",
    f"{CLIP}layer_norm1",
    "transformer.text_projection",
)
T5 = "transformer.encoder.block.0.layer.0.SelfAttention.q"
LLAMA = ("transformer.model.layers.0.self_attn.q_proj", "transformer.model.norm")
TEXTS: dict[str, dict[str, tuple[str, ...]]] = {
    "SD 1.5": {"clip_l": CLIP_NAMES},
    "SD 2.x": {"clip_h": CLIP_NAMES},
    "refiner": {"clip_g": CLIP_NAMES},
    "SDXL": {"clip_l": CLIP_NAMES, "clip_g": CLIP_NAMES},
    "SD3": {"clip_l": CLIP_NAMES, "clip_g": CLIP_NAMES, "t5xxl": (T5,)},
    "Flux": {"clip_l": CLIP_NAMES, "t5xxl": (T5,)},
    "T5": {"t5xxl": (T5,)},
    "HiDream": {"clip_l": CLIP_NAMES, "clip_g": CLIP_NAMES, "t5xxl": (T5,), "llama": LLAMA},
    "HunyuanDiT": {"hydit_clip": ("transformer.bert.encoder.layer.0.q",), "mt5xl": (T5,)},
    "Qwen": {"qwen25_7b": LLAMA},
    "Anima": {"qwen3_06b": LLAMA},
}


class Config(dict[str, Any]):
    """Numbers of a model: one block of everything, of width 8."""

    def get(self, key: str, default: Any = None) -> Any:
        return 8 if re.search("dim|size", key) else 1


def weight_of(target: Any) -> tuple[str, tuple[int, int, int] | None]:
    return (target, None) if isinstance(target, str) else target[:2]


def grown(network: nn.Module, keys: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Give `network` a weight and a bias for every target of the host's keys, and return those keys."""
    shapes: dict[str, list[int]] = {}
    for key, part in map(weight_of, keys(network, {}).values()):
        shape = shapes.setdefault(key, [ROWS, WIDTH])
        if part is not None:
            shape[part[0]] = max(shape[part[0]], part[1] + part[2])
    for key, shape in shapes.items():
        add(network, key, torch.zeros(shape))
        if key.endswith(".weight"):
            add(network, key.removesuffix("weight") + "bias", torch.zeros(shape[0]))
    return keys(network, {})


def add(network: nn.Module, key: str, weight: Tensor) -> None:
    *path, last = key.split(".")
    for name in path:
        if name not in network._modules:
            network.add_module(name, nn.Module())
        network = network.get_submodule(name)
    network.register_parameter(last, nn.Parameter(weight, requires_grad=False))


def models() -> Iterator[tuple[str, Any, None, dict[str, Any]]]:
    """(name, MODEL, None, the host's keys) of every class that the host has keys for."""
    classes = re.findall(r"model_base\.(\w+)", inspect.getsource(comfy.lora.model_lora_keys_unet))
    for name in sorted({"BaseModel", *classes}):
        kind = getattr(comfy.model_base, name)
        network = kind.__new__(kind)
        nn.Module.__init__(network)
        network.model_config = SimpleNamespace(unet_config=Config())
        if name == "BaseModel":
            network.model_config.unet_config = comfyui_inside.UNET
        for key in NAMES:
            add(network, f"diffusion_model.{key}", torch.zeros(ROWS, WIDTH))
        keys = grown(network, comfy.lora.model_lora_keys_unet)
        yield name, patcher(network), None, keys


def texts() -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """(name, a model, CLIP, the host's keys) of text encoders alone and together."""
    model = next(models())[1]
    for name, parts in TEXTS.items():
        stage = nn.Module()
        for part, layers in parts.items():
            for layer in layers:
                add(stage, f"{part}.{layer}.weight", torch.zeros(ROWS, WIDTH))
        keys = grown(stage, comfy.lora.model_lora_keys_clip)
        made = comfy.sd.CLIP(no_init=True)
        made.cond_stage_model, made.patcher = stage, patcher(stage)
        made.tokenizer = made.layer_idx = None
        made.use_clip_schedule, made.apply_hooks_to_conds = False, None
        made.tokenizer_options = {}
        yield f"text encoders of {name}", model, made, keys


def patcher(network: nn.Module) -> Any:
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)


def lora(up: str, down: str, rows: int, **more: Tensor) -> dict[str, Tensor]:
    made = {up: torch.randn(rows, RANK), down: torch.randn(RANK, WIDTH)}
    return made | {f".{name}": t for name, t in more.items()}


def adapters(rows: int) -> dict[str, dict[str, Tensor]]:
    """Every adapter that the host reads, as suffixes and tensors for a weight of `rows` by WIDTH."""
    r, inner = torch.randn, WIDTH // 9
    a, b, plain = r(rows, RANK), r(RANK, WIDTH), (".lora_up.weight", ".lora_down.weight")
    pairs = (
        plain,
        ("_lora.up.weight", "_lora.down.weight"),
        (".lora_B.weight", ".lora_A.weight"),
        (".lora.up.weight", ".lora.down.weight"),
        (".lora_B", ".lora_A"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
        (".lora_B.default.weight", ".lora_A.default.weight"),
    )
    hada = {f".hada_w{i}_{x}": r(t.shape) for i in "12" for x, t in (("a", a), ("b", b))}
    tucker = {".hada_t1": r(RANK, RANK, 3, 3), ".hada_t2": r(RANK, RANK, 3, 3)}
    return {
        **{up: lora(up, down, rows) for up, down in pairs},
        "alpha": lora(*plain, rows, alpha=torch.tensor(0.1)),
        "mid": {
            plain[0]: r(rows, RANK, 1, 1),
            plain[1]: r(RANK, inner, 1, 1),
            ".lora_mid.weight": r(RANK, RANK, 3, 3),
        },
        "dora of inputs": lora(*plain, rows, dora_scale=r(1, WIDTH)),
        "dora of outputs": lora(*plain, rows, dora_scale=r(rows, 1)),
        "reshape": lora(*plain, rows, reshape_weight=torch.tensor([rows, WIDTH])),
        "loha": {**hada, ".alpha": torch.tensor(1.0)},
        "loha, tucker": {k: r(RANK, rows if k.endswith("a") else inner) for k in hada} | tucker,
        "lokr": {".lokr_w1": r(2, 2), ".lokr_w2": r(rows // 2, WIDTH // 2), ".alpha": torch.tensor(3.0)},
        "lokr, factors": {
            ".lokr_w1_a": r(2, RANK),
            ".lokr_w1_b": r(RANK, 2),
            ".lokr_w2_a": r(rows // 2, RANK),
            ".lokr_w2_b": r(RANK, WIDTH // 2),
            ".dora_scale": r(1, WIDTH),
        },
        "lokr, tucker": {
            ".lokr_w1": r(2, 2),
            ".lokr_w2_a": r(RANK, rows // 2),
            ".lokr_w2_b": r(RANK, inner // 2),
            ".lokr_t2": r(RANK, RANK, 3, 3),
        },
        "glora": {".a1.weight": a, ".a2.weight": b, ".b1.weight": r(a.shape), ".b2.weight": r(b.shape)},
        "oft": {".oft_blocks": r(2, 4, 4), ".rescale": r(rows, 1), ".alpha": torch.tensor(0.5)},
        "boft": {".oft_blocks": r(2, 2, 4, 4), ".rescale": r(rows, 1), ".alpha": torch.tensor(0.5)},
        "norm": {".w_norm": r(rows, WIDTH), ".b_norm": r(rows)},
        "full": {".diff": r(rows, WIDTH), ".diff_b": r(rows)},
        "bias": {".diff_b": r(rows)},
        "set": {".set_weight": r(rows, WIDTH)},
    }


def suffixes() -> dict[str, list[str]]:
    """The suffixes that the host's code looks for, and those that `adapters` has."""
    code = inspect.getsource(comfy.lora.load_lora)
    code += "".join(inspect.getsource(kind.load) for kind in comfy.weight_adapter.adapters)
    theirs = re.findall(r'"\{\}([._][\w.]+)"\.format\(x\)', code)
    return {
        "host": sorted(set(theirs)),
        "here": sorted({k for made in adapters(ROWS).values() for k in made}),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, comfy.weight_adapter.WeightAdapterBase):
        return type(one) is type(other) and same(one.weights, other.weights)
    return one == other


def sorted_patches(patched: Any) -> dict[str, list[Any]]:
    """By weight, in the order of the parts of one that they are for."""
    found = {} if patched is None else getattr(patched, "patcher", patched).patches
    return {k: sorted(patches, key=lambda p: (str(p[3]), p[4] is not None)) for k, patches in found.items()}


def within(there: list[Any], here: list[Any], more: bool) -> bool:
    """Whether the patches are the same; `more`: ours may be more, as of parts of a bias."""
    if more:
        return all(any(same(one, other) for other in here) for one in there)
    return same(there, here)


def compare(
    execute: Callable[..., Any],
    path: Path,
    tensors: dict[str, Tensor],
    model: Any,
    clip: Any,
    exact: bool = True,
) -> str | None:
    """What the pack's loader does otherwise than the host's; None: the same patches, and all is counted.
    `exact`: the patches, else the patched weights alone."""
    path = path.with_stem(f"{path.stem}-{next(numbers)}")  # the loader keeps files, by name and time
    save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    core: Any = comfy.sd.load_lora_for_models(model, clip, dict(tensors), 0.7, 0.7)
    try:
        ours = execute(model, path.name, 0.7, clip)
    except ValueError as error:
        return str(error)
    finally:
        path.unlink()
    for there, here in zip(map(sorted_patches, core), map(sorted_patches, ours[:2]), strict=True):
        if lacking := there.keys() - here.keys():
            return f"not patched: {sorted(lacking)[:3]}"
        if different := [k for k in there if exact and not within(there[k], here[k], k.endswith(".bias"))]:
            return f"other patches of {different[:3]}"
        if more := [k for k in here.keys() - there.keys() if not k.endswith(".bias")]:
            return f"patched too: {sorted(more)[:3]}"
    line = ours[2].split("\n")[1]
    keys, of_keys, layers, of_layers = map(int, re.findall(r"\d+", line))
    return None if keys == of_keys == len(tensors) and layers == of_layers else line


def converted(execute: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """The same for layouts that the host renames before it looks for weights."""
    r = torch.randn
    files: dict[str, dict[str, Tensor]] = {
        "BFL's control": {
            "img_in.lora_B.weight": r(ROWS, RANK),
            "img_in.lora_A.weight": r(RANK, 2 * WIDTH),
            "img_in.lora_B.bias": r(ROWS),
            "double_blocks.0.img_attn.proj.lora_B.weight": r(ROWS, RANK),
            "double_blocks.0.img_attn.proj.lora_A.weight": r(RANK, WIDTH),
            "single_blocks.0.norm.key_norm.scale": r(ROWS, WIDTH),
        },
        "Wan fun": {
            "lora_unet__blocks_0_cross_attn_k.lora_up.weight": r(ROWS, RANK),
            "lora_unet__blocks_0_cross_attn_k.lora_down.weight": r(RANK, WIDTH),
            "lora_unet__blocks_0_cross_attn_k.alpha": torch.tensor(1.0),
        },
        "USO": {
            f"{block}.processor.{name}.{end}.weight": t
            for block, names in (
                ("single_blocks.37", ("qkv_lora", "proj_lora")),
                ("double_blocks.18", ("qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2")),
            )
            for name in names
            for end, t in (("up", r(ROWS, RANK)), ("down", r(RANK, WIDTH)))
        },
    }
    _, model, _, _ = next(found for found in models() if found[0] == "Flux")
    for key in (
        "img_in",
        *(f"double_blocks.18.{x}_attn.{y}" for x in ("img", "txt") for y in ("qkv", "proj")),
        *(f"single_blocks.37.linear{i}" for i in (1, 2)),
    ):
        add(model.model, f"diffusion_model.{key}.weight", torch.zeros(3 * 8, WIDTH))
        add(model.model, f"diffusion_model.{key}.bias", torch.zeros(3 * 8))
    wrong = {
        name: problem
        for name, tensors in files.items()
        if (problem := compare(execute, folder / "converted.safetensors", tensors, model, None))
    }
    return {"files": len(files), "wrong": wrong}


def quantized(execute: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """By format of quantized weights: what goes wrong with a LoRA of the weight's shape, and the refusal of
    one of another width. Sides are no multiples of the formats' blocks, so that rows are padded.
    """
    found: dict[str, Any] = {}
    rows, width = 64, 16
    try:
        quant: Any = importlib.import_module("comfy.quant_ops")
    except ImportError:  # before ComfyUI 0.4
        quant = None
    for name, algorithm in getattr(quant, "QUANT_ALGOS", {}).items():
        try:
            weight = quant.QuantizedTensor.from_float(
                torch.randn(rows, width).bfloat16(), algorithm["comfy_tensor_layout"]
            )
        except (ValueError, AttributeError):
            continue  # of other blocks, or a host that quantizes elsewhere
        layer = comfy.ops.mixed_precision_ops({}).Linear(width, rows, bias=False)
        config = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
        layer.load_state_dict({**weight.state_dict("weight"), "comfy_quant": config})
        _, model, _, _ = next(found for found in models() if found[0] == "BaseModel")
        model.model.diffusion_model.add_module("quantized", layer)
        base = "diffusion_model.quantized"
        found[name] = [
            compare(
                execute,
                folder / "quantized.safetensors",
                {
                    f"{base}.lora_up.weight": torch.ones(rows, 2),
                    f"{base}.lora_down.weight": torch.ones(2, inner),
                },
                model,
                None,
            )
            for inner in (width, 2 * width)
        ]
    return {**found, "formats": sorted(found)}


def dora_of_parts(execute: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """DoRA of output channels for the three parts of Flux's fused weight: that weight before and after, and
    the tensors of each part by its first row. Patches are copied as the host does to prefetch them.
    """
    _, model, _, keys = next(found for found in models() if found[0] == "Flux")
    target = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    chosen: dict[int, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for key in keys:
        weight, part = weight_of(keys[key])
        if weight == target and part is not None and key.startswith("transformer."):
            made = adapters(part[2])["dora of outputs"]
            chosen[part[1]] = made
            tensors |= {f"{key}{end}": t for end, t in made.items()}
    path = folder / "parts.safetensors"
    save_file(tensors, path)
    patched = execute(model, path.name, 0.5, None)[0]
    before = torch.randn(model.model.get_parameter(target).shape)
    prefetched = getattr(comfy.lora, "prefetch_prepared_value", lambda value, *_: value)
    patches = [(p[0], prefetched(p[1], [0], None, None, False), *p[2:]) for p in patched.patches[target]]
    after = comfy.lora.calculate_weight(patches, before.clone(), target)
    return {"before": before, "after": after, "parts": chosen}


def corpus(execute: Callable[..., Any], folder: Path) -> dict[str, Any]:
    """Number of files of each model, and what went wrong. In a file, each weight occurs once."""
    path = folder / "corpus.safetensors"
    done: dict[str, int] = {}
    wrong: list[str] = []
    for name, model, clip, keys in (*models(), *texts()):
        names: dict[Any, list[str]] = {}
        for key, target in keys.items():
            if not str(target).endswith(".bias"):  # which have the suffixes of their weight
                names.setdefault(target, []).append(key)
        patched = model.model if clip is None else clip.cond_stage_model
        shapes = {k: weight.shape for k, weight in patched.state_dict().items()}
        for turn in range(max(map(len, names.values()))):
            chosen = {found[turn]: target for target, found in names.items() if turn < len(found)}
            for kind in adapters(ROWS):
                tensors: dict[str, Tensor] = {}
                for key, target in chosen.items():
                    weight, part = weight_of(target)
                    rows = shapes[weight][0] if part is None else part[2]
                    tensors |= {f"{key}{end}": t for end, t in adapters(rows)[kind].items()}
                problem = compare(execute, path, tensors, model, clip, kind not in OURS)
                done[name] = done.get(name, 0) + 1
                if problem:
                    wrong.append(f"{name}, {kind}, {next(iter(chosen))}: {problem}")
    return {"files": done, "wrong": wrong}
