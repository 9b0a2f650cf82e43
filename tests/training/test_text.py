"""Text files as people have them. The right texts and the first wrong bytes are those of Python's codecs."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_LE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comfyui_tcd.cli import main
from comfyui_tcd.training.checkpoint import save_tensors
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.formats import open_lora
from comfyui_tcd.training.text import lines_of, read_prompts, read_text

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with its mark": lambda text: BOM_UTF8 + text.encode(),
    "UTF-16, little end first": lambda text: BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: BOM_UTF16_BE + text.encode("utf-16-be"),
}
LINES = ["the girl\u2019s hat", "\u8d64\u3044\u9aea", "\U0001f431 and\ta dog"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029"])
def test_prompts_of_every_encoding_and_line_end(tmp_path: Path, encoding: str, end: str):
    path = tmp_path / "prompts.txt"
    for text in (end.join(LINES), end.join(["", *LINES, "  ", ""])):
        path.write_bytes(ENCODINGS[encoding](text))
        assert read_prompts(path) == LINES


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff")))
def test_any_text_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.mktemp("any") / "text.txt"
    for encode in ENCODINGS.values():
        path.write_bytes(encode(text))
        assert read_text(path) == text
        path.write_bytes(encode(text.replace("\n", "\r\n")))
        assert read_text(path) == text


def test_files_appended_to_one_another_have_marks_inside(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    for encode in list(ENCODINGS.values())[1:]:
        one = encode("a cat\r\n")
        path.write_bytes(one + encode("a dog\r\n") + one)
        assert read_prompts(path) == ["a cat", "a dog", "a cat"]


TEXT = "a cat\r\nthe girl\u2019s hat\r\n"


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (TEXT.encode("cp1252"), 2, "(0x92) is not UTF-8"),
        ("caf\u00e9".encode("latin-1"), 1, "(0xe9) is not UTF-8"),
        ("a\n\u8d64\u3044".encode("shift-jis"), 2, "is not UTF-8"),
        (TEXT.encode()[:-5] + b"\xe2\x80", 2, "is not UTF-8"),
        ("a\r\nb".encode("utf-16")[:-1], 2, "is not UTF-16-LE"),
        (BOM_UTF16_BE + b"\0a\0\n\xd8\x00\0b", 2, "is not UTF-16-BE"),
        ("a cat".encode("utf-16-le"), 1, "is NUL: the file is no text, or UTF-16 without a mark"),
        ("a cat".encode("utf-16-be"), 1, "is NUL"),
        (BOM_UTF32_LE + "a cat".encode("utf-32-le"), 1, "is NUL"),
        (b"a cat\ra\0dog", 2, "is NUL"),
        (BOM_UTF16_LE + "a\nb\0".encode("utf-16-le"), 2, "is NUL"),
        (b"\x89PNG\r\n\x1a\n\0", 1, "(0x89) is not UTF-8"),
    ],
)
def test_what_is_no_text_is_named_with_line_byte_and_remedy(
    tmp_path: Path, data: bytes, line: int, said: str
):
    path = tmp_path / "my prompts.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"line \d+: byte \d+") as error:
        read_text(path)
    told = str(error.value)
    assert told.startswith(f"{path}, line {line}: byte ") and said in told, told
    assert told.endswith("save it as UTF-8 (in Notepad: Save as, Encoding UTF-8)")
    byte = int(told.partition(": byte ")[2].split()[0])
    if "NUL" in said:
        assert data[byte - 1] == 0
    if "(0x" in said:
        assert f"(0x{data[byte - 1]:02x})" in said
    assert read_name(path) == told.replace(str(path), "caption.txt")


def read_name(path: Path) -> str:
    with pytest.raises(ValueError, match="caption") as error:
        read_text(path, "caption.txt")
    return str(error.value)


def test_a_file_that_is_missing_or_has_no_prompts_is_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent.txt"):
        with pytest.raises(ValueError, match="cannot be read") as error:
            read_text(path)
        assert str(error.value).startswith(f"{path}: ")
    (tmp_path / "empty.txt").write_bytes(BOM_UTF16_LE + " \r\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"empty\.txt: no prompts in it; write one a line"):
        read_prompts(tmp_path / "empty.txt")


def test_lines_of_a_text_that_was_typed():
    assert lines_of(" a cat \r\n\n\u3000\na dog") == ["a cat", "a dog"]


# Where they are read.


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_file_of_settings(tmp_path: Path, encoding: str):
    path = tmp_path / "settings.toml"
    path.write_bytes(ENCODINGS[encoding]("steps = 300\r\nrank = 8  # \u8d64\r\n"))
    config = DistillConfig.resolve("sd15", path)
    assert (config.steps, config.rank) == (300, 8)


def test_a_file_of_settings_that_is_no_text_is_named(tmp_path: Path):
    path = tmp_path / "settings.toml"
    path.write_bytes("steps = 300\n# caf\u00e9".encode("cp1252"))
    with pytest.raises(ValueError, match=r"settings\.toml, line 2: byte 18 \(0xe9\) is not UTF-8"):
        DistillConfig.resolve("sd15", path)


def test_the_settings_beside_an_adapter(tmp_path: Path):
    """Which an editor of Windows may have given a mark."""
    name = "base_model.model.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.ones(4, 320), f"{name}.lora_B.weight": torch.ones(320, 4)}
    save_tensors(tmp_path / "adapter_model.safetensors", tensors, {})
    beside = tmp_path / "adapter_config.json"
    found: list[Any] = []
    for encode in ENCODINGS.values():
        beside.write_bytes(encode(json.dumps({"lora_alpha": 2})))
        (layer,) = open_lora(tmp_path / "adapter_model.safetensors").layers
        found.append(layer.scale)
    assert found == [0.5] * 4


def test_the_command_names_the_file_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "prompts.txt"
    path.write_bytes(TEXT.encode("cp1252"))
    arguments = ["train", "--diffusers", str(tmp_path / "no model"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--prompts", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"--prompts {path}, line 2: byte 16 (0x92) is not UTF-8; save it as UTF-8" in told
    assert main(arguments) == 2 and "--prompts is needed" in capsys.readouterr().err
