"""Settings of a distillation, as data: one frozen dataclass, a preset a row, checked before anything is
loaded.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .text import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def setting(
    default: Any, doc: str, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A field with what a user reads about it (`doc`: effect, unit, source) and what it may hold."""
    return field(default=default, metadata={"doc": doc, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides the result of a run. Sources: the paper, `docs/method.md`, the figures in
    `docs/reproduction/`.
    """

    steps: int = setting(3000, "optimizer steps; 3000 in the paper for TCF(1)", low=1)
    batch: int = setting(16, "samples a forward", low=1)
    accumulation: int = setting(
        1, "forwards an optimizer step; the effective batch is batch x accumulation", low=1
    )
    checkpointing: str = setting(
        "auto",
        "what the backward pass needs: kept (none), computed again block by block (blocks: less memory, a "
        "quarter more work), or the first of both that fits into the free memory",
        ("auto", "none", "blocks"),
    )
    compile: bool = setting(
        False,
        "torch.compile for each block: a slow start, faster steps; needs a C++ compiler, on a GPU Triton",
    )
    optimizer: str = setting(
        "adamw",
        "AdamW with moments of 32 bits, or of 8 (adamw8bit: 6 bytes less for each trained parameter; needs "
        "bitsandbytes)",
        ("adamw", "adamw8bit"),
    )
    learning_rate: float = setting(
        2e-5, "AdamW's peak; the paper states none, open recipes use 1e-6 to 1e-4", low=0.0
    )
    warmup: int = setting(50, "steps of linear warm-up", low=0)
    decay: str = setting("cosine", "learning rate after the warm-up", ("cosine", "constant"))
    weight_decay: float = setting(0.0, "AdamW's; 0 as in diffusers' LCM-LoRA recipe", low=0.0)
    clip: float = setting(1.0, "greatest gradient norm; 0 does not clip", low=0.0)
    rank: int = setting(64, "LoRA rank; 64 in the published TCD LoRA", low=1)
    alpha: float = setting(64.0, "LoRA alpha; the weight update is scaled by alpha / rank", low=0.0)
    targets: str = setting(
        "all", "adapted layers: all, linear (no convolutions), attention", ("all", "linear", "attention")
    )
    student: str = setting(
        "tcf1",
        "the student's map: Eq. 21, Eq. 22, or Eq. 24 (also conditioned on s)",
        ("tcf1", "tcf2", "tcfs"),
    )
    solver: str = setting(
        "ddim", "the teacher's step Phi: DDIM, or DPM-Solver-2 (two evaluations)", ("ddim", "dpm2")
    )
    target: str = setting(
        "stopgrad", "theta-minus of Algorithm 1: the student itself, or its average", ("stopgrad", "ema")
    )
    target_decay: float = setting(
        0.95, "mu of the target's average (target = ema), per step", low=0.0, high=1.0
    )
    distance: str = setting("huber", "d: pseudo-Huber (LCM's), or squared L2 (the paper's)", ("huber", "l2"))
    huber_c: float = setting(1e-3, "c of the pseudo-Huber distance, in latent units", low=0.0)
    s_range: str = setting(
        "uniform",
        "where s lies: uniform (the paper), zero (LCM), phases (PCM), near (TDD)",
        ("uniform", "zero", "phases", "near"),
    )
    s_steps: int = setting(4, "number of phases, or the step count that `near` aims at", low=1)
    all_s: bool = setting(False, "average the loss over every s in closed form (tcf1 with l2 only)")
    skip: int = setting(20, "k: timesteps between t and t'; 20 of 1000 is a 50-step grid", low=1)
    w_min: float = setting(
        3.0, "least guidance w of the teacher, in the paper's convention; cfg = 1 + w", low=-1.0
    )
    w_max: float = setting(8.0, "greatest w; equal to w_min for fixed guidance", low=-1.0)
    cache_teacher: bool = setting(
        True, "keep the teacher's two predictions of each pair, so that a pair can be used again for free"
    )
    reuse: int = setting(2, "how often a data-free pair is used", low=1)
    consecutive: int = setting(
        2,
        "pairs in a row of a trajectory that are used together: what the student says of one is the aim of "
        "the next, and the target need not be asked; 1 draws each by itself (data-free, with tcf1, stopgrad "
        "and cache_teacher; else it is 1)",
        low=1,
    )
    trajectories: int = setting(32, "teacher trajectories a shard of data-free pairs", low=1)
    average: float = setting(
        0.99,
        "decay of the average of the LoRA that is saved and sampled from; 0 saves the last",
        low=0.0,
        high=1.0,
    )
    seed: int = setting(0, "every random choice is a function of it and of the step", low=0)
    save_every: int = setting(250, "steps between checkpoints", low=1)
    validate_every: int = setting(250, "steps between validations (picture and figure)", low=1)
    validation_prompts: int = setting(16, "prompts in the validation", low=1)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_field(f, getattr(self, f.name))
        if self.w_max < self.w_min:
            raise ValueError(
                f"w_max {self.w_max} is below w_min {self.w_min}; swap them, or make them equal for "
                "fixed guidance"
            )
        if self.all_s and (self.student != "tcf1" or self.distance != "l2"):
            raise ValueError(
                f"all_s has a closed form for student = tcf1 with distance = l2 only, not for "
                f"{self.student} with "
                f"{self.distance}; set all_s = false"
            )
        if self.solver == "dpm2" and self.cache_teacher:
            raise ValueError(
                "solver = dpm2 evaluates the teacher at a midpoint that is not cached; set cache_teacher "
                "= false"
            )
        if self.warmup >= self.steps and self.warmup > 0:
            raise ValueError(
                f"warmup {self.warmup} leaves nothing of {self.steps} steps; lower warmup or raise steps"
            )

    @property
    def linked(self) -> int:
        """`consecutive` where the student's prediction of a pair is the target's of the next; else 1."""
        can = self.student == "tcf1" and self.target == "stopgrad" and self.cache_teacher
        return self.consecutive if can else 1

    @classmethod
    def resolve(
        cls, preset: str = "sdxl", file: Path | None = None, text: str = "", **overrides: Any
    ) -> DistillConfig:
        """A preset's row, over it a TOML file or text, over it single values. Unknown names are refused."""
        if preset not in PRESETS:
            raise ValueError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
        values: dict[str, Any] = dict(PRESETS[preset])
        written: set[str] = set()
        for source, toml in (
            (file, "" if file is None else read_text(Path(file))),
            ("settings", text),
        ):
            try:
                given = tomllib.loads(toml)
            except tomllib.TOMLDecodeError as error:
                raise ValueError(f"{source}: not valid TOML: {error}") from error
            values |= given
            written |= given.keys()
        overrides = {k: v for k, v in overrides.items() if v is not None}
        values |= overrides
        if "warmup" not in written | overrides.keys():  # of a preset, which knows nothing of fewer steps
            usual: dict[str, Any] = {f.name: f.default for f in fields(cls)} | values
            if isinstance(usual["steps"], int):
                values["warmup"] = min(usual["warmup"], usual["steps"] // 4)
        return cls.from_mapping(values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DistillConfig:
        """Settings by name; an unknown name is a ValueError that lists the known ones."""
        known = {f.name: f for f in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown setting {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
        return cls(**{name: _as_declared(known[name], value) for name, value in values.items()})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def as_toml(self) -> str:
        """The resolved settings with their explanations, as `--config` reads them back."""
        lines = [
            f"{f.name} = {json.dumps(getattr(self, f.name))}  # {f.metadata['doc']}" for f in fields(self)
        ]
        return "\n".join(lines) + "\n"


def _as_declared(f: Field[Any], value: Any) -> Any:
    """TOML and flags write 1 for 1.0; nothing else is converted."""
    wanted = type(f.default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _check_field(f: Field[Any], value: Any) -> None:
    assert f.default is not MISSING
    wanted = type(f.default)
    if type(value) is not wanted:
        raise ValueError(f"{f.name} = {value!r} should be of type {wanted.__name__}")
    choices, low, high = f.metadata["choices"], f.metadata["low"], f.metadata["high"]
    if choices and value not in choices:
        raise ValueError(f"{f.name} = {value!r} is not one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{f.name} = {value!r} should be a finite number")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        limits = f"at least {low}" + (f" and at most {high}" if high is not None else "")
        raise ValueError(f"{f.name} = {value!r} should be {limits}")


PRESETS: dict[str, dict[str, Any]] = {
    # what differs from the defaults, a row for each kind of model
    "embedded": {
        "steps": 400,
        "batch": 64,
        "learning_rate": 5e-4,
        "warmup": 20,
        "rank": 16,
        "alpha": 16.0,
        "w_min": 1.5,  # cfg 3: the most obedient to the prompt; more only takes variety
        "w_max": 2.5,
        "trajectories": 128,
        "consecutive": 1,  # as the published figures were made; docs/reproduction compares
        "save_every": 100,
        "validate_every": 100,
        "average": 0.98,
    },
    "sd15": {"batch": 16, "w_min": 3.0, "w_max": 8.0},
    "sdxl": {"batch": 4, "accumulation": 4, "w_min": 3.0, "w_max": 8.0},
}
