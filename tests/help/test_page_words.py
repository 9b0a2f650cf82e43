"""What the server says on our widgets is translated in the page (web/words.mjs): all of it, nothing else."""

from __future__ import annotations

import ast
import re

from help_nodes import ROOT

from comfyui_tcd.training.known_loras import KNOWN
from comfyui_tcd.training.memory import Plan

TOLD = (ROOT / "web" / "words.mjs").read_text("utf-8").partition("export const TOLD")[2]
TEMPLATES = set(re.findall(r'^    "(.+?)":', TOLD, re.MULTILINE))
SOURCES = ("nodes/progress.py", "nodes/distill.py", "nodes/routes.py", "training/known_loras.py")


def said(path: str) -> set[str]:
    """The texts that are set as the message of a run, and those that answer a question of the page."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Assign):
            names = {
                at.attr for target in node.targets for at in ast.walk(target) if isinstance(at, ast.Attribute)
            }
            values = node.value.elts[-1:] if isinstance(node.value, ast.Tuple) else [node.value]
            found |= {template(value) for value in values if "message" in names}
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            found |= {template(value) for value in node.values if keys == ["error"]}
    return {text for text in found if text.strip(".")}


def template(node: ast.expr) -> str:
    """A text with ... for what is filled in; "" for another expression."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_every_note_of_a_lora_is_translated():
    assert {row.advice.note for row in KNOWN} - TEMPLATES == set()


def test_every_message_of_a_run_is_translated():
    texts = said("nodes/progress.py") | said("nodes/distill.py") | said("nodes/routes.py")
    assert {"stopped; queue it again to go on", "saved as loras/..."} <= texts
    assert (
        texts - TEMPLATES - {"no run of this node yet"} == set()
    )  # an address for programs, not for the page


def test_the_plan_of_a_run_is_translated():
    for recompute in (False, True):
        text = re.sub(r"[\d.]+", "...", str(Plan(recompute, batch=2, accumulation=1, need=1 << 28)))
        assert text in TEMPLATES


def test_no_translated_text_is_gone():
    code = "".join((ROOT / path).read_text("utf-8") for path in (*SOURCES, "training/memory.py"))
    parts = {part.strip() for text in TEMPLATES for part in re.split(r"\.\.\.|[,;]", text)}
    assert {part for part in parts if part not in code} == set()
