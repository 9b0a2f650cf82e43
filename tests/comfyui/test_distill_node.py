"""TCD_Distill, TCD_Dataset and TCD_SaveLora on tiny models of every kind, as the executor calls them.

Numbers such as B14 are those of docs/known-defects.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_worker import start
from safetensors import safe_open
from safetensors.torch import load_file

from comfyui_tcd.embedded.model import EmbeddedModel
from comfyui_tcd.training.config import DistillConfig
from comfyui_tcd.training.report import read_log
from comfyui_tcd.training.run import train

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
KINDS = ["epsilon", "v", "v+zsnr", "sdxl", "flux", "sd3"]
VP = ["epsilon", "v", "v+zsnr"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a home of ComfyUI")  # with spaces: B27


@pytest.fixture(scope="module")
def inside(host: Any, pack: Path, home: Path) -> Generator[Inside]:
    log = home / "log.txt"
    with start(host.path, host.python, pack, log, "distill_inside.py", home) as call:
        yield call


def near(a: torch.Tensor, b: torch.Tensor, within: float = 1e-4) -> bool:
    return float((a - b).abs().max()) <= within * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_distilled_sampled_saved_and_nothing_left_on_the_model(inside: Inside, kind: str):
    """Sample, train, sample in one prompt (B26); every kind of prediction (B14, B17, B18)."""
    found = inside("distilled", kind=kind, name=f"whole {kind}".replace("+", "-"))
    assert found["changed by training"] == [] == found["changed by sampling"]
    assert torch.equal(found["plain"], found["again"])
    assert not torch.equal(found["plain"], found["student"])
    assert near(found["core"], found["student"]) and near(found["memory"], found["student"])
    assert found["patched by core"] == found["layers"] > 10  # no key without a weight
    assert len(found["losses"]) == 3 and all(x > 0 for x in found["losses"])
    assert found["image"].shape[1:] == (8, 40, 3) and float(found["image"].std()) > 0


def test_the_file_says_what_it_is_and_keeps_alpha(inside: Inside, home: Path):
    """Alpha is in the file: without it ComfyUI applies the LoRA at another strength (B24)."""
    found = inside("distilled", kind="sd3", name="told")
    with safe_open(found["path"], "pt") as file:
        metadata = file.metadata()
        alphas = {float(file.get_tensor(k)) for k in file.keys() if k.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {4.0} and metadata["ss_network_alpha"] == "4.0" and metadata["ss_network_dim"] == "4"
    assert metadata["tcd.teacher"] == "SD3" and len(metadata["tcd.teacher_hash"]) == 64
    assert json.loads(metadata["tcd.steps"]) == 3
    assert found["metadata"] == metadata


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_batch_are_not_mixed(inside: Inside, kind: str):
    found = inside("rows", kind=kind)
    for both, alone in zip(found["batch"], found["alone"], strict=True):
        assert near(both, alone)
    first, second = found["batch"][0][:2]
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_host_reads_of_a_batch_stays_off_the_device(inside: Inside, kind: str):
    """Which rows are unconditional is asked in every forward, and would be waited for."""
    found = inside("devices", kind=kind)
    assert found.pop("uncond") == "cpu" and set(found.values()) == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bridge_says_what_the_hosts_sampling_says(inside: Inside, kind: str):
    """The size and pooled text of SDXL (B17), v, and velocity (B18) go through the host's own code."""
    found = inside("guided_like_the_host", kind=kind)
    assert near(found["ours"], found["host"], 1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "flux"])
def test_a_network_is_told_what_it_is_told_when_sampling(inside: Inside, kind: str):
    found = inside("told", kind=kind)
    assert found["bridge"] == found["host"] and {"sigmas", "sample_sigmas"} <= found["host"].keys()


@pytest.mark.parametrize("kind", ["epsilon", "sdxl", "flux"])
def test_what_other_nodes_put_on_the_model_stays_in_the_teacher(inside: Inside, kind: str):
    """And in the student, whose LoRA holds none of it."""
    plain, teacher = (inside("guided_like_the_host", kind=kind, patched=p) for p in (False, True))
    assert near(teacher["ours"], teacher["host"], 1e-5) and not near(teacher["host"], plain["host"], 1e-2)
    found = inside("distilled", kind=kind, name=f"dressed {kind}", patched=True)
    assert found["changed by training"] == [] and torch.equal(found["plain"], found["again"])
    assert near(found["core"], found["student"]) and near(found["memory"], found["student"])
    assert not torch.equal(found["plain"], found["student"])


