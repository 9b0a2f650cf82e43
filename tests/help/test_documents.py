"""docs/formats.md and the changelog name what there is, and every document that others refer to is there."""

from __future__ import annotations

import re

import torch
from help_nodes import ROOT, recorded

from comfyui_tcd.cli import COMMANDS
from comfyui_tcd.training.about import about
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.distill import BEST, CHECKPOINT, LORA

FORMATS = (ROOT / "docs" / "formats.md").read_text("utf-8")


def test_every_node_and_every_key_of_metadata_is_in_the_formats():
    unnamed = [node for node in recorded() if f"`{node}`" not in FORMATS]
    written = about(DistillConfig(), torch.nn.Linear(1, 1), (4, 8, 8), "name")
    unnamed += [key for key in written if f"`{key}`" not in FORMATS]
    unnamed += [name for name in (BEST, CHECKPOINT, LORA) if f"`{name}`" not in FORMATS]
    assert unnamed == []


def test_no_key_is_described_that_is_not_written():
    known = {*about(DistillConfig(), torch.nn.Linear(1, 1), (4, 8, 8), "name")}
    known |= {f"tcd.{name}" for name in DistillConfig().as_dict()}
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "nodes").glob("*.py"))
    code += (ROOT / "training" / "about.py").read_text("utf-8")
    code += (ROOT / "training" / "recorder.py").read_text("utf-8")
    named = re.findall(r"`((?:ss_|modelspec\.|tcd\.)\w+)`", FORMATS)
    assert len(named) > 20
    assert [key for key in named if key not in known and f'"{key}"' not in code] == []


def test_links_between_the_documents_lead_somewhere():
    broken: list[str] = []
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def test_the_changelog_has_every_node_and_command():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    names = [*recorded(), *COMMANDS]
    assert [name for name in names if f"`{name}`" not in text] == []
