"""Text files as people have them: UTF-8 with or without its mark, UTF-16 with one. Imports nothing heavy, as
`tcd migrate-workflow` runs without torch.
"""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path

MARKS = {BOM_UTF8: "utf-8", BOM_UTF16_LE: "utf-16-le", BOM_UTF16_BE: "utf-16-be"}
"""Byte order marks, with which Windows' programs begin a text, and what they say of its encoding."""
REMEDY = "save it as UTF-8 (in Notepad: Save as, Encoding UTF-8)"


def read_text(path: Path, name: str = "") -> str:
    """Read a text file, whatever its mark says and else as UTF-8; every line ends with "\\n" alone.

    ValueError names the file (by `name`, if it is given), the line and the byte that no text of that encoding
    has, NUL among them: nothing is replaced or left out.
    """
    shown = name or str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{shown}: cannot be read ({error.strerror or error})") from error
    mark, encoding = next(((m, e) for m, e in MARKS.items() if data.startswith(m)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        where = _where(shown, body[: error.start].decode(encoding), len(mark) + error.start)
        fault = f"{where} (0x{body[error.start]:02x}) is not {encoding.upper()}"
        raise ValueError(f"{fault}; {REMEDY}") from error
    before, nul, _ = text.partition("\0")
    if nul:
        where = _where(shown, before, len(mark) + len(before.encode(encoding)))
        raise ValueError(f"{where} is NUL: the file is no text, or UTF-16 without a mark; {REMEDY}")
    # A mark after a line end is that of a file that was appended to another.
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n\ufeff", "\n")


def lines_of(text: str) -> list[str]:
    """List the lines of a text without the space around them; empty ones are left out. Unicode's own line
    ends (U+2028, U+2029, NEL) end one too.
    """
    return [line for line in map(str.strip, text.splitlines()) if line]


def read_prompts(path: Path, name: str = "") -> list[str]:
    """Read a text file with a prompt a line. ValueError where it is no text, or has no prompt."""
    prompts = lines_of(read_text(path, name))
    if not prompts:
        raise ValueError(f"{name or path}: no prompts in it; write one a line")
    return prompts


def _where(shown: str, before: str, byte: int) -> str:
    """Name the place after the text `before`, which `byte` bytes come before."""
    return f"{shown}, line {len((before + '.').splitlines())}: byte {byte + 1}"
