"""References in documents, docstrings and comments lead somewhere.

They name files and what is defined in them (`samplers/tcf.py:tcf1`), sections, equations and algorithms of
docs/method.md, and defects of docs/known-defects.md. Blocks of commands in documents are not read.

A path is one of this repository unless it begins with a name of `OTHERS`. So write a file of another project
with the project or its package in front: `ComfyUI/nodes.py`, `comfy/samplers.py`. NAME in a path is any
name. Write an equation of another paper with that paper's number: "Eq. 9 of arXiv 2211.01095".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from help_nodes import ROOT

OTHERS = {
    "ComfyUI",
    "comfy",
    "comfy_api",
    "comfy_extras",
    "custom_nodes",
    "diffusers",
    "kohya",
    "main.py",  # ComfyUI's, by which its users know the folder
    "peft",
    "torch",
}
OUTPUT = {"__pycache__", "build", "dist", "runs", "demo-output", "node_modules"}

NUMBERS = r"(\d+(?:\.\d+)?(?:(?:,| and|, and) \d+(?:\.\d+)?)*)"
FILE = re.compile(
    r"(?<![\w/.:<>{}*$~@-])((?:[\w.-]+/)*[\w-]+\.(?:py|mjs|js|md|yml))(?!\w|/|\.\w)(?::([a-zA-Z_][\w.]*\w))?"
)
FOLDER = re.compile(r"`([\w.-]+/[\w./-]*)`")
SECTIONS = re.compile(rf"method\.md[`)]* {NUMBERS}")
PAPER = re.compile(rf"\b(Eq|Equation|Algorithm)s?\.? \(?{NUMBERS}(?!\)? of arXiv)", re.IGNORECASE)
DEFECT = re.compile(r"\bB[1-9]\d?\b")


class Prose(NamedTuple):
    """A page, a docstring or a block of comments; its file, seen from the root, and its first line there."""

    path: Path
    line: int
    text: str


@cache
def files() -> list[str]:
    """List the files and folders of the repository, sorted: paths from its root, with "/"."""
    tops = [p for p in ROOT.iterdir() if kept(p.name)]
    found = [p.relative_to(ROOT) for top in tops for p in (top, *top.rglob("*"))]
    return sorted(p.as_posix() for p in found if all(kept(part) for part in p.parts))


def kept(name: str) -> bool:
    return name not in OUTPUT and (name == ".github" or not name.startswith("."))


@cache
def listed(page: str, pattern: str) -> set[str]:
    """Collect the first group of `pattern`, matched at the beginning of lines, from a page of docs/."""
    return set(re.findall(rf"^{pattern}", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE))


def sections() -> set[str]:
    return listed("method.md", r"#{2,3} (\d+(?:\.\d+)?)\.? ")


def of_the_paper() -> set[str]:
    return listed("method.md", r"\| (Eq\. \d+|Algorithm \d+) \|")


def defects() -> set[str]:
    return listed("known-defects.md", r"\| (B\d+) \|")


def resolve(name: str, beside: Path) -> str | None:
    """Find a path as it stands in a file of the folder `beside`; return it from the root, or None.

    It may begin in that folder or in the root. If its first part is no folder of the root, it may begin in
    any other folder too: comments often give a file's name alone.
    """
    name = name.rstrip("/")
    near = (ROOT / beside / name).resolve()
    if near.is_relative_to(ROOT) and near.relative_to(ROOT).as_posix() in files():
        return near.relative_to(ROOT).as_posix()
    if name in files():
        return name
    if "/" in name and name.split("/")[0] in files():
        return None
    return next((f for f in files() if f.endswith(f"/{name}")), None)


@cache
def names_in(path: str) -> set[str]:
    """Collect the functions, classes and assigned names of a Python file, methods and fields included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def broken(prose: Prose) -> Iterator[str]:
    """Yield each reference in `prose` that leads nowhere."""
    text = re.sub(r"\s+(?:# )?\s*", " ", prose.text)  # a reference may go on in the next line
    yield from broken_paths(text, prose.path.parent)
    for numbers in SECTIONS.findall(text):
        yield from (f"method.md {n}" for n in split(numbers) if n not in sections())
    for kind, numbers in PAPER.findall(text):
        label = "Algorithm" if kind.lower() == "algorithm" else "Eq."
        yield from (f"{label} {n}" for n in split(numbers) if f"{label} {n}" not in of_the_paper())
    yield from (number for number in DEFECT.findall(text) if number not in defects())


