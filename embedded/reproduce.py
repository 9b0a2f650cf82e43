"""`tcd reproduce`: the paper's Table 1, Table 2 and Figure 6 on the embedded model, fairly won. Hours; stop
and resume at will.

Every method at its own best learning rate from a stated grid, equal iterations and batch, the same prompts,
noise and last step, three training seeds behind each claim. Each stage leaves its figures in `OUT/stages/`,
and is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..training.config import DistillConfig
from ..training.distill import LORA
from ..training.lora import load_lora
from .claims import report
from .compare import CFG, GAMMA, SOLVERS, STEPS, compare, draw_gammas, draw_steps, evaluation_prompts
from .flow import FlowModel
from .live import distil_embedded
from .measures import Gaussian, Judge
from .methods import Prompts, sample_guided, sample_student, sample_teacher, with_lora
from .model import EmbeddedModel
from .pictures import text_table
from .sample import LCM_LORA, TCD_LORA

SEEDS = (0, 1, 2)
RATES = (1e-4, 2e-4, 5e-4, 1e-3)
ITERATIONS = 800
SETTINGS: dict[str, Any] = {}  # over the preset `embedded`, for all students
FIGURE_6 = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
FIGURE_6_STEPS = (2, 4, 8, 20)
TUNED = (0.0, 0.1, 0.2, 0.3)  # gammas to choose from; LCM's sampler has none
GUIDANCE = (1.0, 1.25, 1.5, 2.0, 3.0)
CLOSE, CLOSE_TIMES = 2, 5  # at so many steps TCD and LCM are close: so many times the samples

METHODS: dict[str, dict[str, Any]] = {
    "tcd": {},
    "lcm": {"s_range": "zero"},
}
FORM_RATES = RATES[:3]
# Table 2: other forms of the student; TCF(2) takes two evaluations a map, TCF(S+) has parameters of its own.
FORMS: dict[str, dict[str, Any]] = {"tcf2": {"student": "tcf2"}, "tcfs": {"student": "tcfs"}}
# What decides the best gamma: range of s, guidance, budget.
VARIANTS: dict[str, dict[str, Any]] = {
    "near": {"s_range": "near"},
    "unguided": {"w_min": 0.0, "w_max": 0.0},
    "short": {"steps": ITERATIONS // 4},
}
AGAINST_TEACHER = "tcd, against the teacher"  # and what the pictures are compared with
# What saves work: how often a pair of a trajectory is used, how many in a row are used together.
THRIFT: dict[str, tuple[int, ...]] = {"reuse": (2, 4), "consecutive": (1, 2, 4)}

PARTS = ("table1", "teacher", "figure6", "table2", "variants", *THRIFT, "flow")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("runs/reproduce"), help="folder of the runs (default runs/reproduce)"
    )
    parser.add_argument("--samples", type=int, default=2000, help="samples behind each figure (default 2000)")
    parser.add_argument(
        "--publish",
        type=Path,
        help="also copy tables, pictures and figures here, e.g. docs/reproduction",
    )
    parser.add_argument("--ship", action="store_true", help="also make seed 0's LoRAs the shipped ones")
    parser.add_argument(
        "--only", choices=PARTS, nargs="*", help="make these parts alone, and report all that is finished"
    )


class Reproduction:
    """The folder of a reproduction: runs, and the figures of finished stages."""

    def __init__(self, out: Path, samples: int, parts: Sequence[str] = PARTS) -> None:
        self.out, self.parts, self.began = out, parts, time.monotonic()
        self.teacher, self.judge = EmbeddedModel.load(), Judge.load()
        self.prompts = evaluation_prompts(samples)
        self.more = evaluation_prompts(samples * CLOSE_TIMES, seed=5)
        self.tuning = evaluation_prompts(
            min(samples, 1000), seed=4
        )  # learning rates are chosen on other prompts

    def stage(self, part: str, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        """Rows of a stage, from its file if it is done; none of a part that is not asked for."""
        path = self.out / "stages" / f"{name}.json"
        if self.has(name):
            rows: list[Row] = json.loads(path.read_text("utf-8"))
            return rows
        if part not in self.parts:
            return []
        self.say(f"stage {name}")
        rows = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(rows, indent=1), "utf-8")
        scratch.replace(path)
        return rows

    def has(self, name: str) -> bool:
        """Whether a stage is done."""
        return (self.out / "stages" / f"{name}.json").is_file()

    def say(self, line: str) -> None:
        print(f"[{(time.monotonic() - self.began) / 60:6.1f} min] {line}", flush=True)

    def student(
        self,
        name: str,
        settings: Mapping[str, Any],
        rate: float,
        seed: int,
        teacher: EmbeddedModel | None = None,
    ) -> EmbeddedModel:
        """A distilled student, from its file if it is done."""
        teacher = teacher or self.teacher
        folder = self.out / "students" / f"{name}-lr{rate:g}-seed{seed}"
        values: dict[str, Any] = {"steps": ITERATIONS, **SETTINGS, **settings}
        config = DistillConfig.resolve("embedded", **values, learning_rate=rate, seed=seed, save_every=200)
        if not finished(folder / LORA, config.steps):
            self.say(f"distilling {folder.name}: {config.steps} iterations of {config.batch}")
            distil_embedded(teacher, config, folder, validate=False)
            for pairs in folder.glob("pairs-*"):
                pairs.unlink()
        return with_lora(teacher, folder / LORA)

    def against(self, pictures: Tensor) -> Judge:
        """The judge whose distances are to these pictures instead of real ones."""
        features, _ = self.judge.classifier.judge(pictures)
        return replace(self.judge, real=Gaussian.of(features))

    def best_rate(self, method: str) -> float:
        """The learning rate of the grid whose seed-0 student is nearest to real pictures, on average over 2
        to 20 steps; of Table 2's other forms at 4.
        """
        form = method in FORMS
        grid, counts = (FORM_RATES, (4,)) if form else (RATES, STEPS[1:])

        def measure() -> list[Row]:
            rows: list[Row] = []
            for rate in grid:
                student = self.student(method, {**METHODS, **FORMS}[method], rate, 0)
                for steps in counts:
                    images = self.sample(student, method, self.tuning, steps)
                    row = {"method": method, "rate": rate, "steps": steps}
                    rows.append({**row, **self.judge.measure(images, self.tuning.labels)})
            return rows

        part = "table2" if form else self.parts[0]  # all parts need those of the two methods
        rows = self.stage(part, f"rates-{method}", measure)
        means = {rate: _mean([r["frechet"] for r in rows if r["rate"] == rate]) for rate in grid}
        return min(means, key=lambda rate: means[rate])

    def sample(self, student: EmbeddedModel, method: str, prompts: Prompts, steps: int) -> Tensor:
        """Pictures by a method's own sampler."""
        gamma = 1.0 if method == "lcm" else GAMMA
        return sample_student(student, prompts, steps, gamma, order=2 if method == "tcf2" else 1)

    def best_gamma(self, rate: float) -> float:
        """The gamma that brings the seed-0 student nearest to real pictures, averaged over 2 to 20 steps."""

        def measure() -> list[Row]:
            student = self.student("tcd", METHODS["tcd"], rate, 0)
            rows: list[Row] = []
            for gamma in TUNED:
                for steps in STEPS[1:]:
                    images = sample_student(student, self.tuning, steps, gamma)
                    figures = self.judge.measure(images, self.tuning.labels)
                    rows.append({"method": "tcd", "gamma": gamma, "steps": steps, **figures})
            return rows

        rows = self.stage(self.parts[0], "gamma-tcd", measure)
        means = {gamma: _mean([r["frechet"] for r in rows if r["gamma"] == gamma]) for gamma in TUNED}
        return min(means, key=lambda gamma: means[gamma])

    def gammas(
        self,
        student: EmbeddedModel,
        name: str,
        steps: Sequence[int] = FIGURE_6_STEPS,
        judge: Judge | None = None,
    ) -> list[Row]:
        """Figure 6: every measure by gamma and steps."""
        judge = judge or self.judge
        rows: list[Row] = []
        for count in steps:
            for gamma in FIGURE_6:
                images = sample_student(student, self.prompts, count, gamma)
                row = {"method": name, "steps": count, "gamma": gamma}
                rows.append({**row, **judge.measure(images, self.prompts.labels)})
        return rows


