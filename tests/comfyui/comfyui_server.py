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
    "GET /ws?clientId={client} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Key: dGNkLXRlc3QtdGNkLXRlcw==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLIENT = "test"
"""The page that asks for every prompt, and is told how it goes."""
TEXT = (3).to_bytes(4, "big")
"""The type of a binary message: text for a node."""
Message = tuple[str, Any]
"""Its type and data; of a binary one ("binary", the bytes)."""
COMPLAINTS = (
    "lora key not loaded",
    "could not be applied",
    "leftover keys",
    "unet missing",
    "unet unexpected",
)
"""What the host's log says of files that do not fit."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Of a graph in the API's format."""
    return {"class_type": class_type, "inputs": inputs}


def _message(stream: IO[bytes]) -> Message:
    """One of the server's: it neither splits nor masks them."""
    kind, size = stream.read(2)
    if size > 125:
        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
    data = stream.read(size)
    if kind & 15 != 1:
        return "binary", data
    message = json.loads(data)
    return message["type"], message["data"]


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
        return self.call("/prompt", {"prompt": graph, "client_id": CLIENT})["prompt_id"]

    def wait(self, prompt: str) -> dict[str, Any]:
        for _ in range(1200):
            if found := self.call(f"/history/{prompt}"):
                return found[prompt]
            time.sleep(0.25)
        raise TimeoutError(self.log.read_text()[-3000:])

    def run(self, graph: dict[str, Any]) -> dict[str, Any]:
        """What its nodes show, by their names."""
        done = self.wait(self.queue(graph))
        assert done["status"]["status_str"] == "success", done["status"]
        return done["outputs"]

    def error(self, graph: dict[str, Any]) -> str:
        """What a run that fails says."""
        messages = self.wait(self.queue(graph))["status"]["messages"]
        return next(what["exception_message"] for kind, what in messages if kind == "execution_error")

    @contextmanager
    def messages(self) -> Generator[list[Message]]:
        """At the end: what the page was sent."""
        found: list[Message] = []
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as page:
            page.sendall(UPGRADE.format(client=CLIENT, host=host, port=port).encode())
            stream = page.makefile("rb")
            while stream.readline().strip():  # the answer's header
                pass
            yield found
            page.settimeout(2)
            with suppress(TimeoutError):
                while True:
                    found.append(_message(stream))

    @contextmanager
    def texts(self) -> Generator[dict[str, str]]:
        """By node, at the end: the text that the page is asked to show on it."""
        shown: dict[str, str] = {}
        with self.messages() as found:
            yield shown
        for kind, data in found:
            if kind == "binary" and data[:4] == TEXT:
                end = 8 + int.from_bytes(data[4:8], "big")
                shown[data[8:end].decode()] = data[end:].decode()

    def latents(self, graph: dict[str, Any]) -> list[torch.Tensor]:
        """Of the graph's SaveLatent nodes, in the order of their names."""
        outputs = self.run(graph)
        saved = (self.saved(outputs[node]["latents"][0]) for node in sorted(outputs))
        return [load_file(path)["latent_tensor"] for path in saved]

    def saved(self, file: dict[str, Any]) -> Path:
        """Where a file lies that a node shows."""
        return self.output / file["subfolder"] / file["filename"]

    def complaints(self, since: int) -> list[str]:
        """Lines of the log, from this character on, that say a file does not fit."""
        lines = self.log.read_text()[since:].splitlines()
        return [line for line in lines if any(text in line for text in COMPLAINTS)]


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
