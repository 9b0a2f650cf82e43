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
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, Any

import torch


def send(stream: IO[bytes], message: Any) -> None:
    buffer = io.BytesIO()
    torch.save(message, buffer)
    stream.write(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """None at the end of the stream."""
    size = stream.read(8)
    return torch.load(io.BytesIO(stream.read(int.from_bytes(size, "big")))) if size else None


@contextmanager
def start(
    host: Path, python: Path, pack: Path, log: Path, script: str = "comfyui_worker.py", *more: Path
) -> Generator[Callable[..., Any]]:
    """A worker: the function that is given calls one of the script's by its name, with its arguments.

    `more` are arguments of the script. comfyui_worker.py serves the functions of comfyui_inside.py.
    """
    worker = [python, Path(__file__).with_name(script), host, pack, *more]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        log.open("wb") as errors,
        Popen(worker, cwd=host, env=environment, stdin=PIPE, stdout=PIPE, stderr=errors) as process,
    ):
        questions, answers = process.stdin, process.stdout
        assert questions and answers

        def answer() -> Any:
            message = receive(answers)
            if message is None:
                raise RuntimeError(f"the worker died:\n{log.read_text()[-3000:]}")
            result, error = message
            if error:
                raise RuntimeError(error)
            return result

        def call(function: str, **arguments: Any) -> Any:
            send(questions, [function, arguments])
            return answer()

        if not answer():
            raise RuntimeError(f"ComfyUI could not load the pack:\n{log.read_text()[-3000:]}")
        yield call
        questions.close()


def serve(answers: IO[bytes], functions: Mapping[str, Any]) -> None:
    """Answer calls from stdin, inside the host's inference mode, until it ends."""
    while (message := receive(sys.stdin.buffer)) is not None:
        name, arguments = message
        try:
            with torch.inference_mode():
                answer = [functions[name](**arguments), None]
        except BaseException:
            answer = [None, traceback.format_exc()]
        send(answers, answer)


def main(functions: Mapping[str, Any] | None = None) -> None:
    """`functions`: another script's, which import ComfyUI only when they are called."""
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
    serve(answers, functions or vars(inside))


if __name__ == "__main__":
    main()