def broken_paths(text: str, beside: Path) -> Iterator[str]:
    for name, inside in FILE.findall(text):
        if name.split("/")[0] in OTHERS or "NAME" in name:
            continue
        path = resolve(name, beside)
        if path is None:
            yield name
        elif inside and path.endswith(".py") and not names_in(path).issuperset(inside.split(".")):
            yield f"{name}:{inside}"
    for name in FOLDER.findall(text):
        if name.split("/")[0] in files() and resolve(name, Path()) is None and not FILE.search(name):
            yield name


def split(numbers: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", numbers)


def all_prose() -> Iterator[Prose]:
    for path in map(Path, files()):
        if path.suffix == ".md":
            page = (ROOT / path).read_text("utf-8")
            yield Prose(path, 1, re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL))
        elif path.suffix == ".py":
            yield from prose_of_python(path, (ROOT / path).read_text("utf-8"))


def prose_of_python(path: Path, code: str) -> Iterator[Prose]:
    """Yield the docstrings, those after constants too, and the comments, each block of them as one."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield Prose(path, node.lineno, text)
            case _:
                pass
    block = Prose(path, 0, "")
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            if block.text and token.start[0] == block.line + 1 + block.text.count("\n"):
                block = block._replace(text=f"{block.text}\n{token.string}")
            else:
                yield block
                block = Prose(path, token.start[0], token.string)
    yield block


def test_every_reference_leads_somewhere():
    found = [f"{p.path}:{p.line}: {name}" for p in all_prose() for name in broken(p)]
    assert found == []


def test_every_defect_names_a_test():
    rows = (ROOT / "docs" / "known-defects.md").read_text("utf-8").split("\n| B")[1:]
    assert [row for row in rows if not re.search(r"`tests/[\w/]+\.py:\w+`", row)] == []
    assert len(rows) == len(defects()) > 20


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see `samplers/predictions.py`", "samplers/predictions.py"),
        ("sampler/tcf.py has it", "sampler/tcf.py"),
        ("samplers/test_tcf.py tests it", "samplers/test_tcf.py"),
        ("as `tfc.py` does", "tfc.py"),
        ("[gone](../gone.md)", "../gone.md"),
        ("see `samplers/tcf.py:tcf3`", "samplers/tcf.py:tcf3"),
        ("`samplers/levels.py:Level.mal` of it", "samplers/levels.py:Level.mal"),
        ("in `samplers/forms/`", "samplers/forms/"),
        ("written down (method.md 7)", "method.md 7"),
        ("(method.md 4,\n6.66)", "method.md 6.66"),
        ("`docs/method.md` 2 and 6.9", "method.md 6.9"),
        ("by Eq. 99", "Eq. 99"),
        ("Eqs. 21 and 98", "Eq. 98"),
        ("equation (97)", "Eq. 97"),
        ("Algorithm 9", "Algorithm 9"),
        ("guards against B1, B77", "B77"),
    ],
)
def test_a_made_up_reference_is_found(text: str, wrong: str):
    here = Path("samplers/made_up.py")
    assert list(broken(Prose(here, 1, text))) == [wrong]
    comment = "".join(f"    # {line}\n" for line in text.split("\n"))
    for code in (f'X = 1\n"""{text}"""\n', f'def f():\n    """{text}"""\n', f"if True:\n{comment}    pass\n"):
        assert [name for p in prose_of_python(here, code) for name in broken(p)] == [wrong]


@pytest.mark.parametrize(
    "text",
    [
        "`samplers/tcf.py:tcf1`, `levels.py:Level.lam`, docs/gamma.md:figures and `training/`",
        "[a page](../docs/gamma.md#figures), `tests/oracles.py`: as it is there",
        "(method.md 4, 6.2), method.md 1 and 2. 50 steps",
        "Eqs. 21 and 22; Algorithm 4; Eq. 9 of arXiv 2211.01095",
        "B1 and B28, B023 of the linter, SDXL-B",
        "`comfy/samplers.py`, ComfyUI/nodes.py, `diffusers/schedulers/scheduling_tcd.py`, its main.py",
        "https://example.org/a/nothing.md `output/tcd_training/RUN_NAME` `*.py` `test_NAME.py`",
    ],
)
def test_good_references_and_those_of_other_projects_pass(text: str):
    assert list(broken(Prose(Path("samplers/made_up.py"), 1, text))) == []
