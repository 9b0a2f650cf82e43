"""The key formats of LoRA files, and the layer that a key is about.

A layer has one canonical name, dotted, in whichever of the two naming schemes its file uses (`unet_layers`).
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from .unet_layers import ARCHITECTURES, Architecture, Names, all_layers


class Format(NamedTuple):
    """How a key is made of a canonical name."""

    title: str
    naming: str  # of the UNet: "ldm" or "diffusers"
    flat: bool  # dots become underscores
    unet: str  # prefix
    te: tuple[
        str, str
    ]  # prefixes of the first and second text encoder; "" if the format has no place for them
    down: str
    up: str
    alpha: bool  # has keys for alpha; else it is in the weights


_KOHYA = (".lora_down.weight", ".lora_up.weight", True)
_PEFT = (".lora_A.weight", ".lora_B.weight", False)
FORMATS: dict[str, Format] = {
    "kohya": Format(
        "kohya, diffusers' names", "diffusers", True, "lora_unet_", ("lora_te1_", "lora_te2_"), *_KOHYA
    ),
    "kohya-ldm": Format("kohya, ldm names", "ldm", True, "lora_unet_", ("lora_te1_", "lora_te2_"), *_KOHYA),
    "comfyui": Format(
        "ComfyUI",
        "ldm",
        False,
        "diffusion_model.",
        ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
        *_KOHYA,
    ),
    "peft": Format("peft", "diffusers", False, "base_model.model.", ("", ""), *_PEFT),
    "diffusers": Format(
        "diffusers", "diffusers", False, "unet.", ("text_encoder.", "text_encoder_2."), *_PEFT
    ),
    # Attention before diffusers 0.22 sat in processors; `key` knows.
    "diffusers-old": Format(
        "diffusers, before peft",
        "diffusers",
        False,
        "unet.",
        ("text_encoder.", "text_encoder_2."),
        ".lora.down.weight",
        ".lora.up.weight",
        False,
    ),
}

# What stands before a layer's name in a key, the part of the model it means, and whether the name is flat.
_PREFIXES = (
    ("lora_unet_", "unet", True),
    ("lora_transformer_", "unet", True),
    ("lycoris_", "unet", True),
    ("lora_te1_", "te1", True),
    ("lora_te2_", "te2", True),
    ("lora_te3_", "te3", True),
    ("lora_te_", "te1", True),
    ("text_encoders.clip_l.transformer.", "te1", False),
    ("text_encoders.clip_h.transformer.", "te1", False),
    ("text_encoders.clip_g.transformer.", "te2", False),
    ("text_encoders.", "te", False),  # of another kind than CLIP, which ComfyUI calls by its name
    ("text_encoder_3.", "te3", False),
    ("text_encoder_2.", "te2", False),
    ("text_encoder.", "te1", False),
    ("model.diffusion_model.", "unet", False),
    ("diffusion_model.", "unet", False),
    ("unet.", "unet", False),
    ("transformer.", "unet", False),
    ("", "unet", False),
)
EMBEDDING = "bundle_emb."
"""Before the keys of embeddings that OneTrainer puts into a LoRA file, which no loader reads from there."""
WRAPPER = "base_model.model."  # peft's own, before or after a prefix
_FACTOR = re.compile(
    r"[._]lora(?:_linear_layer)?[._](?P<which>down|up|mid|A|B)(?:\.(?!bias$)[^.]+)??(?:\.weight)?$"
)
_ROLES = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}
# What peft alone writes, in shapes of its own: `formats` brings them into those of the other roles.
_PEFT_ONLY = (
    (re.compile(r"\.lora_embedding_A(?:\.[^.]+)?$"), "embedding_A"),
    (re.compile(r"\.lora_embedding_B(?:\.[^.]+)?$"), "embedding_B"),
    (re.compile(r"\.lora_B(?:\.[^.]+)?\.bias$"), "up_bias"),
    (re.compile(r"\.lora_E(?:\.[^.]+)?$"), "singular"),  # AdaLoRA
    (re.compile(r"\.lora_magnitude_vector(?:\.[^.]+)??(?:\.weight)?$"), "magnitude"),
)
# Of a layer, too: its scale, and what other adapters (LyCORIS, DoRA) and full differences are made of.
_OTHER = re.compile(
    r"\.(?P<role>alpha|dora_scale|reshape_weight|diff|diff_b|set_weight|w_norm|b_norm|"
    r"(?:hada|lokr)_[wt][12](?:_[ab])?|oft_blocks|oft_diag|rescale|a[12]|b[12])(?:\.weight)?$"
)
WEIGHTS = re.compile(r"^(up|embedding_A|hada_w1|lokr_w1|oft_|diff|set_weight|w_norm|[ab][12])")
"""Roles without which a file changes no weight."""
_TE_LAYER = re.compile(
    r"^text_model_encoder_layers_(\d+)_"
    r"(?:(self_attn|mlp)_(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|(layer_norm[12]))$"
)
_TE_OLD = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


_LYCORIS = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    **{role: f"{role}.weight" for role in ("a1", "a2", "b1", "b2")},
}


def split(text: str) -> tuple[str, str] | None:
    """Split a key into (what stands before its suffix, the suffix's role); None if it is no adapter's."""
    if text.startswith(EMBEDDING):
        return None  # whose trigger word may look like a suffix
    if factor := _FACTOR.search(text):
        return text[: factor.start()], _ROLES[factor["which"]]
    for pattern, role in _PEFT_ONLY:
        if found := pattern.search(text):
            return text[: found.start()], role
    if other := _OTHER.search(text):
        return text[: other.start()], other["role"]
    return None


def suffix(role: str) -> str:
    """Name what kohya, LyCORIS and ComfyUI write after a layer's key for a role."""
    return _LYCORIS.get(role, role)


def resolve(raw: str) -> tuple[str, str, bool, str]:
    """(part, canonical name, whether the name is known, prefix) of a key without its suffix."""
    bare, wrapped = raw.removeprefix(WRAPPER), raw.startswith(WRAPPER)
    prefix, part, flat = next(p for p in _PREFIXES if bare.startswith(p[0]))
    bare = bare.removeprefix(prefix)
    if bare.startswith(WRAPPER):
        bare, wrapped = bare.removeprefix(WRAPPER), True
    prefix = WRAPPER if wrapped else prefix
    if part == "unet" and bare.startswith(("text_model.", "encoder.layers.")):
        part = "te1"  # a peft file of a text encoder alone
    if part == "unet":
        name = _unet_name(bare) if flat else _plain_attention(bare)
        return part, name, name in known_names(), prefix
    name = _te_name(bare, flat)
    known = part in ("te1", "te2") and name.startswith("text_model.encoder.layers.")
    return part, name, known, prefix


def _unet_name(flat: str) -> str:
    """Give the dotted name of a flat one. In those that diffusers makes, the last dot can be left:
    `..._attn1.to_q.lora_magnitude_vector` beside `..._attn1_to_q.lora_down.weight`.
    """
    flat = flat.replace(".", "_")
    return _flat_names().get(flat, flat)


def _plain_attention(name: str) -> str:
    """Without the processors of old diffusers: `attn1.processor.to_out` is `attn1.to_out.0`."""
    name = name.replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def _te_name(name: str, flat: bool) -> str:
    if flat:
        found = _TE_LAYER.match(name.replace(".", "_"))
        inner = found and (found[4] or f"{found[2]}.{found[3]}")
        return f"text_model.encoder.layers.{found[1]}.{inner}" if found else name
    if name.startswith("encoder.layers."):
        name = f"text_model.{name}"
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_TE_OLD[last]}" if last in _TE_OLD else name


