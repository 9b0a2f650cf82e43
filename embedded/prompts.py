"""Word prompts for the avatars: text to slot values and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np

from .avatars import SLOT, SLOTS, UNSPECIFIED, Labels

_NO = re.compile(r"\b(?:no|without)\b")


def _vocabulary() -> dict[str, list[tuple[int, int]]]:
    """Phrase -> the slot values that it names. "short black hair" is learnt as both of its slots."""
    table: dict[str, list[tuple[int, int]]] = {}
    for i, slot in enumerate(SLOTS):
        for value, phrase in enumerate(slot.phrases, start=1):
            table[phrase] = [(i, value)]
    length, hair = SLOTS[SLOT["length"]], SLOTS[SLOT["hair"]]
    for a, cut in enumerate(length.phrases, start=1):
        for b, colour in enumerate(hair.phrases, start=1):
            both = [(SLOT["length"], a), (SLOT["hair"], b)]
            table[f"{cut.removesuffix(' hair')} {colour}"] = both
    for mood in ("happy", "sad"):
        table[mood] = table[f"{mood} person"]
    return table


VOCABULARY = _vocabulary()


def known_words() -> str:
    """The words, slot by slot, for messages and help."""
    return "; ".join(f"{slot.name}: {', '.join(slot.phrases)}" for slot in SLOTS)


def parse(prompt: str) -> list[int]:
    """Slot values of one prompt, e.g. "happy person, short black hair, glasses". The empty prompt leaves all
    unspecified.

    Raises ValueError for a phrase that is not known (with the nearest ones and the whole list) and for
    contradictions.
    """
    values = [UNSPECIFIED] * len(SLOTS)
    said: dict[int, str] = {}
    for raw in prompt.lower().split(","):
        phrase = " ".join(raw.split()).removeprefix("a ").removeprefix("an ")
        if not phrase or phrase == "person":
            continue
        if _NO.match(phrase):
            phrase = "no " + _NO.sub("", phrase).strip()
        if phrase not in VOCABULARY:
            near = difflib.get_close_matches(phrase, VOCABULARY, n=3)
            hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise ValueError(
                f"prompt: unknown phrase {phrase!r}.{hint} Known, separated by commas: {known_words()}"
            )
        for slot, value in VOCABULARY[phrase]:
            if values[slot] not in (UNSPECIFIED, value):
                raise ValueError(f"prompt: {phrase!r} contradicts {said[slot]!r}; keep one of them")
            values[slot], said[slot] = value, phrase
    return values


def parse_all(prompts: Sequence[str]) -> Labels:
    """`[B, 9]` slot values; refuses an empty list."""
    if not prompts:
        raise ValueError(
            "prompts: the list is empty; give at least one line (an empty line is the empty prompt)"
        )
    return np.array([parse(p) for p in prompts], np.int64)


def describe(values: Sequence[int] | Labels) -> str:
    """The prompt that `parse` reads back to the same values."""
    phrases = [slot.phrases[v - 1] for slot, v in zip(SLOTS, values, strict=True) if v != UNSPECIFIED]
    return ", ".join(phrases)
