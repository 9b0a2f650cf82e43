"""Writes record.json, the losses of short runs of every kind: `python tests/training/make_record.py`.

A change of the trainer that should not change any figure leaves the file as it is. `--exact` prints a digest
of each run's weights, moments and averages instead, which is the same on one machine only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
import conftest  # noqa: E402, F401  # pyright: ignore[reportUnusedImport]  (names the pack)
from tiny import Stop, TinyUNet, data_free, grid_of, prompts, run, settings, stop_at, tinier  # noqa: E402

from comfyui_tcd.training.checkpoint import load_tensors  # noqa: E402
from comfyui_tcd.training.distill import CHECKPOINT  # noqa: E402
from comfyui_tcd.training.pairs import CachedLatents, generator  # noqa: E402
from comfyui_tcd.training.report import read_log  # noqa: E402
from comfyui_tcd.training.shards import write_shard  # noqa: E402

RECORD = Path(__file__).with_name("record.json")
RUNS: dict[str, dict[str, Any]] = {
    "tcf1": {},
    "tcf1 l2": {"distance": "l2"},
    "tcf1 l2 every s": {"distance": "l2", "all_s": True},
    "tcf1 ema target": {"target": "ema"},
    "tcf1 zero": {"s_range": "zero"},
    "tcf1 phases": {"s_range": "phases", "s_steps": 2},
    "tcf1 near": {"s_range": "near", "s_steps": 2},
    "tcf1 pairs in a row": {"consecutive": 2},
    "tcf1 pairs in a row, accumulated": {"consecutive": 3, "accumulation": 2},
    "tcf1 pairs used again": {"reuse": 2},
    "tcf1 teacher asked again": {"cache_teacher": False},
    "tcf1 second-order teacher": {"solver": "dpm2", "cache_teacher": False},
    "tcf1 constant rate": {"decay": "constant", "warmup": 0, "average": 0.0, "clip": 0.0},
    "tcf2": {"student": "tcf2"},
    "tcf2 ema target": {"student": "tcf2", "target": "ema"},
    "tcfs": {"student": "tcfs"},
    "tcfs ema target": {"student": "tcfs", "target": "ema", "distance": "l2"},
    "images": {"source": "images"},
    "images, accumulated": {"source": "images", "accumulation": 2},
    "tcf1, stopped and gone on with": {"stop": 3},
    "tcf1 pairs in a row, stopped and gone on with": {"stop": 3, "consecutive": 2},
    "tcfs ema target, stopped and gone on with": {
        "stop": 3, "student": "tcfs", "target": "ema", "distance": "l2",
    },
}  # fmt: skip
STOPPED = ", stopped and gone on with"


def cached(folder: Path, config: Any) -> CachedLatents:
    """Latents of images that nobody painted, with captions."""
    path = folder / "latents.safetensors"
    write_shard(path, torch.randn(12, *TinyUNet.latent_shape, generator=generator(5)), prompts(12))
    return CachedLatents([path], grid_of(TinyUNet(), config), config.seed)


def made(name: str, folder: Path) -> None:
    """Run one of `RUNS` into `folder`."""
    given = dict(RUNS[name])
    stop, images = given.pop("stop", None), given.pop("source", "") == "images"
    config = settings(**given)
    if stop is not None:
        with suppress(Stop):
            run(config, folder, tinier(), on_step=stop_at(stop))
    backbone = tinier()
    source = cached(folder, config) if images else data_free(backbone, config, folder)
    run(config, folder, backbone, source)


def recorded() -> Iterator[tuple[str, list[float], str]]:
    """(name, losses, digest of all that a checkpoint holds) of each run."""
    for name in RUNS:
        with TemporaryDirectory() as folder:
            made(name, Path(folder))
            losses = [record["loss"] for record in read_log(Path(folder) / "log.jsonl")]
            tensors, _ = load_tensors(Path(folder) / CHECKPOINT)
            mixed = sha256()
            for key in sorted(tensors):
                mixed.update(
                    key.encode() + tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes()
                )
            yield name, losses, mixed.hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    found = list(recorded())
    if "--exact" in sys.argv:
        sys.stdout.writelines(f"{digest}  {name}\n" for name, _, digest in found)
    else:
        text = json.dumps({name: losses for name, losses, _ in found}, indent=1)
        RECORD.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
