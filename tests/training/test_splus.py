"""TCF(S+), Eq. 24: the network is told s."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import Gaussians, TinyUNet, data_free, grid_of, prompts, run, settings, uncond
from torch import Tensor

from comfyui_tcd.samplers import Predict
from comfyui_tcd.training import distill as loop
from comfyui_tcd.training.distill import Student, student_on
from comfyui_tcd.training.lora import load_lora, merge_lora
from comfyui_tcd.training.splus import PREFIX, TargetEmbedding, attached

TARGETS = (0.0, 300.0, 800.0)


def answers(backbone: TinyUNet, predict: Predict) -> list[Tensor]:
    """What is predicted at one time for several s."""
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    now = backbone.schedule.point(torch.tensor([900.0, 820.0]))
    with torch.no_grad():
        return [torch.cat(predict(x, now, backbone.schedule.point(s))) for s in TARGETS]


def test_at_first_the_student_is_the_teacher_for_every_s():
    backbone = TinyUNet()
    bare = answers(backbone, backbone.predictor(prompts(2)))
    with student_on(backbone, settings(student="tcfs")) as student:
        assert student.embedding is not None
        told = answers(backbone, student.predictor(prompts(2)))
        assert all(torch.equal(a, b) for a, b in zip(told, bare, strict=True))

        with torch.no_grad():
            student.embedding.net[2].weight.normal_(std=0.1)  # pyright: ignore
        told = answers(backbone, student.predictor(prompts(2)))
        assert (told[0] - told[1]).abs().max() > 1e-3 < (told[1] - told[2]).abs().max()
        with student.lora.off():
            teacher = answers(backbone, backbone.predictor(prompts(2)))
        assert all(torch.equal(a, b) for a, b in zip(teacher, bare, strict=True)), "the teacher is not told"
    assert all(
        torch.equal(a, b)
        for a, b in zip(answers(backbone, backbone.predictor(prompts(2))), bare, strict=True)
    )


def test_each_sample_is_told_its_own_s():
    backbone = TinyUNet()
    with student_on(backbone, settings(student="tcfs")) as student:
        assert student.embedding is not None
        with torch.no_grad():
            student.embedding.net[2].weight.normal_(std=0.1)  # pyright: ignore
        x = torch.randn(3, *backbone.latent_shape)
        now, down = (backbone.schedule.point(torch.tensor(v)) for v in ([900.0] * 3, list(TARGETS)))
        with torch.no_grad():
            mixed = student.predictor(prompts(3))(x, now, down)[0]
            for i, s in enumerate(TARGETS):
                one = student.predictor(prompts(3))(x, now, backbone.schedule.point(s))[0]
                torch.testing.assert_close(mixed[i], one[i], rtol=1e-5, atol=1e-6)


def test_training_moves_the_embedding_and_the_file_brings_it_back(tmp_path: Path):
    config = settings(student="tcfs", steps=8, average=0.0, learning_rate=5e-3)
    trained: dict[str, Tensor] = {}
    told: list[Tensor] = []
    backbone = TinyUNet()
    with student_on(backbone, config) as student:
        embedding = student.embedding
        assert isinstance(embedding, TargetEmbedding)
        begin = {k: p.detach().clone() for k, p in embedding.named_parameters()}
        source = data_free(backbone, config, tmp_path)
        loop.distill(config, student, source, uncond(), grid_of(backbone, config), tmp_path, quiet=True)
        for name, parameter in embedding.named_parameters():
            assert not torch.equal(parameter, begin[name]), f"{name} does not train"
        with torch.no_grad():  # as half precision keeps it
            for name, parameter in student.parameters().items():
                parameter.copy_(parameter.half())
                trained[name] = parameter.detach().clone()
        told = answers(backbone, student.predictor(prompts(2)))
    assert (told[0] - told[2]).abs().max() > 1e-4, "s has to matter"

    tensors, _ = load_lora(tmp_path / loop.LORA)
    kept = {k for k in tensors if k.startswith(PREFIX)}
    assert kept == {k for k in trained if k.startswith(PREFIX)} and len(kept) == 4
    fresh = TinyUNet()
    merge_lora(fresh.network, tensors)
    with attached(fresh.network, tensors=tensors) as embedding:
        again = answers(fresh, embedding.told(fresh.predictor(prompts(2))))
    for a, b in zip(again, told, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


def test_nothing_stays_behind_on_the_network(tmp_path: Path):
    backbone = TinyUNet()
    place = backbone.network.get_submodule("time_embed")

    def broken(student: Student) -> None:
        assert student.embedding is not None and len(place._forward_hooks) == 1
        backbone.before = lambda x: (_ for _ in ()).throw(RuntimeError("lost"))
        with pytest.raises(RuntimeError, match="lost"):
            answers(backbone, student.predictor(prompts(2)))
        assert student.embedding.s is None, "s is forgotten even when the network fails"
        backbone.before = None
        raise RuntimeError("end")

    with pytest.raises(RuntimeError, match="end"):
        run(settings(student="tcfs"), tmp_path, backbone, inside=broken)
    assert not place._forward_hooks


def test_the_embedding_hangs_on_the_seed_and_leaves_the_hosts_random_numbers_alone():
    network = TinyUNet().network
    state = torch.get_rng_state()
    firsts: list[Tensor] = []
    for seed in (1, 1, 2):
        with attached(network, seed=seed) as embedding:
            firsts.append(embedding.net[0].weight.detach().clone())  # pyright: ignore
    assert torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[0], firsts[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_a_time_embedding_is_refused():
    backbone = Gaussians([0.0, 999.0], 1.0, 0.5, (1, 2, 2))
    with (
        pytest.raises(ValueError, match=r"tcfs needs a time embedding .* Scalar has none"),
        student_on(backbone, settings(student="tcfs", rank=1)),
    ):
        pass
    assert not hasattr(backbone.network, "peft_config")
