"""A run may stop at any moment, by any means, and goes on as if it had not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from subprocess import PIPE
from threading import Timer
from typing import Any

import pytest
import torch
from tiny import (
    Gaussians,
    Stop,
    assert_near_run,
    data_free,
    grid_of,
    kind,
    prompts,
    run_tinier,
    same_run,
    settings,
    stop_at,
    tinier,
    uncond,
)

from comfyui_tcd.training.checkpoint import load_tensors, save_tensors, write_text
from comfyui_tcd.training.distill import BEST, CHECKPOINT, LORA, Student, distill, student_on
from comfyui_tcd.training.pairs import CachedLatents, Source, generator
from comfyui_tcd.training.processes import Crew
from comfyui_tcd.training.report import Validation, read_log
from comfyui_tcd.training.shards import write_shard
from comfyui_tcd.training.state import State

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and resource limits are POSIX")
WORKER = Path(__file__).with_name("worker.py")
Ask = Callable[[Path, str], dict[str, Any]]


def latents(folder: Path, config: Any) -> CachedLatents:
    path = folder / "latents.safetensors"
    if not path.exists():
        write_shard(path, torch.randn(9, *tinier().latent_shape, generator=generator(5)), prompts(9))
    return CachedLatents([path], grid_of(tinier(), config), config.seed)


RUNS: dict[str, dict[str, Any]] = {
    "data-free": {},
    "accumulated, without a cache, reused": {
        "batch": 2,
        "accumulation": 2,
        "cache_teacher": False,
        "reuse": 2,
    },
    "EMA target": {"target": "ema", "target_decay": 0.7, "weight_decay": 0.1},
    "S+ from pictures": {"student": "tcfs", "target": "ema", "source": "latents"},
    "second order": {"student": "tcf2", "solver": "dpm2", "cache_teacher": False},
    "in a row, accumulated": {"consecutive": 3, "batch": 2, "accumulation": 2},
    "all s": {"all_s": True, "distance": "l2", "s_range": "near"},
}


def go(name: str, folder: Path, on_step: Callable[[int, float], None] | None = None, **changed: Any) -> None:
    """Run one of RUNS, with validations and `changed` settings."""
    changes = {**RUNS[name], **changed}
    real = changes.pop("source", None) == "latents"
    config, backbone = settings(**changes, validate_every=2), tinier()
    source: Source = latents(folder.parent, config) if real else data_free(backbone, config, folder)
    noise = torch.randn(2, *backbone.latent_shape, generator=generator(99))
    check = Validation(backbone, prompts(2), uncond(), grid_of(backbone, config), 1.0, noise)
    run_tinier(config, folder, backbone, source, validation=check, on_step=on_step)


@pytest.fixture(scope="module", params=RUNS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of one of RUNS, and its folder after it ran without a stop."""
    folder = tmp_path_factory.mktemp("unbroken") / "whole"
    go(request.param, folder)
    return request.param, folder


@pytest.mark.parametrize("stops", [[1, 2, 3, 4, 5], [3], [2, 5]], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, whole: tuple[str, Path], stops: list[int]):
    name, unbroken = whole
    parts = tmp_path / "parts"
    for stop in stops:
        torch.manual_seed(stop)  # whatever the host's random numbers are
        with pytest.raises(Stop, match=f"at {stop}"):
            go(name, parts, stop_at(stop))
    go(name, parts)
    assert same_run(parts, unbroken)
    logs = [read_log(folder / "log.jsonl") for folder in (parts, unbroken)]
    assert logs[0] == logs[1] and len(logs[0]) == settings().steps
    best = [load_tensors(folder / BEST) for folder in (parts, unbroken)]
    assert best[0][1] == best[1][1] and all(torch.equal(best[0][0][k], v) for k, v in best[1][0].items())


