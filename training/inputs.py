"""What a run was made from, kept beside its checkpoint: a resume from anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..samplers import Schedule
from .backbone import Cond, digest
from .checkpoint import write_text
from .distill import CHECKPOINT
from .objective import TimeGrid
from .processes import ALONE, Crew
from .text import read_text

INPUTS = "inputs.json"
NAMED = {
    "model": "another model",
    "prompts": "other prompts",
    "negative": "another negative prompt",
    "size": "another size",
    "schedule": "another noise schedule",
    "dataset": "another dataset",
}
"""What decides a run beside its settings, as a message calls another one."""


def inputs_of(
    teacher: str,
    schedule: Schedule,
    latent_shape: Sequence[int],
    prompts: Cond,
    uncond: Cond,
    data: Cond | None = None,
) -> dict[str, Any]:
    """Name all that decides a run beside its settings: the `fingerprint` of the teacher, its noise schedule
    (a shift on the MODEL changes it), the shape of a sample, the encoded prompts, the encoded negative one,
    and the tensors of a data set's shards.
    """
    alpha, sigma = TimeGrid.of(schedule, 20, "uniform", 1).points.level
    found = {
        "schedule": digest({"alpha": alpha, "sigma": sigma}),
        "model": teacher,
        "prompts": digest(prompts),
        "negative": digest(uncond),
        "size": list(latent_shape),
    }
    return found if data is None else {**found, "dataset": digest(data)}


def check_inputs(folder: Path, now: Mapping[str, Any], crew: Crew = ALONE) -> None:
    """Note what the run of `folder` is made from. ValueError, in every process, names what has changed since
    its checkpoint was written; before there is one, nothing is lost and anything may change.
    """
    _, found = crew.told(lambda: ({}, {"changed": json.dumps(_changed(folder, now))}))
    changed = json.loads(found["changed"])
    if changed:
        raise ValueError(
            f"{folder}: holds a run with {' and '.join(changed)}; give it what it had to go on with it, or "
            "choose another folder (run_name, --out)"
        )
    if crew.first:
        write_text(folder / INPUTS, json.dumps(dict(now), indent=1))


def _changed(folder: Path, now: Mapping[str, Any]) -> list[str]:
    path = folder / INPUTS
    if not path.is_file() or not (folder / CHECKPOINT).is_file():
        return []
    try:
        before: Any = json.loads(read_text(path))
        return [words for name, words in NAMED.items() if before.get(name) != now.get(name)]
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: damaged, so that it does not say what the run was made from; choose another folder, or "
            "remove this file if prompts, model and data are still the same"
        ) from error
