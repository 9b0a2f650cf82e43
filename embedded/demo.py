"""`tcd demo`: distil a TCD LoRA before your eyes, then compare it with its teacher and with LCM. About five
minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from ..training.config import DistillConfig
from ..training.distill import LORA
from ..training.report import read_log
from .compare import CFG, GAMMA, STEPS, compare, draw_gammas, draw_steps, evaluation_prompts
from .live import distil_embedded
from .measures import Judge
from .methods import with_lora
from .model import EmbeddedModel
from .page import write_page
from .pictures import line_chart, text_table
from .sample import LCM_LORA, TCD_LORA

COLUMNS = ("method", "steps", "gamma", "frechet", "frechet_ci", "complexity", "prompt_accuracy", "distance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder to write into (default demo-output)"
    )
    parser.add_argument("--seconds", type=float, default=110.0, help="time to distil for (default 110)")
    parser.add_argument("--samples", type=int, default=500, help="samples behind each figure (default 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the distillation (default 0)")


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    if args.samples < 130:
        raise ValueError(f"--samples {args.samples}: at least 130 are needed to estimate 128 features")
    args.out.mkdir(parents=True, exist_ok=True)
    say("1/4 loading the teacher and its judge", began)
    model, judge = EmbeddedModel.load(), Judge.load()

    run_folder = args.out / "distillation"
    shutil.rmtree(run_folder, ignore_errors=True)
    steps = affordable_steps(model, args.seconds, args.out / ".warm-up", args.seed)
    config = DistillConfig.resolve(
        "embedded",
        steps=steps,
        seed=args.seed,
        warmup=min(20, steps // 4),
        validate_every=max(1, steps // 2),
        save_every=steps,
    )
    say(f"2/4 distilling a TCD LoRA from prompts alone: {steps} iterations of {config.batch}", began)
    distil_embedded(model, config, run_folder)

    say(f"3/4 sampling {args.samples} pictures for each method and step count", began)
    students = {
        "lcm": with_lora(model, LCM_LORA),
        "tcd": with_lora(model, TCD_LORA),
        "tcd_live": with_lora(model, run_folder / LORA),
    }
    prompts = evaluation_prompts(args.samples)
    rows, pictures = compare(model, students, judge, prompts, report=lambda line: say(f"    {line}", began))

    say("4/4 drawing", began)
    settings = settings_of(config, args.samples)
    results = {"rows": rows, "settings": settings}
    (args.out / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    table = text_table(rows, COLUMNS)
    (args.out / "table.txt").write_text(table + "\n", "utf-8")
    draw_steps(pictures, args.out / "steps.png")
    draw_gammas(students["tcd"], prompts, args.out / "gamma.png")
    loss = [(float(r["step"]), float(r["loss"])) for r in read_log(run_folder / "log.jsonl")]
    (args.out / "loss.svg").write_text(line_chart({"loss": loss}, x="step", y="loss", log_y=True), "utf-8")
    write_page(
        args.out / "index.html",
        "Trajectory Consistency Distillation on a small model",
        f"A LoRA distilled in {steps} iterations on this machine, beside the shipped ones and their teacher. "
        "The same prompts and noise in every cell.",
        results,
        [
            ("Methods by steps", args.out / "steps.png"),
            ("Gamma by steps (shipped TCD LoRA)", args.out / "gamma.png"),
        ],
        loss,
    )
    print(table)
    print(
        "autoencoder: real pictures after the autoencoder, the score of perfect samples at this sample count"
    )
    say("done", began)
    print(f"Open {args.out / 'index.html'}")
    return 0


def affordable_steps(model: EmbeddedModel, seconds: float, scratch: Path, seed: int) -> int:
    """How many iterations fit into `seconds` on this machine: from a short run, its one-off part taken out;
    20 to 600.
    """
    marks: list[float] = []
    probe = DistillConfig.resolve("embedded", steps=6, warmup=1, trajectories=8, seed=seed)
    try:
        distil_embedded(
            model,
            probe,
            scratch,
            on_step=lambda *_: marks.append(time.monotonic()),
            validate=False,
            quiet=True,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    per_step = (marks[-1] - marks[1]) / (len(marks) - 2)
    return max(
        20, min(600, int(seconds / (per_step * 1.35)))
    )  # the teacher's trajectories are a third on top


def settings_of(config: DistillConfig, samples: int) -> dict[str, Any]:
    """What results.json says of how it was made."""
    return {
        "steps": list(STEPS), "gamma": GAMMA, "cfg": CFG, "samples": samples, "end": "official",
        "iterations": config.steps, "batch": config.batch, "learning_rate": config.learning_rate,
        "seed": config.seed,
    }  # fmt: skip


def say(line: str, began: float) -> None:
    print(f"[{time.monotonic() - began:5.0f} s] {line}", flush=True)
