"""Writes web/docs, locales and node_list.json from nodes.json and a file per language, and the table of
settings in docs/distil.md from the code: `python tests/help/make_help.py`. `--record HOST_URL` first asks a
running ComfyUI with this pack what the nodes are, and keeps that in nodes.json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE)] * (str(HERE) not in sys.path)

from help_nodes import HOSTS_OWN, LINKED, RECORD, ROOT, Json, recorded, trim  # noqa: E402

from comfyui_tcd.training.config import PRESETS, DistillConfig  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LANGUAGES = ("en", "zh", "ja")
PAGES, LOCALES, NODE_LIST = ROOT / "web" / "docs", ROOT / "locales", ROOT / "node_list.json"
DISTIL, SETTINGS = ROOT / "docs" / "distil.md", "## Settings\n"
INTRODUCTION = "\nThe code's own words, by `python tests/help/make_help.py`. w is cfg - 1.\n\n"
SECTIONS = ("what", "example", "mistakes")
NUMBERS = ("int", "float")
DRAWN = re.findall(r"(TCD_\w+): .*addDrawing", (ROOT / "web" / "tcd.js").read_text("utf-8"))
"""Nodes with the page's drawing of the steps."""


@cache
def source(language: str) -> Json:
    """`words`, `ends`, `pages`, and but for English `texts`."""
    return tomllib.loads((HERE / f"{language}.toml").read_text("utf-8"))


def is_type(text: str) -> bool:
    """Such as LATENT and LORA_MODEL, which every language leaves."""
    return text.replace("_", "").isupper()


def texts(nodes: Json) -> list[str]:
    """Every text of the nodes that a language translates, once."""
    found: dict[str, None] = {}
    for node in nodes.values():
        of_inputs = [text for i in node["inputs"].values() for text in (i["name"], i.get("tooltip", ""))]
        of_outputs = [text for o in node["outputs"] for text in (o["name"], o["tooltip"])]
        found.update(dict.fromkeys([node["display_name"], node["description"], *of_inputs, *of_outputs]))
    return [text for text in found if text and not is_type(text)]


def say(language: str, text: str) -> str:
    """A text of a node in the language. KeyError where it is not translated."""
    return text if language == "en" or not text or is_type(text) else source(language)["texts"][text]


def ends(language: str, node: str, name: str) -> str:
    """What the ends of an input's range do; "" where its tooltip says all."""
    known = source(language)["ends"]
    return known.get(f"{node}.{name}", known.get(name, ""))


def node_defs(language: str, nodes: Json) -> Json:
    """The host's locales/LANGUAGE/nodeDefs.json."""

    def entry(name: str, tooltip: str) -> Json:
        found = {"name": say(language, name), "tooltip": say(language, tooltip)}
        return {key: value for key, value in found.items() if value}

    return {
        node_id: {
            "display_name": say(language, node["display_name"]),
            "description": say(language, node["description"]),
            "inputs": {i: entry(x["name"], x.get("tooltip", "")) for i, x in node["inputs"].items()},
            "outputs": {str(i): entry(x["name"], x["tooltip"]) for i, x in enumerate(node["outputs"])},
        }
        for node_id, node in nodes.items()
    }


def page(language: str, node_id: str, nodes: Json) -> str:
    """The help page of a node, Markdown."""
    node, words, prose = nodes[node_id], source(language)["words"], source(language)["pages"][node_id]
    inputs = [_input(language, node_id, name, given) for name, given in node["inputs"].items()]
    outputs = [_output(language, given) for given in node["outputs"]]
    parts = [
        f"# {say(language, node['display_name'])}",
        say(language, node["description"]),
        _joined(language, prose["what"]),
        *([words["drawing"]] if node_id in DRAWN else []),
        f"## {words['inputs']}",
        "\n".join(inputs),
        f"## {words['outputs']}",
        "\n".join(outputs),
        f"## {words['example']}",
        _joined(language, prose["example"]),
        f"## {words['mistakes']}",
        _joined(language, prose["mistakes"]),
    ]
    return "\n\n".join(parts) + "\n"


