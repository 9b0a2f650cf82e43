"""What there is to say about a LoRA file, as lines of text; for `tcd inspect` and for the loader node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .formats import FORMATS, Layer, LoraFile
from .known_loras import Advice, advice
from .lora_bases import contradiction, said
from .lora_keys import EMBEDDING

_FACTOR = re.compile(r"(up|down|mid$|hada_[wt]|lokr_[wt])")
# Scales outside of this are told. Kohya's default alpha of 1 gives 1/rank; rsLoRA at rank 128 gives 11.
LEAST, MOST = 1 / 1024, 16.0

# What the LCM recipe adapts, and the published LCM and TCD LoRAs with it: at rank 64, without text encoders.
_PUBLISHED = re.compile(r"(conv1|in_layers\.2|downsamplers\.0\.conv|0\.op|time_emb_proj|emb_layers\.1)$")


def base(file: LoraFile) -> str:
    """Say in words which models it may be for."""
    told = said(file.metadata) or file.metadata.get("tcd.teacher")
    if not file.bases and told:
        return f"{told} (by its metadata)"
    return " or ".join(file.bases) or "unknown"


def key_format(file: LoraFile) -> str:
    return " and ".join(FORMATS[f].title for f in file.formats)


def span(values: Iterable[float | None], none: str = "none") -> str:
    """`64`, or `4 to 64`."""
    all_of = list(values)
    known = sorted({v for v in all_of if v is not None})
    if not known:
        return none
    text = f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
    missing = sum(v is None for v in all_of)
    return f"{text}, {none} in {missing} of {len(all_of)} layers" if missing else text


def kinds(file: LoraFile) -> str:
    """What the layers are, where they are more than plain LoRA."""
    odd = Counter(role for x in file.layers for role in set(x.tensors) - {"down", "up", "alpha"})
    return ", ".join(f"{role} in {n}" for role, n in sorted(odd.items()))


def remarks(file: LoraFile) -> list[str]:
    """What a user should know that is no fact in a row."""
    found: list[str] = []
    if file.needs_target:
        found.append("TCF(S+) student: works with TCD Sampler and tcd_sss only, which tell it the time s")
    if other := contradiction(file.bases, file.metadata):
        found.append(f"the metadata names {other}, which these layers are not of")
    found += faults(file)
    if words := sorted(
        {k.removeprefix(EMBEDDING).rsplit(".", 1)[0] for k in file.extra if k.startswith(EMBEDDING)}
    ):
        found.append(
            f"OneTrainer put the embedding of {', '.join(words)} into it, which ComfyUI does not read from a "
            "LoRA file; have OneTrainer save it as a file of its own, for models/embeddings"
        )
    others = [k for k in file.extra if not k.startswith(("tcd_s_embed.", EMBEDDING))]
    if others:
        found.append(f"{len(others)} tensors belong to no layer, such as {others[0]}")
    said = file.metadata.get("ss_network_alpha", "None")
    ranks = span(x.rank for x in file.layers)
    if said not in ("None", ranks, f"{ranks}.0") and all(x.alpha is None for x in file.layers if x.rank):
        found.append(
            f"the metadata names alpha {said} at rank {ranks}, but no layer has one: it has no effect"
        )
    if unsaid := [x for x in file.layers if x.style == "peft" and not x.scale_known]:
        found.append(
            f"peft keeps alpha in adapter_config.json, which is not beside this file: {len(unsaid)} layers "
            "are taken with scale 1; if the training had another, put both files into a folder of their own"
        )
    if advice(file) is None and _looks_published(file):
        found.append(
            "shaped like the published LCM and TCD LoRAs, which share a file name; put lcm or tcd into the "
            "name of the file or its folder to be told the settings"
        )
    return found


def faults(file: LoraFile) -> list[str]:
    """Say what is wrong with a file's numbers: NaN, layers without effect, scales that nobody uses.

    Reads every tensor, about a second per GB.
    """
    found: list[str] = []
    broken = [x for x in file.layers if not all(map(_finite, x.tensors.values()))]
    if broken:
        found.append(
            f"{_some(broken, file)} hold NaN or infinity, and give black pictures or noise: the training "
            "diverged, or overflowed in half precision; take an earlier save of it"
        )
    empty = [x for x in file.layers if _without_effect(x)]
    if len(empty) == len(file.layers):
        found.append(
            "every layer has a factor of zeros: it changes nothing, as before its first step of training"
        )
    elif empty:
        found.append(f"{_some(empty, file)} have a factor of zeros and change nothing")
    if silent := [x for x in file.layers if x.rank and x.alpha == 0]:
        found.append(f"{_some(silent, file)} have alpha 0, so the scale is 0 and they change nothing")
    if odd := [x for x in file.layers if x.scale < 0 or x.scale > MOST or 0 < x.scale < LEAST]:
        found.append(
            f"{_some(odd, file)} have a scale (alpha / rank) of {span(x.scale for x in odd)}; 1/128 to 2 "
            "is usual; if pictures are destroyed or do not change, correct it by strength"
        )
    return found


def _some(layers: Sequence[Layer], file: LoraFile) -> str:
    return f"{len(layers)} of {len(file.layers)} layers, such as {layers[0].name},"


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    wide = tensor if tensor.element_size() > 1 else tensor.float()  # float8 has no isfinite
    return bool(torch.isfinite(wide).all())


def _without_effect(layer: Layer) -> bool:
    """Whether a factor of a product is zero. DoRA changes a weight even then."""
    factors = [t for role, t in layer.tensors.items() if _FACTOR.match(role)]
    return "dora_scale" not in layer.tensors and any(not bool(t.any()) for t in factors if t.numel())


def _looks_published(file: LoraFile) -> bool:
    names = {m[1] for x in file.unet if (m := _PUBLISHED.search(x.name))}
    return {x.rank for x in file.layers} == {64} and not file.text_encoders and len(names) >= 3


def recommended(tip: Advice) -> str:
    return f"{tip.title}: {tip} [{tip.source}]"


def lines(file: LoraFile) -> list[tuple[str, str]]:
    """All of it, as (label, text)."""
    rows = [
        ("file", str(file.path)),
        ("base model", base(file)),
        ("key format", key_format(file)),
        ("layers", f"{len(file.unet)} of the UNet, {len(file.text_encoders)} of text encoders"),
        ("keys", str(file.keys)),
        ("rank", span(x.rank for x in file.layers)),
        ("alpha", span((x.alpha for x in file.layers), "none (scale 1)")),
        ("scale", span(x.scale for x in file.layers)),
        ("dtype", ", ".join(sorted({str(t.dtype)[6:] for x in file.layers for t in x.tensors.values()}))),
    ]
    if more := kinds(file):
        rows.append(("more than LoRA", more))
    tip = advice(file)
    rows.append(("recommended", recommended(tip) if tip else "nothing known"))
    if hint := file.metadata.get("modelspec.usage_hint"):
        rows.append(("its own hint", hint))
    return rows + [("note", text) for text in remarks(file)]
