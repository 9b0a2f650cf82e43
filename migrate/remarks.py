"""What the command says of a graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .table import LICYK, NAMES, NEW_NAME, OUR_NODES, RULES, SELECT, STRANGERS, Rule

CHOOSE = f"If it is the sampler of {LICYK}, choose {NEW_NAME} and put a TCD Settings before its model"
TCD = re.compile(r"TCD|(?<![A-Za-z])tcd", re.ASCII)


class Remark(NamedTuple):
    """Of one node."""

    node: str  # as the graph numbers it, with its subgraph
    type: str
    text: str
    by_hand: bool = False  # it has no equal, or was left as it is
    graph: str = ""  # where it is in a file that holds several

    def __str__(self) -> str:
        where = f"{self.graph}: " if self.graph else ""
        node = f"node {self.node} ({self.type})" if self.node else self.type
        return f"{'by hand: ' if self.by_hand else ''}{where}{node}: {self.text}"


def replaced(node: str, rule: Rule, old: Mapping[str, list[Any]]) -> list[Remark]:
    """Says what a rule made of a node.

    `old`: by widget the values that it has, several in a subgraph that is used several times, none if it
    comes from another node."""
    new = ", ".join(entry.type for entry in rule.new)
    found = [Remark(node, rule.old, f"is {new} now. {rule.difference}")]
    for odd in rule.unequal:
        if not old[odd.input]:
            text = f"its {odd.input} comes from another node; this has no equal unless it is "
            equal = odd.equal if not isinstance(odd.equal, range) else [f"{odd.equal[0]} to {odd.equal[-1]}"]
            found.append(Remark(node, rule.old, f"{text}{equal[0]}: {odd.remedy}", by_hand=True))
        for value in dict.fromkeys(x for x in old[odd.input] if x not in odd.equal):
            text = f"{odd.input} {value!r} has no equal: {odd.remedy}"
            found.append(Remark(node, rule.old, text, by_hand=True))
    return found


def renamed(node: str, kind: str, name: str) -> Remark:
    """Says what became of a host's node that chose another pack's sampler by its name."""
    new = (
        "the node is TCD_Sampler" if kind == SELECT else f"is {NEW_NAME} and a TCD_Settings before the model"
    )
    return Remark(node, kind, f"{name}: {new} now, with gamma 0.3. {NAMES[name].difference}")


def unconnected(node: str, kind: str) -> Remark:
    """Says that a replaced node had no model to pass on."""
    text = "its model is not connected, so what took its MODEL output has no model now: connect one"
    return Remark(node, kind, text, by_hand=True)


def left(node: str, kind: str, name: str) -> Remark:
    """Names a node that is not known and has one of the names among its widgets."""
    text = f"has {name!r} among its settings and is left as it is, for it is no node that this command knows"
    return Remark(node, kind, f"{text}. {CHOOSE}", by_hand=True)


def chosen_elsewhere(node: str, kind: str, name: str) -> Remark:
    """Names a host's sampler whose sampler name is computed by another node."""
    text = f"its sampler_name comes from another node, which may choose {name!r}, and is left as it is"
    return Remark(node, kind, f"{text}. {CHOOSE}", by_hand=True)


def chosen_sometimes(node: str, kind: str, names: Iterable[str]) -> Remark:
    """Names a host's sampler inside a subgraph that is used with several sampler names, ours and not."""
    text = (
        f"its subgraph is used with the sampler names {', '.join(map(repr, names))}, and is left as it is: a "
        "TCD Settings before its model would change all. Make a copy of the subgraph for the uses that are "
        "not TCD, and run this command again"
    )
    return Remark(node, kind, text, by_hand=True)


def without_sampling(node: str, kind: str, setter: str) -> Remark:
    """Says that a node before a replaced one is passed by; `setter`: its type and number."""
    text = f"its model passes {setter} by now, which had no effect there: the old node set the sampling anew"
    return Remark(node, kind, text)


def with_sampling(node: str, kind: str, setter: str) -> Remark:
    """Names a node before a replaced one, whose effect the old node undid and the new ones do not."""
    text = (
        f"its model comes from {setter}, which sets how it is sampled. The old node replaced that, and the "
        "new ones obey it: give TCD Scheduler and the sampler the model from before that node"
    )
    return Remark(node, kind, text, by_hand=True)


def gone(node: str, kind: str, widget: str) -> Remark:
    """Says that a subgraph's face lost a control."""
    return Remark(node, kind, f"{widget} is no longer on its face, for nothing inside has it now")


def grouped(node: str, kind: str, held: Iterable[str]) -> Remark:
    """Names a group node of the old kind that holds what this command would replace."""
    text = (
        f"is a group node with {', '.join(held)} inside, and left as it is: which of its inputs and values "
        "belong to which node inside only ComfyUI knows. Open the file there with the other pack installed "
        "(a current ComfyUI makes group nodes into subgraphs as it opens it; in an older one, right-click "
        "the node and choose Convert to nodes), see that the settings inside are right (the page may shift "
        "those behind a list), save it, and run this command again"
    )
    return Remark(node, kind, text, by_hand=True)


def speaks(kind: str) -> bool:
    """Whether a word such as tcd in it may be a sampler's name: not in prompts, notes and our own nodes."""
    return kind not in OUR_NODES and kind not in ("CLIPTextEncode", "Note", "MarkdownNote")


def stranger(kind: str) -> bool:
    """Tell whether it may be a TCD node of yet another pack."""
    return TCD.search(kind) is not None and kind not in RULES and kind not in OUR_NODES


def unknown(node: str, kind: str) -> Remark:
    """Names a node of yet another pack."""
    if kind in STRANGERS:
        return Remark(node, kind, f"is left as it is: a node of {STRANGERS[kind]}", by_hand=True)
    text = "has TCD in its name and is left as it is, for it is no node that this command knows"
    return Remark(node, kind, text, by_hand=True)
