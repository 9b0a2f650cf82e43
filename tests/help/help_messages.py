"""The messages of the sources: what is raised or warned, with ... for what is filled in."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from help_nodes import ROOT

FOLDERS = ("nodes", "training", "samplers")
OURS = {"AssertionError", "SystemExit", "ArgumentTypeError"}
"""Not for users of the nodes: our own invariants, and the command line's."""


def templates() -> Iterator[tuple[str, str]]:
    """(folder/module, message) in the order of the sources."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                for text in _messages(node):
                    if fragment(text):
                        yield f"{folder}/{path.stem}", text.strip()


def fragment(template: str) -> str:
    """The longest part that nothing is filled into; "" where too little is left to find a message by."""
    longest = max((part.strip() for part in template.split("...")), key=len)
    return longest if len(longest) > 9 else ""


def _messages(node: ast.AST) -> Iterator[str]:
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call):
        return
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if (isinstance(node, ast.Raise) and name not in OURS) or name == "warning":
        for argument in call.args:
            if isinstance(argument, ast.JoinedStr):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in argument.values)
            elif isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield argument.value