@pytest.mark.parametrize("kind", KINDS)
def test_x0_and_eps_are_those_of_the_state(inside: Inside, kind: str):
    found = inside("rows", kind=kind)
    (x0, eps), (alpha, sigma) = found["batch"], (v[:, None, None, None] for v in found["level"])
    assert near(alpha * x0 + sigma * eps, found["x"], 1e-4)


@pytest.mark.parametrize("kind", VP)
def test_the_schedule_is_the_models_own(inside: Inside, kind: str):
    """The zero terminal SNR of a model is kept (B15)."""
    found = inside("schedule", kind=kind)
    assert torch.allclose(found["sigma_hat"], found["host"], rtol=1e-5)
    if kind == "v+zsnr":
        assert float(found["sigma_hat"][-1]) > 1000


@pytest.mark.parametrize(
    ("break_at", "at"), [("error", 25), ("error", 40), ("interrupt", 25), ("interrupt", 40)]
)
def test_an_error_and_an_interrupt_leave_the_model_alone(inside: Inside, break_at: str, at: int):
    broken = inside("refused", kind="epsilon", name=f"{break_at}-{at}", break_at=break_at, at=at)
    wanted = "the card fell out" if break_at == "error" else "InterruptProcessing"
    assert wanted in broken["error"] and broken["calls"] == at
    assert broken["changed"] == []
    told = inside("latest", node_id="7")
    assert told["state"] == ("failed" if break_at == "error" else "stopped")


def test_a_stopped_run_goes_on_to_the_weights_of_an_unbroken_one(inside: Inside, home: Path):
    """The optimizer goes on too, and the file may have any name (B25)."""
    whole = inside("distilled", kind="sd3", name="unbroken")
    broken = inside("refused", kind="sd3", name="broken", break_at="interrupt", at=26)
    assert "Interrupt" in broken["error"]
    records = read_log(home / "output/tcd_training/broken/log.jsonl")
    assert 0 < records[-1]["step"] < 3
    kept = load_file(home / "output/tcd_training/broken/lora.safetensors")
    assert any(bool(v.any()) for k, v in kept.items() if "lora_up" in k)
    again = inside("distilled", kind="sd3", name="broken")
    a, b = load_file(whole["path"]), load_file(again["path"])
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert again["losses"] == whole["losses"]


@pytest.mark.parametrize("kind", ["epsilon", "sd3"])
@pytest.mark.parametrize("phase", ["pairs", "student", "backward", "validation", "saving"])
def test_a_cancel_in_any_phase_loses_nothing(inside: Inside, home: Path, kind: str, phase: str):
    more = 'checkpointing = "blocks"'
    whole = inside("distilled", kind=kind, name=f"uncancelled {kind}", steps=4, more=more)
    found = inside("cancelled", phase=phase, kind=kind, name=f"cancelled in {phase} {kind}")
    assert "Interrupt" in found["error"] and found["changed"] == []
    assert found["pressed"] >= 1
    assert found["kept"] == 4 if phase == "validation" else 0 < found["kept"] < 4
    a, b = load_file(whole["path"]), load_file(found["path"])
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_is_not_trained_again(inside: Inside, home: Path):
    first = inside("distilled", kind="sd3", name="once")
    log = home / "output/tcd_training/once/log.jsonl"
    before = log.read_text()
    second = inside("distilled", kind="sd3", name="once")
    assert log.read_text() == before and second["losses"] == first["losses"]
    assert torch.equal(first["student"], second["student"])


def test_a_run_with_other_settings_prompts_or_model_is_refused(inside: Inside):
    inside("distilled", kind="sd3", name="mine")
    for given, named in (({"run_seed": 2}, "seed"), ({"rank": 8}, "rank"), ({"width": 128}, "size")):
        assert named in inside("refused", kind="sd3", name="mine", **given)["error"]
    other = inside("refused", kind="flux", name="mine")
    assert "another model" in other["error"] and other["changed"] == []
    others = inside("text", kind="sd3", seed=4, count=3)
    found = inside("refused", kind="sd3", name="mine", conditioning=others)
    assert "holds a run with other prompts; " in found["error"] and found["changed"] == []


