"""docs/troubleshooting.md has every message, and none that the code no longer gives."""

from __future__ import annotations

import re

from help_messages import fragment, templates
from help_nodes import ROOT

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
LISTED = re.findall(r"^- `` (.+) ``$", TEXT, re.MULTILINE)


def test_every_message_is_listed():
    unlisted = [text for _, text in templates() if not any(fragment(text) in line for line in LISTED)]
    assert unlisted == []


def test_no_listed_message_is_gone():
    given = [text for _, text in templates()]
    assert len(LISTED) > 50
    assert [line for line in LISTED if not any(fragment(line) in text for text in given)] == []
