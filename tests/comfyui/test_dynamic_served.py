"""TCD Distill in the real server with dynamic VRAM, without a start option: distilled, sampled, cancelled."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import Server, serve
from test_distill_served import (
    STEPS,
    distilled,
    folder,
    lora,
    made,
    prepare,
    same,
    sampled,
    stopping,
)

from comfyui_tcd.training.report import read_log

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]
SWITCH = """
import logging
import sys
sys.path.append({tests!r})
import dynamic_vram

logging.warning("dynamic VRAM: %s", dynamic_vram.switch_on())
NODE_CLASS_MAPPINGS = {{}}
"""
COPY = "second copy of the weights"


@pytest.fixture(scope="module")
def server(host: Any, standins: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    home = prepare(tmp_path_factory.mktemp("a home with dynamic VRAM"), standins)
    (home / "custom_nodes/switch").mkdir()
    source = SWITCH.format(tests=str(Path(__file__).parent))
    (home / "custom_nodes/switch/__init__.py").write_text(source)
    with serve(host, home) as found:
        yield found


@pytest.mark.parametrize("kind", ["sd15", "flow"])
def test_distilled_and_sampled_in_one_prompt_then_cancelled_and_gone_on_with(server: Server, kind: str):
    dynamic = "dynamic VRAM: True" in server.log.read_text()
    with server.messages() as events:
        outputs = server.run({**distilled(kind, f"whole {kind}"), **sampled(kind, "distill")})
    told = [data["message"] for what, data in events if what == "tcd.distill"]
    assert any(COPY in text for text in told) is dynamic
    latent, image = made(server, outputs, "distill")
    assert bool(latent.isfinite().all()) and image.std() > 1
    records = read_log(folder(server, f"whole {kind}") / "log.jsonl")
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))

    name = f"cancelled {kind}"
    prompt = server.queue({**distilled(kind, name, model="stopping"), **stopping("waits")})
    log = folder(server, name) / "log.jsonl"
    for _ in range(3000):
        if log.is_file() and len(read_log(log)) >= 2:
            break
        time.sleep(0.02)
    server.call("/interrupt", {})
    assert "execution_interrupted" in [m[0] for m in server.wait(prompt)["status"]["messages"]]
    assert 2 <= len(read_log(log)) < STEPS
    server.run(distilled(kind, name))
    assert same(lora(server, name), lora(server, f"whole {kind}"))