def test_the_same_steps_from_smaller_forwards(inside: Inside):
    whole = inside("distilled", kind="sd3", name="of two")
    parts = inside("distilled", kind="sd3", name="one by one", batch=1, more="accumulation = 2")
    a, b = load_file(whole["path"]), load_file(parts["path"])
    assert all(near(a[k].float(), b[k].float(), 1e-3) for k in a)


@pytest.mark.parametrize("kind", ["epsilon", "flux"])
def test_recomputed_blocks_train_the_same(inside: Inside, home: Path, kind: str):
    """Also where the host's options change from block to block, and its transformers overwrite tensors."""
    distance = apart(inside, home, kind, 'checkpointing = "none"', 'checkpointing = "blocks"')
    # Adam's first steps have the size of the learning rate however small a gradient is, so rounding shows.
    assert distance < 1e-4


@pytest.mark.slow
def test_compiled_blocks_train_the_same(inside: Inside, home: Path):
    if shutil.which("g++") is None:
        pytest.skip("compile = true needs a C++ compiler")
    # fused operators round otherwise, and Adam makes whole steps of gradients that are nothing but rounding
    assert apart(inside, home, "epsilon", "compile = false", "compile = true") < 1e-3


def test_a_flow_model_is_not_said_to_be_compiled(inside: Inside):
    found = inside("refused", kind="sd3", name="compiled", more="compile = true")
    assert "overwrite tensors" in found["error"] and "compile = false" in found["error"]
    assert found["changed"] == []


def apart(inside: Inside, home: Path, kind: str, *settings: str) -> float:
    """How far what one way to compute a run trains is from what another does."""
    found: list[dict[str, torch.Tensor]] = []
    for i, form in enumerate(settings):
        name = f"{kind} {form.partition(' ')[0]} {i}"
        assert inside("distilled", kind=kind, name=name, more=form)["changed by training"] == []
        told = inside("latest", node_id="7")["message"]
        folder = home / "output/tcd_training" / name
        assert form in (folder / "config.toml").read_text() and "saved" in told
        tensors = load_file(folder / "checkpoint.safetensors")
        found.append({k: v for k, v in tensors.items() if k.startswith("student/")})
    one, other = found
    assert one.keys() == other.keys() and len(one) > 10
    difference = torch.cat([(one[k] - other[k]).flatten() for k in one])
    return float(difference.norm() / torch.cat([v.flatten() for v in one.values()]).norm())


def test_a_base_in_fp8_trains_as_its_weights_say(inside: Inside, home: Path):
    found: list[dict[str, torch.Tensor]] = []
    for kind in ("fp8", "rounded to fp8"):
        assert inside("distilled", kind=kind, name=kind)["changed by training"] == []
        tensors = load_file(home / "output/tcd_training" / kind / "checkpoint.safetensors")
        found.append({k: v for k, v in tensors.items() if k.startswith("student/")})
    a, b = (torch.cat([v.flatten() for v in each.values()]) for each in found)
    assert a.numel() > 1000 and near(a, b, 1e-4)


def test_a_base_in_fp8_is_not_kept_wide(inside: Inside):
    fp8, rounded = (inside("kept", kind=kind) for kind in ("fp8", "rounded to fp8"))
    assert fp8["layers"] > 30 and fp8["kept"] <= 1.02 * rounded["kept"] < fp8["kept"] + fp8["wide"] / 2


