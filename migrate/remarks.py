"""What the command says of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .table import LICYK, NAMES, NEW_NAME, OURS, RULES, SELECT, Rule


class Remark(NamedTuple):
    """Of one node."""

    node: str  # as the graph numbers it, with its subgraph
    type: str
    text: str
    by_hand: bool = False  # it has no equal, or was left as it is

    def __str__(self) -> str:
        return f"{'by hand: ' if self.by_hand else ''}node {self.node} ({self.type}): {self.text}"


def replaced(node: str, rule: Rule, old: Mapping[str, Any], linked: Iterable[str]) -> list[Remark]:
    """Of a node that a rule has replaced; `old`: its widgets, `linked`: those that come from other nodes."""
    new = ", ".join(entry.type for entry in rule.new)
    found = [Remark(node, rule.old, f"is {new} now. {rule.difference}")]
    for odd in rule.unequal:
        if odd.input in linked:
            text = f"its {odd.input} comes from another node; this has no equal unless it is "
            equal = odd.equal if not isinstance(odd.equal, range) else [f"{odd.equal[0]} to {odd.equal[-1]}"]
            found.append(Remark(node, rule.old, f"{text}{equal[0]}: {odd.remedy}", by_hand=True))
        elif old[odd.input] not in odd.equal:
            text = f"{odd.input} {old[odd.input]!r} has no equal: {odd.remedy}"
            found.append(Remark(node, rule.old, text, by_hand=True))
    return found


def renamed(node: str, kind: str, name: str) -> Remark:
    new = (
        "the node is TCD_Sampler" if kind == SELECT else f"is {NEW_NAME} and a TCD_Settings before the model"
    )
    return Remark(node, kind, f"{name}: {new} now, with gamma 0.3. {NAMES[name].difference}")


def unconnected(node: str, kind: str) -> Remark:
    text = "its model is not connected, so what took its MODEL output has no model now: connect one"
    return Remark(node, kind, text, by_hand=True)


def left(node: str, kind: str, name: str) -> Remark:
    """A node that is not known has one of the names among its widgets."""
    text = (
        f"has {name!r} among its settings and is left as it is, for it is no node that this command knows. "
        f"If it is the sampler of {LICYK}, choose {NEW_NAME} and put a TCD Settings before its model"
    )
    return Remark(node, kind, text, by_hand=True)


def speaks(kind: str) -> bool:
    """Whether a word such as tcd in it may be a sampler's name: not in prompts, notes and our own nodes."""
    return not kind.startswith("TCD_") and kind not in ("CLIPTextEncode", "Note", "MarkdownNote")


def stranger(kind: str) -> bool:
    """Whether it is a TCD node of yet another pack."""
    return "TCD" in kind and kind not in RULES and kind not in OURS and not kind.startswith("TCD_")


def unknown(node: str, kind: str) -> Remark:
    text = "is a TCD node of a pack that this command does not know, and left as it is"
    return Remark(node, kind, text, by_hand=True)
