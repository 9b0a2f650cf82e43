"""ComfyUI's real server in a folder of its own, through its API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

UPGRADE = (
    "GET /ws?clientId=test HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGNkLXRlc3QtdGNkLXRlcw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT = (3).to_bytes(4, "big")
"""The type of a binary message: text for a node."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Of a graph in the API's format."""
    return {"class_type": class_type, "inputs": inputs}


def _message(stream: IO[bytes]) -> bytes:
    """One of the server's: it neither splits nor masks them."""
    size = stream.read(2)[1]
    if size > 125:
        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
    return stream.read(size)


class Server:
    def __init__(self, url: str, output: Path, log: Path) -> None:
        self.url, self.output, self.log = url, output, log

    def call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        return json.loads(text) if text else None

    def queue(self, graph: dict[str, Any]) -> str:
        return self.call("/prompt", {"prompt": graph})["prompt_id"]

    def wait(self, prompt: str) -> dict[str, Any]:
        for _ in range(1200):
            if found := self.call(f"/history/{prompt}"):
                return found[prompt]
            time.sleep(0.25)
        raise TimeoutError(self.log.read_text()[-3000:])

    def error(self, graph: dict[str, Any]) -> str:
        """What a run that fails says."""
        messages = self.wait(self.queue(graph))["status"]["messages"]
        return next(what["exception_message"] for kind, what in messages if kind == "execution_error")

    @contextmanager
    def texts(self) -> Generator[dict[str, str]]:
        """By node, at the end: the text that the page is asked to show on it."""
        shown: dict[str, str] = {}
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as page:
            page.sendall(UPGRADE.format(host=host, port=port).encode())
            stream = page.makefile("rb")
            while stream.readline().strip():  # the answer's header
                pass
            yield shown
            page.settimeout(2)
            with suppress(TimeoutError):
                while True:
                    message = _message(stream)
                    if message[:4] == TEXT:
                        end = 8 + int.from_bytes(message[4:8], "big")
                        shown[message[8:end].decode()] = message[end:].decode()

    def latents(self, graph: dict[str, Any]) -> list[torch.Tensor]:
        """Of the graph's SaveLatent nodes, in the order of their names."""
        done = self.wait(self.queue(graph))
        assert done["status"]["status_str"] == "success", done["status"]
        outputs = (done["outputs"][node]["latents"][0] for node in sorted(done["outputs"]))
        return [load_file(self.output / o["subfolder"] / o["filename"])["latent_tensor"] for o in outputs]


@contextmanager
def serve(host: Any, home: Path) -> Generator[Server]:
    """ComfyUI with the custom_nodes, models and input of `home`, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--cpu", "--port", str(port), "--base-directory", str(home), "--disable-api-nodes"]
    options += ["--database-url", "sqlite:///:memory:"]
    options += ["--front-end-root", str(host.frontend)] if host.frontend else []
    log = home / "log.txt"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [host.python, "main.py", *options],
            cwd=host.path,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        ) as process,
    ):
        found = Server(f"http://127.0.0.1:{port}", home / "output", log)
        try:
            for _ in range(1200):
                assert process.poll() is None, log.read_text()[-3000:]
                try:
                    found.call("/queue")
                    break
                except OSError:
                    time.sleep(0.25)
            yield found
        finally:
            process.terminate()