def test_the_plan_is_made_for_the_free_memory(inside: Inside):
    """With less and less: blocks are recomputed, the batch is cut, the run is refused before it begins."""
    assert "everything kept" in inside("planned", free=2**40)
    assert "batch 2 x 1, blocks recomputed" in inside("planned", free=-1)
    assert "batch 1 x 2, blocks recomputed" in inside("planned", free=-2)
    with pytest.raises(RuntimeError, match="beside the model"):
        inside("planned", free=0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"run_name": "../up"}, "run_name"),
        ({"run_name": "a/b"}, "run_name"),
        ({"run_name": "con"}, "Windows keeps for devices"),
        ({"run_name": "Lpt1.v2"}, "Windows keeps for devices"),
        ({"run_name": "a."}, "run_name"),
        ({"conditioning": None}, "no prompts"),
        ({"conditioning": None, "prompts": "a cat"}, "clip is not connected"),
        ({"negative": None}, "negative is not connected"),
        ({"prompts_file": "../secret.txt"}, "input folder"),
        ({"width": 60}, "multiples of 8"),
        ({"settings": "colour = 1"}, "colour"),
        ({"settings": "steps ="}, "not valid TOML"),
        ({"rank": 999}, "rank 999"),
    ],
)
def test_wrong_input_is_named(inside: Inside, given: dict[str, Any], named: str):
    found = inside("refused", kind="epsilon", name="wrong", **given)
    assert named in found["error"] and found["changed"] == [] and found["calls"] == 0


def test_a_file_in_the_place_of_a_run_is_named(inside: Inside, home: Path):
    (home / "output/tcd_training").mkdir(parents=True, exist_ok=True)
    (home / "output/tcd_training/taken").write_text("not a folder")
    found = inside("refused", kind="epsilon", name="taken")
    assert "is there already and is no folder" in found["error"] and found["calls"] == 0