def test_a_finished_run_is_not_trained_again(tmp_path: Path):
    first = run_tinier(settings(), tmp_path)
    (tmp_path / LORA).unlink()

    def refuse(done: int, loss: float) -> None:
        raise AssertionError("a step was made")

    again = run_tinier(settings(), tmp_path, on_step=refuse)
    assert again == first
    assert (tmp_path / LORA).is_file()


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_trains_on_bit_for_bit_as_one_of_all_steps(tmp_path: Path, name: str):
    """Four steps, then eight, with a stop at the sixth: weights, averages, optimizer, log, best."""
    go(name, tmp_path / "whole", steps=8, decay="constant")
    go(name, tmp_path / "on", steps=4, decay="constant")
    assert not same_run(tmp_path / "on", tmp_path / "whole")
    with pytest.raises(Stop):
        go(name, tmp_path / "on", stop_at(6), steps=8, decay="constant")
    go(name, tmp_path / "on", steps=8, decay="constant")
    assert same_run(tmp_path / "on", tmp_path / "whole")
    logs = [read_log(tmp_path / folder / "log.jsonl") for folder in ("on", "whole")]
    assert logs[0] == logs[1] and [record["step"] for record in logs[0]] == list(range(1, 9))
    best = [load_tensors(tmp_path / folder / BEST) for folder in ("on", "whole")]
    assert best[0][0].keys() == best[1][0].keys()
    assert all(torch.equal(v, best[1][0][k]) for k, v in best[0][0].items())


def test_a_run_that_is_stopped_in_its_warm_up_may_become_longer(tmp_path: Path):
    """Until then the rates do not depend on the number of steps, also with a cosine."""
    for name, steps in (("on", 6), ("whole", 9)):
        with pytest.raises(Stop):
            run_tinier(settings(warmup=3, steps=steps), tmp_path / name, on_step=stop_at(3))
    assert not same_run(tmp_path / "on", tmp_path / "whole"), "one says 6 steps, the other 9"
    for name in ("on", "whole"):
        run_tinier(settings(warmup=3, steps=9), tmp_path / name)
    assert same_run(tmp_path / "on", tmp_path / "whole")