def _joined(language: str, text: str) -> str:
    """Paragraphs in one line each; Chinese and Japanese have no space where the source breaks a line."""
    made: list[str] = []
    for line in text.strip().splitlines():
        if not made or line.startswith("- "):
            made.append(line)
            continue
        glue = "" if language != "en" and not (made[-1][-1] + line.strip()[0]).isascii() else " "
        made[-1] += glue + line.strip()
    return "\n".join(made)


def _input(language: str, node_id: str, name: str, given: Json) -> str:
    words = source(language)["words"]
    label = say(language, given["name"])
    shown = f"**{label}**" if label == name else f"**{label}** `{name}`"
    about = [_values(words, name, given)]
    about += [words[key] for key in ("optional", "advanced") if given[key]]
    text = words["join"].join(
        filter(None, [say(language, given.get("tooltip", "")), ends(language, node_id, name)])
    )
    facts = words["opening"] + words["separator"].join(filter(None, about)) + words["closing"]
    return f"- {shown}{facts}" + f"{words['is']}{text}" * bool(text)


def _output(language: str, given: Json) -> str:
    tooltip = say(language, given["tooltip"])
    return f"- **{say(language, given['name'])}**" + f"{source(language)['words']['is']}{tooltip}" * bool(
        tooltip
    )


def _values(words: Json, name: str, given: Json) -> str:
    if given["kind"] == LINKED:
        return given["type"]
    if name in HOSTS_OWN:
        return words["list"]
    default = words["default"].format(value=_shown(given.get("default"), words))
    if "min" in given:
        span = words["range"].format(low=_shown(given["min"], words), high=_shown(given["max"], words))
        return f"{span}{words['separator']}{default}"
    return words["separator"].join(
        [" / ".join(given["options"]), default] if "options" in given else [default]
    )


def _shown(value: Any, words: Json) -> str:
    if value == 2**64 - 1:
        return "2^64 - 1"
    return words["empty"] if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)


def files(nodes: Json) -> dict[Path, str]:
    """Path -> text of all that is made."""
    made = {NODE_LIST: _json({node_id: node["description"] for node_id, node in nodes.items()})}
    for language in LANGUAGES:
        made[LOCALES / language / "nodeDefs.json"] = _json(node_defs(language, nodes))
        for node_id in nodes:
            made[PAGES / node_id / f"{language}.md"] = text = page(language, node_id, nodes)
            if language == "en":  # where a language has no page, the frontend takes the one beside the folder
                made[PAGES / f"{node_id}.md"] = text
    made[DISTIL] = DISTIL.read_text("utf-8").partition(SETTINGS)[0] + SETTINGS + INTRODUCTION + settings()
    return made


def settings() -> str:
    """The settings of a distillation as a table: default, what it is in a preset, meaning."""
    lines = ["| setting | default | sd15 | sdxl | what it is |", "| --- | --- | --- | --- | --- |"]
    for f in fields(DistillConfig):
        preset = [f"{PRESETS[name].get(f.name, '')}" for name in ("sd15", "sdxl")]
        lines.append(f"| `{f.name}` | {f.default} | {' | '.join(preset)} | {f.metadata['doc']} |")
    return "\n".join(lines) + "\n"


def _json(value: Json) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def record(url: str) -> None:
    with urllib.request.urlopen(f"{url}/object_info", timeout=60) as answer:
        RECORD.write_text(json.dumps(trim(json.loads(answer.read())), indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="HOST_URL")
    given = parser.parse_args()
    if given.record:
        record(given.record)
    made = files(recorded())
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")
    for folder in (PAGES, LOCALES):
        for path in set(folder.rglob("*.*")) - set(made):
            path.unlink()


if __name__ == "__main__":
    main()
