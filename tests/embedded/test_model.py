"""The shipped model: it loads, it obeys, its parts have Stable Diffusion's names."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from comfyui_tcd.embedded.avatars import draw_images, draw_labels
from comfyui_tcd.embedded.classifier import Classifier
from comfyui_tcd.embedded.flow import FlowModel
from comfyui_tcd.embedded.measures import (
    Gaussian,
    Judge,
    complexity,
    frechet,
    frechet_interval,
    prompt_accuracy,
)
from comfyui_tcd.embedded.methods import Prompts, sample_guided, sample_student, sample_teacher, with_lora
from comfyui_tcd.embedded.model import TEACHER, WEIGHTS, EmbeddedModel
from comfyui_tcd.embedded.sample import LCM_LORA, TCD_LORA
from comfyui_tcd.embedded.unet import UNet, UNetConfig, timestep_embedding
from comfyui_tcd.embedded.vae import VAE
from comfyui_tcd.training.checkpoint import load_tensors


@pytest.fixture(scope="module")
def model():
    return EmbeddedModel.load()


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.fixture(scope="module")
def prompts():
    return Prompts.make(draw_labels(256, np.random.default_rng(77)), 77)


def test_weights_are_small_enough_to_ship_and_say_how_they_were_made():
    files = sorted(WEIGHTS.glob("*.safetensors"))
    assert {f.name for f in files} >= {"teacher.safetensors", "vae.safetensors", "classifier.safetensors"}
    assert sum(f.stat().st_size for f in files) < 25e6
    _, metadata = load_tensors(TEACHER)
    assert {"teacher.seed", "teacher.steps", "seconds", "data", "prediction_type"} <= set(metadata)


def test_state_dict_has_stable_diffusions_names():
    names = set(UNet(UNetConfig(num_res_blocks=2)).state_dict())
    for name in (
        "time_embed.0.weight", "label_emb.0.2.bias", "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.1.0.emb_layers.1.weight", "input_blocks.1.0.out_layers.3.bias",
        "input_blocks.3.0.op.weight",
        "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0.weight",
        "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        "output_blocks.2.2.conv.weight", "output_blocks.0.0.skip_connection.weight", "out.2.weight",
    ):  # fmt: skip
        assert name in names
    assert not any(re.search(r"\.(body|heads|decoder)\.", n) for n in names)


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 7.0])
    e = timestep_embedding(t, 8)
    rates = 10000 ** (-torch.arange(4) / 4)
    assert torch.allclose(e[1], torch.cat([(7 * rates).cos(), (7 * rates).sin()]), atol=1e-6)
    assert torch.allclose(e[0], torch.tensor([1.0] * 4 + [0.0] * 4))


def test_autoencoder_gives_the_picture_back():
    rng = np.random.default_rng(5)
    images = torch.from_numpy(draw_images(draw_labels(200, rng), rng))
    vae = VAE.load()
    latents = vae.encode(images)
    assert 0.9 < latents.std() < 1.1
    assert (vae.decode(latents).float() - images.float()).abs().mean() < 8


def test_classifier_reads_pictures_it_has_not_seen(judge):
    labels = draw_labels(500, np.random.default_rng(6))
    floors = judge.floors(labels)
    assert floors["real"]["prompt_accuracy"] > 0.97 and floors["autoencoder"]["prompt_accuracy"] > 0.93
    assert floors["autoencoder"]["frechet"] < 0.5 * floors["real"]["frechet"]  # compared with its own kind
    assert floors["autoencoder"]["complexity"] == pytest.approx(floors["real"]["complexity"], rel=0.15)


def test_the_teacher_obeys_its_prompt_and_without_one_does_not(model, judge, prompts):
    images = sample_teacher(model, prompts, "ddim", 20, 2.0)
    _, seen = judge.classifier.judge(images)
    others = prompts.labels[::-1].copy()
    obeyed, chance = prompt_accuracy(seen, prompts.labels), prompt_accuracy(seen, others)
    assert obeyed > 0.85 and obeyed - chance > 0.3


@pytest.mark.parametrize("path", [TCD_LORA, LCM_LORA], ids=["tcd", "lcm"])
def test_shipped_loras_beat_their_teacher_in_few_steps(model, judge, prompts, path):
    student = with_lora(model, path)
    ours = judge.measure(
        sample_student(student, prompts, 2, 1.0 if "lcm" in path.name else 0.3), prompts.labels
    )
    theirs = judge.measure(sample_teacher(model, prompts, "ddim", 2, 2.0), prompts.labels)
    assert ours["frechet"] < theirs["frechet"]


def test_a_lora_leaves_the_model_it_was_merged_into_a_copy_of(model):
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}
    student = with_lora(model, TCD_LORA)
    assert all(torch.equal(before[k], v) for k, v in model.unet.state_dict().items())
    assert any(not torch.equal(before[k], v) for k, v in student.unet.state_dict().items())


def test_samples_are_a_function_of_the_seed(model):
    student = with_lora(model, TCD_LORA)
    labels = draw_labels(4, np.random.default_rng(1))
    a, b, c = (sample_student(student, Prompts.make(labels, s), 4, 0.5) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_missing_teacher_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-teacher"):
        EmbeddedModel.load(tmp_path / "none.safetensors")


def test_frechet_distance_is_the_closed_form():
    # two diagonal Gaussians: sum (m1 - m2)^2 + (s1 - s2)^2
    generator = torch.Generator().manual_seed(0)
    m1, m2 = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    s1, s2 = torch.rand(2, 6, generator=generator, dtype=torch.float64) + 0.5
    a, b = Gaussian(m1, (s1**2).diag()), Gaussian(m2, (s2**2).diag())
    assert frechet(a, b) == pytest.approx(float(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum()), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_the_interval_covers_the_distance_of_fresh_samples():
    generator = torch.Generator().manual_seed(0)
    real = Gaussian(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    inside = 0
    truth = [
        frechet(Gaussian.of(torch.randn(300, 4, generator=generator, dtype=torch.float64) + 0.5), real)
        for _ in range(60)
    ]
    middle = sum(truth) / len(truth)
    for trial in range(40):
        features = torch.randn(300, 4, generator=generator, dtype=torch.float64) + 0.5
        _, low, high = frechet_interval(features, real, seed=trial)
        inside += low <= middle <= high
    assert 32 <= inside <= 40


def test_complexity_grows_with_detail():
    flat = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    noise = torch.randint(
        0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    rng = np.random.default_rng(0)
    drawn = torch.from_numpy(draw_images(draw_labels(4, rng), rng))
    assert complexity(flat) < complexity(drawn) < complexity(noise)


def test_classifier_file_is_the_shipped_one():
    assert sum(p.numel() for p in Classifier.load().parameters()) < 600_000
    assert Path(TCD_LORA).is_file() and Path(LCM_LORA).is_file()


def test_as_a_flow_model_it_knows_the_same(model: EmbeddedModel, prompts: Prompts):
    flow = FlowModel.load()
    cond = model.encode_labels(prompts.labels[:6])
    x0, eps = torch.randn(2, 6, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    for t in (20, 400, 950):
        known = model.schedule.point(t)
        now = flow.schedule.at_lam(known.level.lam)
        told, again = (
            m.predictor(cond)(p.level.alpha.float() * x0 + p.level.sigma.float() * eps, p, p)
            for m, p in ((model, known), (flow, now))
        )
        for a, b in zip(told, again, strict=True):
            assert float((a - b).abs().max()) < 1e-4
    edges = flow.schedule.point(torch.tensor([0.0, 1.0])).each()  # beyond the levels that it knows
    for now in edges:
        state = now.level.alpha.float() * x0 + now.level.sigma.float() * eps
        same = zip(flow.predictor(cond)(state, now, now), (x0, eps), strict=True)
        assert [bool((a - b).abs().max() < 1e-5) for a, b in same] == [now.t == 0, now.t == 1]


def test_a_guided_flow_teacher_draws_what_is_asked(judge: Judge, prompts: Prompts):
    images = sample_guided(FlowModel.load(), prompts, 10, 3.0)
    _, seen = judge.classifier.judge(images)
    assert prompt_accuracy(seen, prompts.labels) > 0.9