def finished(path: Path, steps: int) -> bool:
    """Whether a LoRA is that of a whole run; one that was stopped leaves the LoRA it had."""
    return path.is_file() and load_lora(path)[1].get("tcd.step") == str(steps)


def run(args: argparse.Namespace) -> int:
    work = Reproduction(args.out, args.samples, args.only or PARTS)
    rates = {method: work.best_rate(method) for method in METHODS}
    gamma = work.best_gamma(rates["tcd"])
    work.say(f"best learning rates of {list(RATES)}: {rates}; best gamma of {list(TUNED)}: {gamma}")
    rate = rates["tcd"]
    told = [form for form in FORMS if "table2" in work.parts or work.has(f"rates-{form}")]
    forms = {form: work.best_rate(form) for form in told}
    sections: dict[str, list[Row]] = {
        "table1": table_1(work, rates, gamma),
        "close": close(work, rates, gamma),
        "teacher": work.stage("teacher", "teacher", lambda: teacher_rows(work)),
        "figure6": [row for seed in SEEDS for row in figure_6(work, rate, seed)],
        "table2": [
            row
            for name, own in {"tcd": rate, **forms}.items()
            for seed in SEEDS
            for row in table_2(work, name, own, seed)
        ],
        "rates": by_rate(work, rate),
        "variants": [
            *against_teacher(work, rate),
            *(row for name in VARIANTS for row in variant(work, rate, name)),
        ],
        "reuse": thrift(work, rate, "reuse", SEEDS[0]),
        "consecutive": [row for seed in SEEDS for row in thrift(work, rate, "consecutive", seed)],
        "flow": flow(work, rate, SEEDS[0]),
    }
    settings = {
        "samples": args.samples, "iterations": ITERATIONS, "seeds": list(SEEDS), "rates": list(RATES),
        "best_rates": {**rates, **forms},
        "gamma": GAMMA, "cfg": CFG, "end": "official", "command": "make reproduce",
    }  # fmt: skip
    rows = [row for row in sections["table1"] if row.get("seed", 0) == 0]
    results = {"rows": rows, "settings": settings, "sections": sections}
    (args.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    (args.out / "report.md").write_text(report(sections, settings), "utf-8")
    draw(work, rates)
    if args.ship:
        for method, path in (("tcd", TCD_LORA), ("lcm", LCM_LORA)):
            shutil.copyfile(work.out / "students" / f"{method}-lr{rates[method]:g}-seed0" / LORA, path)
    if args.publish:
        args.publish.mkdir(parents=True, exist_ok=True)
        for path in [args.out / "results.json", args.out / "report.md", *args.out.glob("*.png")]:
            shutil.copyfile(path, args.publish / path.name)
        shutil.copytree(args.out / "stages", args.publish / "stages", dirs_exist_ok=True)
    print(
        text_table(
            rows, ("method", "steps", "gamma", "frechet", "frechet_ci", "complexity", "prompt_accuracy")
        )
    )
    print(f"Results are in {args.publish or args.out}")
    return 0


def table_1(work: Reproduction, rates: Mapping[str, float], gamma: float) -> list[Row]:
    """Every method at every step count; students once for each training seed, TCD also with a tuned gamma."""
    rows: list[Row] = []
    for seed in SEEDS:

        def measure(seed: int = seed) -> list[Row]:
            students = {m: work.student(m, METHODS[m], rates[m], seed) for m in METHODS}
            solvers = SOLVERS if seed == 0 else ()  # the teacher has no training seed
            made, _ = compare(
                work.teacher,
                students,
                work.judge,
                work.prompts,
                steps=STEPS,
                solvers=solvers,
                report=work.say,
            )
            return [{**r, "seed": seed} for r in made if seed == 0 or r["method"] in METHODS]

        def tuned(seed: int = seed) -> list[Row]:
            student = work.student("tcd", METHODS["tcd"], rates["tcd"], seed)
            made: list[Row] = []
            for steps in STEPS:
                images = sample_student(student, work.prompts, steps, gamma)
                figures = work.judge.measure(images, work.prompts.labels)
                made.append({"method": "tcd_tuned", "steps": steps, "gamma": gamma, **figures, "seed": seed})
            return made

        rows += work.stage("table1", f"table1-seed{seed}", measure)
        rows += work.stage("table1", f"tuned-seed{seed}", tuned)
    return rows


def close(work: Reproduction, rates: Mapping[str, float], gamma: float) -> list[Row]:
    """TCD and LCM where they are close, on more samples from prompts and noise of their own."""
    rows: list[Row] = []
    for seed in SEEDS:

        def measure(seed: int = seed) -> list[Row]:
            made: list[Row] = []
            for name, method, own in (
                ("tcd", "tcd", GAMMA),
                ("tcd_tuned", "tcd", gamma),
                ("lcm", "lcm", 1.0),
            ):
                student = work.student(method, METHODS[method], rates[method], seed)
                images = sample_student(student, work.more, CLOSE, own)
                figures = work.judge.measure(images, work.more.labels)
                row = {"method": name, "steps": CLOSE, "gamma": None if name == "lcm" else own}
                made.append({**row, **figures, "seed": seed})
            if seed == 0:
                floor = work.judge.floors(work.more.labels)["autoencoder"]
                made.append({"method": "autoencoder", "steps": 0, "gamma": None, **floor, "seed": seed})
            return made

        rows += work.stage("table1", f"close-seed{seed}", measure)
    return rows


def teacher_rows(work: Reproduction) -> list[Row]:
    """The teacher's solvers over guidance: its own best is one of these."""
    rows: list[Row] = []
    for cfg in GUIDANCE:
        for solver in ("ddim", "dpmpp_2s"):
            for steps in (4, 20):
                images = sample_teacher(work.teacher, work.prompts, solver, steps, cfg)
                rows.append(
                    {
                        "method": solver,
                        "steps": steps,
                        "cfg": cfg,
                        **work.judge.measure(images, work.prompts.labels),
                    }
                )
    return rows


def figure_6(work: Reproduction, rate: float, seed: int) -> list[Row]:
    def measure() -> list[Row]:
        return [
            {**r, "seed": seed} for r in work.gammas(work.student("tcd", METHODS["tcd"], rate, seed), "tcd")
        ]

    return work.stage("figure6", f"figure6-seed{seed}", measure)


def table_2(work: Reproduction, name: str, rate: float, seed: int) -> list[Row]:
    """A form of the student, TCF(1), TCF(2) or TCF(S+), at 4 steps with equal iterations; TCF(2) spends twice
    the evaluations, in training and in sampling.
    """

    def measure() -> list[Row]:
        student = work.student(name, {**METHODS, **FORMS}[name], rate, seed)
        images = work.sample(student, name, work.prompts, 4)
        row = {"method": name, "seed": seed, "rate": rate, "steps": 4, "gamma": GAMMA}
        return [{**row, **work.judge.measure(images, work.prompts.labels)}]

    return work.stage("table2", f"table2-{name}-lr{rate:g}-seed{seed}", measure)


def variant(work: Reproduction, rate: float, name: str) -> list[Row]:
    """Figure 6 again with one setting of the distillation changed."""

    def measure() -> list[Row]:
        return work.gammas(work.student(name, VARIANTS[name], rate, 0), name, (4, 8))

    return work.stage("variants", f"variant-{name}", measure)


def against_teacher(work: Reproduction, rate: float) -> list[Row]:
    """Figure 6 again, by the distance to what the guided teacher draws with 20 steps, not to the data."""

    def measure() -> list[Row]:
        prompts = evaluation_prompts(len(work.more.labels) // 2, seed=6)
        judge = work.against(sample_teacher(work.teacher, prompts, "ddim", max(STEPS), CFG))
        student = work.student("tcd", METHODS["tcd"], rate, 0)
        return work.gammas(student, AGAINST_TEACHER, (4, 8), judge)

    return work.stage("variants", "against-teacher", measure)


def by_rate(work: Reproduction, best: float) -> list[Row]:
    """TCF(2) at 4 steps by learning rate, beside TCF(1), by the distance to the data and to what the guided
    teacher draws; rate 0 is no training. On the prompts that rates are chosen on.
    """

    def measure() -> list[Row]:
        prompts = work.tuning
        teacher = work.against(sample_teacher(work.teacher, prompts, "ddim", max(STEPS), CFG))
        settings = {**METHODS, **FORMS}
        rows: list[Row] = []
        for method, rate in [("tcd", 0.0), ("tcd", best), *(("tcf2", rate) for rate in (0.0, *FORM_RATES))]:
            student = work.student(method, settings[method], rate, 0) if rate else work.teacher
            images = work.sample(student, method, prompts, 4)
            row = {"method": method, "rate": rate, "steps": 4, "gamma": GAMMA}
            row |= work.judge.measure(images, prompts.labels)
            row["frechet_to_teacher"] = teacher.measure(images, prompts.labels)["frechet"]
            rows.append(row)
        return rows

    return work.stage("table2", "table2-by-rate", measure)


def thrift(work: Reproduction, rate: float, setting: str, seed: int) -> list[Row]:
    """Students by a setting that saves work, with as many iterations; by the distance to what the guided
    teacher draws.
    """

    def measure() -> list[Row]:
        judge = work.against(sample_teacher(work.teacher, work.tuning, "ddim", max(STEPS), CFG))
        usual = DistillConfig.resolve("embedded", **SETTINGS).as_dict()[setting]
        rows: list[Row] = []
        for value in THRIFT[setting]:
            name = "tcd" if value == usual else f"{setting}{value}"
            student = work.student(name, METHODS["tcd"] | {setting: value}, rate, seed)
            for steps in STEPS[1:]:
                images = work.sample(student, "tcd", work.tuning, steps)
                row = {"method": "tcd", setting: value, "seed": seed, "steps": steps, "gamma": GAMMA}
                rows.append({**row, **judge.measure(images, work.tuning.labels)})
        return rows

    return work.stage(setting, f"{setting}-seed{seed}", measure)


def flow(work: Reproduction, rate: float, seed: int) -> list[Row]:
    """The same network as a flow model: its student beside itself under Euler's method, guided. By the
    distance to what it draws itself in 20 steps.
    """

    def measure() -> list[Row]:
        teacher = FlowModel.load()
        prompts = work.tuning
        drawn = {k: sample_guided(teacher, prompts, k, CFG) for k in STEPS}
        judge = work.against(drawn[max(STEPS)])
        student = work.student("flow", METHODS["tcd"], rate, seed, teacher)
        rows: list[Row] = []
        for steps in STEPS:
            pictures: dict[float | None, Tensor] = {None: drawn[steps]}
            pictures |= {gamma: sample_student(student, prompts, steps, gamma) for gamma in (0.0, GAMMA)}
            for gamma, images in pictures.items():
                method = "euler" if gamma is None else "tcd"
                row = {"method": method, "gamma": gamma, "seed": seed, "steps": steps, "rate": rate}
                rows.append({**row, **judge.measure(images, prompts.labels)})
        return rows

    return work.stage("flow", f"flow-seed{seed}", measure)


@torch.no_grad()
def draw(work: Reproduction, rates: Mapping[str, float]) -> None:
    """The two pictures, from seed 0's students."""
    few = Prompts(work.prompts.labels[:8], work.prompts.noise[:8], work.prompts.seed)
    students = {m: work.student(m, METHODS[m], rates[m], 0) for m in METHODS}
    pictures = {
        (s, k): sample_teacher(work.teacher, few, s, k, CFG) for s in ("ddim", "dpmpp_2s") for k in STEPS
    }
    pictures |= {
        (m, k): sample_student(students[m], few, k, 1.0 if m == "lcm" else GAMMA)
        for m in METHODS
        for k in STEPS
    }
    draw_steps(pictures, work.out / "steps.png")
    draw_gammas(students["tcd"], few, work.out / "gamma.png")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
