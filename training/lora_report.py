"""What there is to say about a LoRA file, as lines of text; for `tcd inspect` and for the loader node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .formats import FORMATS, LoraFile
from .known_loras import Advice, advice
from .lora_bases import contradiction, said

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
    others = [k for k in file.extra if not k.startswith("tcd_s_embed.")]
    if others:
        found.append(f"{len(others)} tensors belong to no layer, such as {others[0]}")
    said = file.metadata.get("ss_network_alpha", "None")
    ranks = span(x.rank for x in file.layers)
    if said not in ("None", ranks, f"{ranks}.0") and all(x.alpha is None for x in file.layers if x.rank):
        found.append(
            f"the metadata names alpha {said} at rank {ranks}, but no layer has one: it has no effect"
        )
    if advice(file) is None and _looks_published(file):
        found.append(
            "shaped like the published LCM and TCD LoRAs, which share a file name; put lcm or tcd into the "
            "name of the file or its folder to be told the settings"
        )
    return found


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
