"""Who may import whom: samplers <- training <- embedded, nodes. Read from the source; nothing is imported."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACK = "comfyui_tcd"
HOST = {"comfy", "folder_paths", "nodes", "server", "execution", "comfyui_version", "latent_preview"}


class Layer(NamedTuple):
    below: set[str]  # folders of the pack it may import
    packages: (
        set[str] | None
    )  # what may stand at the top of a module besides the standard library; None: anything
    strict: bool  # the same list inside functions too


DEPENDENCIES = {"torch", "safetensors", "peft", "einops", "numpy", "tomli"}
LAYERS = {
    "samplers": Layer(set(), {"torch"}, strict=True),
    "training": Layer({"samplers"}, DEPENDENCIES, strict=False),
    "embedded": Layer({"samplers", "training"}, DEPENDENCIES, strict=False),
    "migrate": Layer({"training"}, set(), strict=True),  # training.text, which needs nothing
    "nodes": Layer({"samplers", "training", "embedded"}, None, strict=False),
}
# The root's own modules: `__init__` may reach the nodes (late), `cli` finds its commands by name, and
# `prestartup_script` runs before ComfyUI imports anything.
ALONE = Layer(set(), set(), strict=True)
ROOT_MODULES = {
    "__init__": Layer({"nodes"}, set(), strict=True),
    "cli": ALONE,
    "prestartup_script": ALONE,
}

LOADERS = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "joblib.load",
    "dill.load",
    "numpy.load",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}


class Import(NamedTuple):
    line: int
    level: int  # 0 absolute, 1 this folder, 2 the root ...
    module: str
    name: str  # of `from module import name`, or ""
    late: bool  # inside a function or under TYPE_CHECKING


def imports(tree: ast.AST, late: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, 0, alias.name, "", late)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.lineno, node.level, node.module or "", alias.name, late)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from imports(ast.Module([child], []), late=True)
            for child in node.orelse:
                yield from imports(ast.Module([child], []), late)
        else:
            yield from imports(
                node, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            )


def import_fault(found: Import, parts: tuple[str, ...], layer: Layer) -> str | None:
    """Why a module at `parts`, such as ("training", "lora"), may not import this; None if it may."""
    if found.level:
        if found.level > len(parts):
            return "a relative import leaves the pack"
        target = (*parts[: -found.level], *filter(None, found.module.split(".")), found.name)
        folder = target[0]
        if folder == parts[0] and len(parts) > 1:
            return None
        if folder not in LAYERS:
            return f"imports the root's {folder!r}"
        return None if folder in layer.below else f"imports {folder}, which is not below it"
    top = found.module.split(".")[0]
    if top == PACK:
        return "imports the pack by name: write it relative"
    if (top in HOST or top.startswith("comfy")) and parts[0] != "nodes":
        return f"imports ComfyUI's {top} outside nodes/"
    if layer.packages is None or top in layer.packages or top in sys.stdlib_module_names:
        return None
    if found.late and not layer.strict:
        return None
    return f"imports {top}" + ("" if layer.strict else " at the top of the module")


def full_name(node: ast.expr, known: dict[str, str]) -> str:
    """`np.load` as `numpy.load`; "" for what is not a dotted name."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, known)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def call_faults(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls that run code: eval and exec, and loaders of pickles under whatever name they were imported."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known.update((a.asname, a.name) for a in node.names if a.asname)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known.update((a.asname or a.name, f"{node.module}.{a.name}") for a in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and full_name(node, known) in LOADERS - {"numpy.load"}:
            yield node.lineno, f"{full_name(node, known)} runs code from the file: use safetensors"
        elif isinstance(node, ast.Call):
            name = full_name(node.func, known)
            unpickles = any(
                k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
                for k in node.keywords
            )
            if name == "numpy.load" and unpickles:
                yield node.lineno, "numpy.load with allow_pickle runs code from the file"
            elif name.removeprefix("builtins.") in BUILTINS:
                yield node.lineno, f"{name} runs code"


def faults(root: Path) -> list[str]:
    """Every breach of the rules in the pack at `root`, as file:line: what."""
    found: list[str] = []
    files = [(path, ROOT_MODULES.get(path.stem)) for path in root.glob("*.py")]
    for name, layer in LAYERS.items():
        files += [(path, layer) for path in (root / name).rglob("*.py")]
    for path, layer in sorted(files):
        where = path.relative_to(root)
        if layer is None:
            found.append(f"{where}:1: is not a known module of the root")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        parts = where.with_suffix("").parts
        problems = [(i.line, import_fault(i, parts, layer)) for i in imports(tree)]
        problems += call_faults(tree)
        found += [f"{where}:{line}: {problem}" for line, problem in sorted({p for p in problems if p[1]})]
    return found


def test_the_pack_keeps_its_layers():
    assert faults(ROOT) == []


def test_every_folder_with_code_is_a_layer():
    folders = {p.parent.name for p in ROOT.glob("*/*.py") if not p.parent.name.startswith(".")}
    assert folders - {"tests", "docs", "benchmarks"} == set(LAYERS)


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("samplers/a.py", "import numpy", "imports numpy"),
        ("samplers/a.py", "def f():\n    import scipy", "imports scipy"),
        ("samplers/a.py", "from ..training import b", "imports training, which is not below it"),
        ("samplers/a.py", "from .. import training", "imports training, which is not below it"),
        ("samplers/deep/a.py", "from ...training import b", "imports training, which is not below it"),
        ("samplers/a.py", "from comfyui_tcd.samplers import b", "imports the pack by name"),
        ("samplers/a.py", "def f():\n    import comfy.utils", "imports ComfyUI's comfy outside nodes/"),
        ("training/a.py", "import diffusers", "imports diffusers at the top"),
        ("training/a.py", "try:\n    import PIL\nexcept ImportError:\n    pass", "imports PIL at the top"),
        ("training/a.py", "class A:\n    import scipy", "imports scipy at the top"),
        ("training/a.py", "from ..embedded import b", "imports embedded, which is not below it"),
        ("training/a.py", "from ..nodes.host import b", "imports nodes, which is not below it"),
        ("training/a.py", "def f():\n    from ..nodes import b", "imports nodes, which is not below it"),
        ("training/a.py", "import nodes", "imports ComfyUI's nodes outside nodes/"),
        ("training/a.py", "import folder_paths", "imports ComfyUI's folder_paths outside nodes/"),
        ("training/a.py", "from server import PromptServer", "imports ComfyUI's server outside nodes/"),
        ("training/a.py", "import execution", "imports ComfyUI's execution outside nodes/"),
        ("embedded/a.py", "from comfy_api.latest import io", "imports ComfyUI's comfy_api outside nodes/"),
        ("embedded/a.py", "from ..cli import main", "imports the root's 'cli'"),
        ("embedded/a.py", "from .. import __version__", "imports the root's '__version__'"),
        ("embedded/a.py", "from ... import b", "leaves the pack"),
        ("nodes/a.py", "from .. import cli", "imports the root's 'cli'"),
        ("nodes/a.py", "from comfyui_tcd import samplers", "imports the pack by name"),
        ("cli.py", "import torch", "imports torch"),
        ("cli.py", "def f():\n    import torch", "imports torch"),
        ("cli.py", "from . import training", "imports training, which is not below it"),
        ("__init__.py", "from .samplers import a", "imports samplers, which is not below it"),
        ("__init__.py", "import comfy", "imports ComfyUI's comfy outside nodes/"),
        ("helpers.py", "", "is not a known module of the root"),
        ("training/a.py", "import torch\ntorch.load('x')", "torch.load runs code"),
        ("training/a.py", "import torch as t\nt.load('x', weights_only=True)", "torch.load runs code"),
        ("training/a.py", "from torch import load as get\nget('x')", "torch.load runs code"),
        ("training/a.py", "import pickle\nread = pickle.loads", "pickle.loads runs code"),
        ("training/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("nodes/a.py", "eval('1')", "eval runs code"),
        ("nodes/a.py", "import builtins\nbuiltins.exec('1')", "builtins.exec runs code"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, file: str, source: str, problem: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    (found,) = faults(tmp_path)
    assert found.startswith(file + ":") and problem in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "samplers/a.py",
            "import math\nimport torch\nfrom torch import nn\nfrom .b import c\nfrom . import b",
        ),
        ("samplers/deep/a.py", "from ..b import c\nfrom . import d"),
        ("training/a.py", "import peft, einops, numpy, safetensors.torch\nfrom ..samplers.tcf import tcf1"),
        ("training/a.py", "def f():\n    import diffusers"),
        ("training/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import diffusers"),
        (
            "embedded/a.py",
            "from ..samplers import a\nfrom ..training.lora import b\nfrom ..training import c",
        ),
        ("nodes/a.py", "import nodes as host_nodes\nimport comfy.samplers\nfrom ..training import a"),
        ("__init__.py", "async def comfy_entrypoint():\n    from .nodes import extension"),
        ("training/a.py", "import numpy as np\nimport re\nnp.load('x', allow_pickle=False)\nre.compile('x')"),
        ("training/a.py", "model.eval()\nmodel.compile()"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    assert faults(tmp_path) == []