@pytest.mark.parametrize(
    ("begun", "done", "then", "said"),
    [
        ({}, 6, {"steps": 8}, "What you can do: train 8 steps in another folder"),
        ({}, 6, {"steps": 8, "decay": "constant"}, "decay = cosine lowers the learning rate to 0"),
        ({}, 4, {"steps": 8}, "set steps = 6 to go on with it, or train 8 steps in another folder"),
        ({"decay": "constant"}, 6, {"steps": 8, "warmup": 4}, "Set warmup = 2 to train on to steps = 8"),
        ({"decay": "constant"}, 6, {"steps": 8, "decay": "cosine"}, "Set decay = constant to train on"),
        ({"decay": "constant"}, 6, {"steps": 4}, "holds a run of 6 steps, more than steps = 4; ask for 6 or"),
        ({}, 6, {"steps": 5}, "holds a run of 6 steps, more than steps = 5"),
        ({"decay": "constant"}, 6, {"steps": 8, "seed": 3}, r"other settings \(steps, seed\)"),
    ],
)
def test_more_steps_with_other_rates_for_those_done_are_refused_with_the_way_out(
    tmp_path: Path, begun: dict[str, Any], done: int, then: dict[str, Any], said: str
):
    if done < settings().steps:
        with pytest.raises(Stop):
            run_tinier(settings(**begun), tmp_path, on_step=stop_at(done))
    else:
        run_tinier(settings(**begun), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=said) as error:
        run_tinier(settings(**{**begun, **then}), tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_steps_after_the_checkpoint_are_made_again(tmp_path: Path):
    """As after a kill at step 5 with a checkpoint of step 4: the log, the shards and the LoRA are ahead."""
    config = settings(save_every=4)
    run_tinier(config, tmp_path / "whole")
    with pytest.raises(Stop):
        run_tinier(config, tmp_path / "parts", on_step=stop_at(4))
    kept = (tmp_path / "parts" / CHECKPOINT).read_bytes()
    with pytest.raises(Stop):
        run_tinier(config, tmp_path / "parts", on_step=stop_at(5))
    (tmp_path / "parts" / CHECKPOINT).write_bytes(kept)
    with (tmp_path / "parts" / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "loss": 0.')  # cut in the middle of a line
    left = tmp_path / "parts" / f".{CHECKPOINT}.123.tmp"
    left.write_bytes(b"half a file")
    run_tinier(config, tmp_path / "parts")
    assert same_run(tmp_path / "parts", tmp_path / "whole")
    assert [r["step"] for r in read_log(tmp_path / "parts" / "log.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert not left.exists()


def test_a_checkpoint_holds_all_that_a_run_is(tmp_path: Path):
    config = settings(student="tcfs", target="ema")
    run_tinier(config, tmp_path)
    tensors, metadata = load_tensors(tmp_path / CHECKPOINT)
    progress = json.loads(metadata["progress"])
    assert progress["step"] == 6 and progress["config"] == config.as_dict()
    groups = {k.partition("/")[0] for k in tensors}
    assert groups == {"student", "average", "target", "optimizer"}
    count = {g: sum(k.startswith(g) for k in tensors) for g in groups}
    assert count["student"] == count["average"] == count["target"] > 0
    assert count["optimizer"] == 3 * count["student"]  # two moments and the step


def test_other_settings_are_refused_by_name_and_nothing_changes(tmp_path: Path):
    run_tinier(settings(), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=r"other settings \(learning_rate, w_max\); use the same settings"):
        run_tinier(settings(learning_rate=2e-3, w_max=9.0), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_checkpoint_from_before_a_setting_goes_on_as_it_began(tmp_path: Path):
    run_tinier(settings(steps=4), tmp_path)
    tensors, metadata = load_tensors(tmp_path / CHECKPOINT)
    progress = json.loads(metadata["progress"])
    del progress["config"]["consecutive"]
    save_tensors(tmp_path / CHECKPOINT, tensors, {"progress": json.dumps(progress)})
    with pytest.raises(ValueError, match=r"other settings \(consecutive\)"):
        run_tinier(settings(steps=4, consecutive=2), tmp_path)
    run_tinier(settings(steps=4, consecutive=1), tmp_path)


def test_a_run_on_another_network_is_refused(tmp_path: Path):
    config = settings(rank=1, cache_teacher=False)
    run_tinier(config, tmp_path)
    backbone = Gaussians([0.0, *range(199, 1000, 200)], 0.9, 0.5, (1, 4, 4))
    path = tmp_path / "latents.safetensors"
    write_shard(path, torch.randn(4, 1, 4, 4), kind(1, 4))
    of = grid_of(backbone, config)
    with (
        student_on(backbone, config) as student,
        pytest.raises(ValueError, match="holds a run on another network; choose another folder"),
    ):
        distill(config, student, CachedLatents([path], of, 0), kind(0), of, tmp_path, quiet=True)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path):
    save_tensors(tmp_path / CHECKPOINT, {"a": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="not a checkpoint of a run; move it away or choose another folder"):
        run_tinier(settings(), tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{CHECKPOINT}: not a whole safetensors file"):
        run_tinier(settings(), tmp_path)


# Files that are whole or absent.


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"which": "first"})

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)  # everything is written, but perhaps not yet on the disk
        with pytest.raises(KeyboardInterrupt):
            save_tensors(path, {"a": torch.zeros(3)}, {"which": "second"})
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "file.txt", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]
    tensors, metadata = load_tensors(path)
    assert metadata == {"which": "first"} and bool(tensors["a"].all())
    save_tensors(path, {"a": torch.zeros(3)}, {"which": "second"})
    assert load_tensors(path)[1] == {"which": "second"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"file/a.safetensors: could not be written .* choose another folder"):
        save_tensors(tmp_path / "file" / "a.safetensors", {"a": torch.ones(1)}, {})


def test_the_state_is_saved_as_it_is_while_parameters_are_lent(tmp_path: Path):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    state = State(tmp_path / CHECKPOINT, settings(), {"student": {"a": parameter.detach()}}, optimizer)
    with torch.no_grad():
        parameter.fill_(2)
    mine, parameter.data = parameter.data, torch.full((2,), 9.0)
    state.save(1, None, None)
    parameter.data = mine
    assert load_tensors(tmp_path / CHECKPOINT)[0]["student/a"].tolist() == [2, 2]


# In processes of their own: what no exception can stand for.


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Generator[Ask]:
    """Runs a scene of `worker.py`, one process for all of them."""
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    command = [sys.executable, str(WORKER)]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, text=True, stdin=PIPE, stdout=PIPE, stderr=errors) as process,
    ):
        questions, answers = process.stdin, process.stdout
        assert questions and answers

        def ask(folder: Path, scene: str) -> dict[str, Any]:
            late = Timer(600, process.kill)
            late.start()
            questions.write(json.dumps([scene, str(folder)]) + "\n")
            questions.flush()
            answer = answers.readline()
            late.cancel()
            assert answer, f"the worker died:\n{log.read_text()}"
            seen = json.loads(answer)
            assert "error" not in seen, f"{seen['error']}\n{log.read_text()}"
            return seen

        yield ask
        questions.close()


