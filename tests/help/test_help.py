"""The help of every node in every language: nothing missing, nothing stale, as the sources say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from help_nodes import ROOT, recorded
from make_help import LANGUAGES, LOCALES, NUMBERS, PAGES, SECTIONS, ends, files, is_type, page, source, texts

NODES = recorded()
SPECIAL = re.compile(r"[@{}|$]")
"""What the frontend's translations take for markup."""


def test_every_node_of_the_code_is_recorded():
    code = "\n".join(p.read_text("utf-8") for p in (ROOT / "nodes").glob("*.py"))
    assert set(re.findall(r'node_id="(TCD_\w+)"', code)) == set(NODES)


def test_the_files_are_those_that_the_sources_make():
    made = files(NODES)
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if _text(path) != text]
    assert stale == [], "run: python tests/help/make_help.py"
    there = {p for folder in (PAGES, LOCALES) for p in folder.rglob("*") if p.is_file()}
    assert there - set(made) == set()


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_node_has_its_sections_and_no_other_has(language: str):
    pages = source(language)["pages"]
    assert set(pages) == set(NODES)
    for node, sections in pages.items():
        assert list(sections) == list(SECTIONS), node
        assert all(text.strip() for text in sections.values()), node
        assert len(re.findall(r"^- \*\*", sections["mistakes"], re.MULTILINE)) >= 2, node


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_each_text_is_translated_and_none_is_left_over(language: str):
    translated = source(language)["texts"]
    assert set(translated) == set(texts(NODES))
    ours = r"[\u3040-\u30ff\u4e00-\u9fff]" if language == "ja" else r"[\u4e00-\u9fff]"
    for english, text in translated.items():
        if " " in english and len(english) > 20:
            assert re.search(ours, text), english


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_number_says_what_both_ends_do(language: str):
    known = source(language)["ends"]
    assert set(known) == set(source("en")["ends"])
    used: set[str] = set()
    for node, given in NODES.items():
        for name, about in given["inputs"].items():
            text = ends(language, node, name)
            assert text or about["kind"] not in NUMBERS, (node, name)
            used.add(f"{node}.{name}" if f"{node}.{name}" in known else name)
    assert set(known) <= used


def test_each_choice_is_explained():
    for node, given in NODES.items():
        for name, about in given["inputs"].items():
            text = f"{about.get('tooltip', '')} {ends('en', node, name)}"
            plain = {"embedded", "sd15", "sdxl", "gpu"}  # say what they are
            unsaid = [o for o in about.get("options", []) if str(o) not in text and o not in plain]
            assert unsaid == [], (node, name)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_are_the_same_in_every_language(language: str):
    assert set(source(language)["words"]) == set(source("en")["words"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_names_every_input_and_output(language: str):
    for node, given in NODES.items():
        text = page(language, node, NODES)
        for name, about in given["inputs"].items():
            assert f"`{name}`" in text or f"- **{name}**" in text, (node, name)
            assert about["kind"] == "link" or _default(about) in text, (node, name)
        assert all(f"- **{o['name']}**" in text for o in given["outputs"] if is_type(o["name"]))


def _default(about: dict[str, object]) -> str:
    value = about.get("default", "")
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_frontend_can_read_the_translations(language: str):
    found = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
    assert set(found) == set(NODES)

    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in strings(item)]
        return [str(value)]

    assert [text for text in strings(found) if SPECIAL.search(text) or not text.strip()] == []


def test_the_pages_name_templates_that_exist():
    there = {p.stem for p in (ROOT / "workflows").glob("*.json")}
    for path in PAGES.rglob("*.md"):
        named = set(re.findall(r"\*(tcd-[a-z0-9-]+)\*", path.read_text("utf-8")))
        assert named <= there, path