def style(prefix: str, text: str, name: str) -> str:
    """The format of a key by its prefix and suffix."""
    if prefix.endswith("_"):
        return "kohya-ldm" if name in _ldm_names() else "kohya"
    if "diffusion_model." in prefix or prefix.startswith("text_encoders."):
        return "comfyui"
    if prefix == WRAPPER:
        return "peft"
    old = re.search(r"[._]lora(_linear_layer)?\.(down|up)\.", text)
    if old or ".processor." in text:
        return "diffusers-old"
    if name in _ldm_names() and re.search(r"lora_(down|up)", text):
        return "comfyui"
    return "diffusers"


def naming(name: str) -> str:
    return "ldm" if name in _ldm_names() else "diffusers"


@cache
def table(unet: Architecture) -> dict[str, Names]:
    """Layers by either name."""
    return {name: row for row in all_layers(unet) for name in (row.ldm, row.diffusers)}


@cache
def known_names() -> frozenset[str]:
    return frozenset(name for a in ARCHITECTURES for name in table(a))


@cache
def _ldm_names() -> frozenset[str]:
    return frozenset(row.ldm for a in ARCHITECTURES for row in all_layers(a))


@cache
def _flat_names() -> dict[str, str]:
    return {name.replace(".", "_"): name for name in known_names()}


def te_prefix(fmt: Format, second: bool, alone: bool, sd2: bool) -> str:
    """What stands before a text encoder's layers; `alone` where the model has one text encoder."""
    prefix = fmt.te[second] or WRAPPER
    if alone and fmt.flat:
        return "lora_te_"
    return prefix.replace("clip_l", "clip_h") if sd2 else prefix


def key(base: str, role: str, fmt: Format) -> str:
    """Make the key of one tensor of a layer from the layer's key without a suffix."""
    if role == "dora_scale" and fmt.down == _PEFT[0]:
        return f"{base}.lora_magnitude_vector"
    if role not in ("down", "up"):
        return f"{base}.{suffix(role)}"
    end = fmt.down if role == "down" else fmt.up
    if end.startswith(".lora."):  # diffusers before peft
        if base.startswith("text_encoder"):
            return base + end.replace(".lora.", ".lora_linear_layer.")
        attention = re.search(r"\.(to_[qkv]|to_out)(\.0)?$", base)
        if attention:
            return f"{base[: attention.start()]}.processor.{attention[1]}_lora{end[5:]}"
    return base + end