@posix
@pytest.mark.slow
def test_a_run_killed_at_random_moments_resumes_from_a_whole_checkpoint(tmp_path: Path, worker: Ask):
    seen = worker(tmp_path, "kill")
    assert seen["kills"] == 20, "each has to hit a run"
    assert seen["steps"] == sorted(seen["steps"]), "no kill may lose a checkpoint"
    assert seen["steps"][-1] > 0
    assert same_run(tmp_path / "killed", tmp_path / "whole")
    assert read_log(tmp_path / "killed" / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")
    assert not list((tmp_path / "killed").rglob("*.tmp"))


@posix
def test_a_lora_is_whole_whenever_its_writer_is_killed(tmp_path: Path, worker: Ask):
    seen = worker(tmp_path, "publish")
    versions = seen["versions"]
    assert len(versions) == 21 and versions == sorted(versions) and versions[-1] >= 20
    assert seen["listed"] == [LORA] and seen["cut"], "what is half written bears no name of a LoRA"


@posix
@pytest.mark.slow
def test_a_full_disk_stops_with_a_message_and_the_last_checkpoint_stays(tmp_path: Path, worker: Ask):
    """A limit of the file size, at which writing fails as it does on a full disk."""
    seen = worker(tmp_path, "full")
    assert set(seen) == {"checkpoint", "pairs"}
    for name, (kind_of, message, step, left) in seen.items():
        assert kind_of == "OSError", (name, message)
        assert "could not be written" in message and "free " in message and "another folder" in message
        assert step == (0 if name == "pairs" else 2), f"{name}: the checkpoint before the disk was full"
        assert left == [], "no half file stays behind"
    assert CHECKPOINT in seen["checkpoint"][1] and "MiB" in seen["checkpoint"][1]
    assert "pairs-00000.safetensors" in seen["pairs"][1]
    for name in seen:
        assert same_run(tmp_path / name, tmp_path / "whole"), f"{name}: goes on once there is space"


@posix
@pytest.mark.slow
def test_processes_share_a_run_and_the_weights_are_those_of_one(tmp_path: Path, worker: Ask):
    """Two by gloo, also after a resume with another number of them, and after one was lost."""
    seen = worker(tmp_path, "crew")
    assert 0 < seen["lost at"] < 6
    for name in ("two", "changed", "lost"):
        assert_near_run(tmp_path / "alone", tmp_path / name)


@posix
def test_processes_train_on_and_agree_on_the_inputs(tmp_path: Path, worker: Ask):
    seen = worker(tmp_path, "inputs")
    assert_near_run(tmp_path / "alone", tmp_path / "on")
    for folder, said in zip(("on", "elsewhere"), seen["changed"], strict=True):
        assert said.startswith(f"ValueError: {tmp_path / folder}: holds a run with other prompts; give it")
    assert "process 1 has another prompts;" in seen["unlike"][1]
    assert "but another process has not;" in seen["unlike"][0]
    assert all(told.startswith("ValueError: every process needs the same inputs") for told in seen["unlike"])
    assert seen["same"] == ["", ""]


@posix
@pytest.mark.slow
def test_processes_agree_on_a_plan_and_one_out_of_memory_ends_them_all(tmp_path: Path, worker: Ask):
    """With unlike free memory; in the end each is told by its own error how to go on."""
    seen = worker(tmp_path, "memory")
    kept, recomputed, _ = seen["plans"]
    assert seen["unlike"] == seen["one unknown"] == [[[recomputed], "done"]] * 2
    assert seen["too little"][0] == seen["too little"][1]
    assert seen["too little"][0][1].startswith("MemoryError: training needs ")
    losses = [r["loss"] for r in read_log(tmp_path / "unlike" / "log.jsonl")]
    for i, name in enumerate(("first", "second")):
        full, other = seen[name][i], seen[name][1 - i]
        assert full == [
            [kept],
            f"MemoryError: out of memory with {kept}; start the same command with checkpointing = blocks, "
            "batch = 4, accumulation = 1: it goes on from the last checkpoint",
        ]
        assert other[0] == [kept] and "another process of this run has ended" in other[1]
        assert seen[f"{name} step"] == 3, "no step is lost"
        assert seen[f"{name} again"] == [[[recomputed], "done"]] * 2
        again = [r["loss"] for r in read_log(tmp_path / name / "log.jsonl")]
        assert again == pytest.approx(losses, rel=1e-4) and len(again) == 6


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="batch 4 cannot be shared by 3 processes; choose a multiple of 3"):
        run_tinier(settings(), tmp_path, crew=Crew(0, 3))


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_run_that_reads_its_figures_late_is_the_same_run(tmp_path: Path, ahead: int):
    """As on an accelerator, which is not waited for."""
    config = settings(save_every=3)
    run_tinier(config, tmp_path / "whole")
    steps: list[int] = []
    run_tinier(config, tmp_path / "late", ahead=ahead, on_step=lambda done, loss: steps.append(done))
    assert steps == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Stop, match="at 4"):
        run_tinier(config, tmp_path / "parts", ahead=ahead, on_step=stop_at(4))
    progress = json.loads(load_tensors(tmp_path / "parts" / CHECKPOINT)[1]["progress"])
    assert progress["step"] == min(4 + ahead, 6), "what the device had done by then is kept"
    run_tinier(config, tmp_path / "parts", ahead=ahead)
    for name in ("late", "parts"):
        assert same_run(tmp_path / name, tmp_path / "whole")
        assert read_log(tmp_path / name / "log.jsonl") == read_log(tmp_path / "whole" / "log.jsonl")


@pytest.mark.parametrize("ahead", [0, 1])
def test_after_a_loss_that_is_not_finite_nothing_changes(tmp_path: Path, ahead: int):
    """Not the weights either, though the device was a step ahead of the message."""
    config = settings(save_every=2)
    inside: dict[str, Any] = {}
    backbone = tinier()

    def start(student: Student) -> None:
        inside["parameters"] = student.parameters()

    def spoil(done: int, loss: float) -> None:
        if done == 2:
            inside["before"] = {k: p.detach().clone() for k, p in inside["parameters"].items()}
            backbone.before = lambda x: x.fill_(torch.nan)  # pyright: ignore[reportAttributeAccessIssue]

    with pytest.raises(ValueError, match=r"loss nan, .* at step 3: the run diverged") as caught:
        run_tinier(config, tmp_path, backbone, inside=start, on_step=spoil, ahead=ahead)
    del caught
    for name, parameter in inside["parameters"].items():
        assert torch.equal(parameter.detach(), inside["before"][name]), name
    assert json.loads(load_tensors(tmp_path / CHECKPOINT)[1]["progress"])["step"] == 2
