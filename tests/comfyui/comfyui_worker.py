"""Runs in ComfyUI's interpreter: loads ComfyUI and the pack its way, then answers the tests' calls.

    python comfyui_worker.py COMFYUI PACK [ARGUMENTS OF COMFYUI]

A message on stdin is [function of comfyui_inside.py, arguments], the answer on stdout [result, error]: eight
bytes of length, then `torch.save`. What the host prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import traceback
from typing import Any, BinaryIO

import torch


def send(stream: BinaryIO, message: Any) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    stream.write(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """None at the end of the stream."""
    size = stream.read(8)
    return torch.load(io.BytesIO(stream.read(int.from_bytes(size, "big")))) if size else None


def main() -> None:
    host, pack = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    sys.argv = ["main.py", "--cpu", *sys.argv[3:]]
    sys.path.insert(0, host)
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    loaded = asyncio.run(nodes.load_custom_node(pack))
    import comfyui_inside as inside

    inside.load(pack)
    send(answers, [loaded, None])
    while (message := receive(sys.stdin.buffer)) is not None:
        name, arguments = message
        try:
            with torch.inference_mode():
                answer = [getattr(inside, name)(**arguments), None]
        except BaseException:
            answer = [None, traceback.format_exc()]
        send(answers, answer)


if __name__ == "__main__":
    main()
