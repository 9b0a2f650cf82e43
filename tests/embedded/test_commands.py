"""The commands a visitor types, run as a visitor runs them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comfyui_tcd.cli import main
from comfyui_tcd.embedded import compare, demo, measures, reproduce
from comfyui_tcd.embedded.page import FLOORS, NAMES
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.lora import load_lora, save_lora

TINY = ["--batch", "8", "--trajectories", "2", "--rank", "4", "--warmup", "1", "--validation-prompts", "2"]


def test_sample_writes_a_picture_that_depends_on_prompt_and_seed(tmp_path, capsys):
    def picture(name, *more):
        path = tmp_path / name
        assert main(["sample", "--prompt", "sad person, hat", "--count", "2", "--out", str(path), *more]) == 0
        return path.read_bytes()

    first = picture("a.png")
    assert first == picture("b.png") and first.startswith(b"\x89PNG")
    assert first != picture("c.png", "--seed", "1")
    assert first != picture("d.png", "--teacher")
    assert str(tmp_path / "d.png") in capsys.readouterr().out


def test_sample_names_unknown_words_and_the_known_ones(tmp_path, capsys):
    assert main(["sample", "--prompt", "moustache", "--out", str(tmp_path / "x.png")]) == 2
    message = capsys.readouterr().err
    assert "moustache" in message and "sunglasses" in message and "Traceback" not in message


def test_train_dry_run_prints_settings_that_can_be_read_back(tmp_path, capsys):
    assert (
        main(["train", "--embedded", "--out", str(tmp_path / "run"), "--dry-run", "--steps", "7", *TINY]) == 0
    )
    out = capsys.readouterr().out
    (tmp_path / "again.toml").write_text(out, "utf-8")
    assert DistillConfig.resolve("embedded", tmp_path / "again.toml").steps == 7
    assert "trained parameters" in out and "GiB" in out and "min" in out
    assert not (tmp_path / "run").exists()


def test_train_makes_a_lora_and_goes_on_where_it_was(tmp_path, capsys):
    out = tmp_path / "a run"
    command = ["train", "--embedded", "--out", str(out), "--steps", "4", "--save-every", "2", *TINY]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("happy person\n\nred hair, glasses\n", "utf-8")
    assert main([*command, "--prompts", str(prompts)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("lora.safetensors")
    tensors, metadata = load_lora(out / "lora.safetensors")
    assert json.loads(metadata["tcd.steps"]) == 4 and metadata["tcd.teacher"] == "embedded"
    assert len(tensors) > 100
    assert main([*command, "--prompts", str(prompts)]) == 0  # done already: nothing changes
    assert "loss nan" not in capsys.readouterr().out
    again, _ = load_lora(out / "lora.safetensors")
    assert all(torch.equal(again[k], v) for k, v in tensors.items())
    assert main([*command[: -len(TINY)], *TINY, "--learning-rate", "0.1", "--prompts", str(prompts)]) == 2
    assert "other settings (learning_rate)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed = 3", "unknown setting 'speed'"),
        ("steps = 'x'", "should be of type int"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_a_bad_settings_file_is_refused_by_name(tmp_path, capsys, text, message):
    path = tmp_path / "my.toml"
    path.write_text(text, "utf-8")
    assert main(["train", "--embedded", "--out", str(tmp_path / "x"), "--config", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_prompt_file_is_refused(tmp_path, capsys):
    path = tmp_path / "none.txt"
    path.write_text("\n \n", "utf-8")
    assert main(["train", "--embedded", "--out", str(tmp_path / "x"), "--prompts", str(path)]) == 2
    assert "no prompts" in capsys.readouterr().err


def test_the_module_runs_like_the_command(tmp_path):
    command = [
        sys.executable,
        "-m",
        "comfyui_tcd.training",
        "--embedded",
        "--out",
        str(tmp_path / "x"),
        "--dry-run",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "steps = " in done.stdout


def test_the_module_tells_a_users_error_without_a_traceback(tmp_path):
    command = [sys.executable, "-m", "comfyui_tcd.training", "--embedded", "--out", str(tmp_path / "a b")]
    command += ["--prompts", str(tmp_path / "no such file.txt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("tcd: error: ") and "no such file.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_module_tells_of_too_little_memory_without_a_traceback(monkeypatch, capsys):
    def run(_args):
        raise MemoryError("out of memory: lower rank")

    monkeypatch.setattr("comfyui_tcd.training.cli.run", run)
    monkeypatch.setattr(sys, "argv", ["training", "--embedded", "--out", "x"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("comfyui_tcd.training", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "tcd: error: out of memory: lower rank\n"


@pytest.mark.slow
def test_demo_shows_every_method_at_every_step(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--seconds", "4", "--samples", "130"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Open {tmp_path / 'index.html'}"
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    methods = {(row["method"], row["steps"]) for row in results["rows"]}
    assert methods == {(m, k) for m in NAMES if m not in {*FLOORS, "tcd_tuned"} for k in demo.STEPS} | {
        (m, 0) for m in FLOORS
    }
    for row in results["rows"]:
        assert row["frechet_ci"][0] <= row["frechet"] <= row["frechet_ci"][1]
        assert row["samples"] == 130 and 0 <= row["prompt_accuracy"] <= 1
        assert (row["gamma"] is not None) == row["method"].startswith("tcd")
    page = (tmp_path / "index.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 2 and "<svg" in page and "viewport" in page
    assert "http" not in page.replace("http-equiv", "")  # self-contained
    for name in ("steps.png", "gamma.png", "loss.svg", "table.txt"):
        assert (Path(tmp_path) / name).stat().st_size > 500


def test_demo_refuses_too_few_samples(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--samples", "20"]) == 2
    assert "at least 130" in capsys.readouterr().err


def test_a_stopped_students_lora_does_not_count_as_finished(tmp_path):
    up = {"a.lora_down": torch.ones(1, 2), "a.lora_up": torch.ones(2, 1)}
    save_lora(tmp_path / "x.safetensors", up, 1.0, {"tcd.step": "7"}, {})
    assert reproduce.finished(tmp_path / "x.safetensors", 7)
    assert not reproduce.finished(tmp_path / "x.safetensors", 8)
    assert not reproduce.finished(tmp_path / "none.safetensors", 7)


@pytest.mark.slow
def test_reproduce_goes_on_where_it_was_and_publishes(tmp_path, capsys, monkeypatch):
    small = {
        "SEEDS": (0,),
        "RATES": (1e-4,),
        "FORM_RATES": (1e-4,),
        "ITERATIONS": 2,
        "FIGURE_6": (0.0, 1.0),
        "FIGURE_6_STEPS": (2,),
        "TUNED": (0.0, 0.3),
    }
    small |= {"STEPS": (2, 4, 8, 20), "GUIDANCE": (1.5,), "VARIANTS": {"near": {"s_range": "near"}}}
    small |= {"SETTINGS": {"batch": 8, "trajectories": 2, "rank": 4, "warmup": 0}}
    for name, value in small.items():
        monkeypatch.setattr(reproduce, name, value)
    monkeypatch.setattr(compare, "STEPS", (2, 4, 8, 20))
    monkeypatch.setattr(measures, "REFERENCE", 500)
    command = [
        "reproduce",
        "--out",
        str(tmp_path / "run"),
        "--samples",
        "40",
        "--publish",
        str(tmp_path / "docs"),
    ]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "distilling tcd-lr0.0001-seed0" in first and "stage variant-near" in first
    results = json.loads((tmp_path / "docs" / "results.json").read_text("utf-8"))
    assert {r["method"] for r in results["rows"]} == {"tcd", "tcd_tuned", "lcm", "ddim", "dpmpp_2s", *FLOORS}
    assert results["settings"]["best_rates"] == dict.fromkeys(("tcd", "lcm", "tcf2", "tcfs"), 1e-4)
    parts = {
        "table1",
        "close",
        "figure6",
        "table2",
        "rates",
        "variants",
        "teacher",
        "flow",
        *reproduce.THRIFT,
    }
    assert parts == set(results["sections"])
    assert {r["samples"] for r in results["sections"]["close"]} == {40 * reproduce.CLOSE_TIMES}
    assert {p.name for p in (tmp_path / "docs").iterdir()} >= {"steps.png", "gamma.png"}
    assert (tmp_path / "docs" / "stages" / "close-seed0.json").is_file()
    report = (tmp_path / "docs" / "report.md").read_text("utf-8")
    heads = (
        "Table 1",
        "The teacher",
        "Figure 6",
        "Table 2",
        "Pairs used again",
        "Pairs in a row",
        "As a flow model",
    )
    assert all(f"## {part}" in report for part in heads)
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "stage" not in again and "distilling" not in again  # all of it was done
    [path.unlink() for path in (tmp_path / "run" / "stages").glob("table2-*.json")]
    assert main([*command, "--only", "figure6"]) == 0
    some = json.loads((tmp_path / "docs" / "results.json").read_text("utf-8"))["sections"]
    assert some.pop("table2") == some.pop("rates") == []  # nothing else is made
    assert all(some.values())  # what is finished is told