def test_a_prompts_file_of_every_encoding_holds_the_same_prompts(inside: Inside, home: Path):
    """By a run that goes on with each, and with no other."""
    prompts = ["red hair, glasses", "hat"]
    path = home / "input/prompts.txt"
    path.parent.mkdir(exist_ok=True)
    given = {"name": "texts", "cfg_min": 2.5, "cfg_max": 3.5, "steps": 1}
    first = inside("embedded", prompts="\n".join(prompts), **given)
    text = "\r\n".join([*prompts, "", ""])
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        again = inside("embedded", prompts="", prompts_file="prompts.txt", **given)
        assert again["losses"] == first["losses"]
    for wrong, said in (
        (text.replace("hat", "glasses").encode(), "holds a run with other prompts; "),
        (
            "hat\r\n\u2019".encode("cp1252"),
            "prompts_file prompts.txt, line 2: byte 6 (0x92) is not",
        ),
        (text.encode("utf-16-le"), "prompts_file prompts.txt, line 1: byte 2 is NUL"),
        (b"\r\n", "prompts_file prompts.txt: no prompts in it"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(RuntimeError) as error:
            inside("embedded", prompts="", prompts_file="prompts.txt", **given)
        assert said in str(error.value)


def test_a_run_of_the_node_is_one_of_the_command(inside: Inside, home: Path):
    """What it was made from is called the same, so that either goes on with the other's run."""
    prompts = ["red hair, glasses", "hat"]
    inside("embedded", name="of both", prompts="\n".join(prompts), steps=1)
    noted = json.loads((home / "output/tcd_training/of both/inputs.json").read_text())
    assert inside("inputs_of_the_command", prompts=prompts) == noted


def test_a_finished_run_trains_on(inside: Inside):
    usual = {"trajectories": 4, "validation_prompts": 1, "validate_every": 2, "save_every": 1, "skip": 100}
    more = "".join(f"{name} = {value}\n" for name, value in {**usual, "warmup": 0}.items())
    constant = {"kind": "sd3", "settings": f"{more}decay = 'constant'"}
    whole = inside("distilled", name="all at once", steps=4, **constant)
    inside("distilled", name="in two", steps=2, **constant)
    longer = inside("distilled", name="in two", steps=4, **constant)
    assert longer["losses"] == whole["losses"] and len(longer["losses"]) == 4
    a, b = load_file(whole["path"]), load_file(longer["path"])
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    inside("distilled", kind="sd3", name="a cosine", steps=2, settings=more)
    found = inside("refused", kind="sd3", name="a cosine", steps=4, settings=more)
    assert "train 4 steps in another folder" in found["error"] and "decay = constant" in found["error"]


def test_images_to_images_are_refused(inside: Inside):
    assert "IMG_TO_IMG" in inside("refused", kind="image to image", name="edit")["error"]


def test_the_page_is_told_how_far_the_teacher_is(inside: Inside):
    told = inside("messages", kind="epsilon", name="drawing")
    drawn = [text for text in told if "the teacher draws" in text]
    assert [text.partition("step ")[2] for text in drawn] == [f"{i} of 10" for i in range(1, 11)]
    assert "teacher" not in told[-1]


@pytest.mark.parametrize("feature", ["fp16_accumulation", "fp8_matrix_mult"])
def test_an_option_that_spoils_training_is_said(inside: Inside, feature: str):
    found = inside("started_fast", kind="epsilon", name=f"fast {feature}", features=[feature])
    assert any(f"--fast {feature}" in text for text in found["messages"])
    assert not any("--fast" in text for text in inside("messages", kind="epsilon", name="not fast"))
    assert found["accumulates"] == [True, False, True], "before, within and after the run"


@pytest.mark.parametrize("kind", ["epsilon", "flux"])
def test_a_vae_that_wants_all_the_memory_does_not_move_the_model(inside: Inside, kind: str):
    found = inside("evicted", kind=kind, name=f"evicted {kind}")
    calm = inside("distilled", kind=kind, name=f"calm {kind}", patched=True)
    assert found["decoded"] > 0 and found["listed"] == 1
    assert torch.equal(found["plain"], found["again"]) and torch.equal(found["plain"], calm["plain"])
    lora = load_file(calm["path"])
    assert lora.keys() == found["lora"].keys()
    assert all(torch.equal(value, found["lora"][name]) for name, value in lora.items())


def test_layers_without_a_gradient_are_refused(inside: Inside):
    assert "cublas_ops" in inside("with_foreign_layers", kind="epsilon", name="cublas")


def test_what_the_page_is_told(inside: Inside):
    inside("distilled", kind="sd3", name="panel")
    told = inside("latest", node_id="7")
    assert {"node", "run", "state", "step", "steps", "loss", "samples_per_second", "seconds_left"} <= set(
        told
    )
    assert told["node"] == "7" and told["run"] == "panel" and told["state"] == "done"
    assert told["step"] == told["steps"] == 3 and [p[0] for p in told["losses"]] == [1, 2, 3]
    image = told["images"][-1]
    assert image == {
        "step": 3, "filename": "step-000003.png", "subfolder": "tcd_training/panel", "type": "output",
    }  # fmt: skip
    json.dumps(told)


@pytest.fixture
def pictures(home: Path) -> Path:
    from PIL import Image

    folder = home / "input" / "my pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(4):
        Image.new("RGB", (20 + i, 18), (60 * i, 10, 200)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text("red hair, glasses" if i % 2 else "hat\n")
    return folder


def test_faulty_pictures_are_named(inside: Inside, pictures: Path):
    from PIL import Image

    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    Image.new("RGB", (8, 30)).save(pictures / "small.png")
    Image.new("RGB", (30, 30)).save(pictures / "bare.png")
    Image.new("RGB", (30, 30)).save(pictures / "empty.png")
    (pictures / "empty.txt").write_text(" \n")
    for name, data in (
        ("windows", "the girl\u2019s hat".encode("cp1252")),
        ("bytes", "hat".encode("utf-16-le")),
        ("powershell", "red hair,\r\nglasses\r\n".encode("utf-16")),
    ):
        Image.new("RGB", (30, 30)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_bytes(data)
    faults = (
        "windows.png: its caption windows.txt, line 1: byte 9 (0x92) is not UTF-8; save it as UTF-8",
        "bytes.png: its caption bytes.txt, line 1: byte 2 is NUL",
        "broken.png: cannot be read",
        "small.png: 8x30",
        "bare.txt is missing",
        "empty.txt is empty",
    )
    try:
        with pytest.raises(RuntimeError) as error:
            inside("dataset", folder="my pictures")
        assert all(fault in str(error.value) for fault in faults)
        data, report = inside("dataset", folder="my pictures", faulty="skip")
        assert report.startswith("5 pictures, 6 left out") and all(fault in report for fault in faults)
        made = Path(data["shards"][0])
        assert load_file(made)["latents"].shape == (5, 8, 4, 4)
        captions = [row[-1] for row in json.loads((made.parent / "dataset.json").read_text())["files"]]
        assert captions == [*["hat", "red hair, glasses"] * 2, "red hair, glasses"]
    finally:
        for path in pictures.iterdir():
            if path.stem not in ("p0", "p1", "p2", "p3"):
                path.unlink()
    with pytest.raises(RuntimeError, match="input folder"):
        inside("dataset", folder="../..")


def test_a_data_set_is_encoded_once_and_trains(inside: Inside, pictures: Path):
    data, _ = inside("dataset", folder="my pictures")
    made = Path(data["shards"][0]).stat().st_mtime_ns
    again, _ = inside("dataset", folder="my pictures")
    assert again == data and Path(data["shards"][0]).stat().st_mtime_ns == made
    (pictures / "p0.txt").write_text("glasses, hat, red hair")
    changed, _ = inside("dataset", folder="my pictures")
    assert changed["shards"] != data["shards"]
    found = inside("from_dataset", folder="my pictures", name="of pictures")
    assert len(found["losses"]) == 2 and found["keys"] > 100


def test_the_data_of_a_run_are_written_once_and_no_other_take_their_place(
    inside: Inside, pictures: Path, home: Path
):
    from PIL import Image

    data = home / "output/tcd_training/kept pictures/data.safetensors"
    inside("from_dataset", folder="my pictures", name="kept pictures")
    written, file = data.read_bytes(), data.stat().st_ino
    inside("from_dataset", folder="my pictures", name="kept pictures")
    assert data.stat().st_ino == file, "queued again, it is not written again"
    Image.new("RGB", (20, 18), (9, 250, 9)).save(pictures / "p0.png")
    with pytest.raises(RuntimeError, match="holds a run with another dataset"):
        inside("from_dataset", folder="my pictures", name="kept pictures")
    assert data.read_bytes() == written


def test_a_saved_lora_in_every_format(inside: Inside, home: Path):
    path = inside("distilled", kind="sd3", name="to save")["path"]
    cut, others = (home / f"output/loras/.{name}.safetensors.7.tmp" for name in ("kept", "kept by others"))
    for left in (cut, others):
        left.write_bytes(b"of a server that was killed, or that writes now")
    first = Path(inside("saved", name="kept", form="kohya", path=path, notes="for 4 steps"))
    assert first == home / "output/loras/kept.safetensors"
    assert not cut.exists() and others.exists()
    assert Path(inside("saved", name="kept", form="kohya", path="to save")).name == "kept-2.safetensors"
    a, b = load_file(path), load_file(first)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with safe_open(str(first), "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.description"] == "for 4 steps" and metadata["tcd.teacher"] == "SD3"
    bare = inside("saved", name="bare", form="kohya", tensors=a)
    assert load_file(bare).keys() == a.keys()
    for given in ({"name": "../x", "path": path}, {"name": "x"}, {"name": "x", "path": "/etc/hostname"}):
        with pytest.raises(RuntimeError, match="ValueError"):
            inside("saved", form="kohya", **given)


def test_the_embedded_model_through_the_bridge_is_the_embedded_model(inside: Inside, tmp_path: Path):
    prompts = ["red hair, glasses", "hat", "glasses, hat"]
    settings = {"steps": 3, "batch": 8, "rank": 4, "learning_rate": 5e-4}
    more = "trajectories = 4\nvalidation_prompts = 1\nskip = 100\nvalidate_every = 3\nwarmup = 0"
    found = inside(
        "embedded", name="bridge", prompts="\n".join(prompts), cfg_min=2.5, cfg_max=3.5, settings=more,
        **settings,
    )  # fmt: skip
    model = EmbeddedModel.load()
    config = DistillConfig.resolve("embedded", text=more, alpha=4.0, w_min=1.5, w_max=2.5, seed=1, **settings)  # pyright: ignore[reportArgumentType]
    outcome = train(
        config, model, model.encode(prompts), model.unconditional(), tmp_path, quiet=True, validate=False
    )
    ours, theirs = load_file(tmp_path / "lora.safetensors"), found["lora"]
    assert abs(outcome.loss - found["losses"][-1]) < 1e-4 * outcome.loss + 1e-6
    assert len(ours) == len(theirs)
    assert ours.keys() == theirs.keys()
    largest = max(float((ours[k].float() - theirs[k].float()).abs().max()) for k in ours)
    assert largest < 1e-4
