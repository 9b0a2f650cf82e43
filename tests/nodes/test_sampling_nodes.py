"""What `nodes` computes for the sampler, with stand-ins for the host. tests/comfyui runs it in a real one."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor


def path(nodes: Any, kind: str = "EPS", **given: Any) -> Any:
    return nodes.host.trajectory(nodes.model_sampling(kind, **given))


def test_a_sigma_of_the_table_has_its_timestep_after_a_round_trip_in_float32(nodes: Any):
    for zsnr in (False, True):
        ms = nodes.model_sampling(zsnr=zsnr)
        found = nodes.host.points(nodes.host.trajectory(ms), ms.sigmas.log().exp().flip(0).tolist())
        assert [float(point.t) for point in found] == list(range(999, -1, -1))


def test_levels_are_the_hosts_own(nodes: Any):
    sigmas = [20.0, 14.6146, 3.3, 0.5, 0.02]
    found = nodes.host.points(path(nodes), sigmas)
    assert [float(point.level.sigma) for point in found] == sigmas
    assert {float(point.level.alpha) for point in found} == {1.0}
    assert float(found[0].t) == 999 and float(found[-1].t) == 0 and 0 < float(found[2].t) % 1 < 1


def test_zero_is_clean(nodes: Any):
    (point,) = nodes.host.points(path(nodes), [0.0])
    assert (float(point.t), float(point.level.alpha), float(point.level.sigma)) == (0, 1, 0)


@pytest.mark.parametrize("end", ["official", "clean"])
def test_ends(nodes: Any, end: str):
    ms = nodes.model_sampling()
    *_, last = nodes.host.plan(path(nodes), (10.0, 1.0, 0.0), 0.3, 0.3, end)
    sigma = float(ms.sigmas[0])
    alpha = (1 + sigma**2) ** -0.5
    expected = (alpha, alpha * sigma) if end == "official" else (1.0, 0.0)
    assert (float(last.down.level.alpha), float(last.down.level.sigma)) == pytest.approx(expected)
    assert last.next is None


def test_the_official_end_never_adds_noise_back(nodes: Any):
    *_, last = nodes.host.plan(path(nodes), (1.0, 0.02, 0.0), 0.3, 0.3, "official")
    assert float(last.down.level.sigma) == 0


def test_models_without_timesteps_end_clean(nodes: Any):
    for found in (path(nodes, discrete=False), path(nodes, "CONST")):
        assert float(found.end.level.sigma) == 0


@given(gamma=st.floats(0, 1), t=st.integers(1, 999))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_s_is_the_floor_in_timesteps(gamma: float, t: int):
    from comfyui_tcd.samplers import DiscreteSchedule, through

    schedule = DiscreteSchedule.from_betas().scaled()
    (step,) = through(schedule, [schedule.point(999.0), schedule.point(float(t))], [gamma])
    floor = int(torch.floor(torch.tensor(1 - gamma, dtype=torch.float32) * t))
    assert float(step.down.t) == floor and (step.next is None) == (floor == t)


def test_gamma_is_a_line_over_the_steps_that_add_noise(nodes: Any):
    sigmas = nodes.host.grid(nodes.model_sampling(), 4).tolist()
    sigmas = tuple(sigmas)
    steps = nodes.host.plan(path(nodes), sigmas, 0.2, 0.8, "official")
    shares = [1 - float(s.down.t) / float(s.next.t) for s in steps[:-1]]
    assert shares == pytest.approx([0.2, 0.5, 0.8], abs=4e-3)  # of whole timesteps
    steps = nodes.host.plan(path(nodes), sigmas[:4], 0.2, 0.8, "official")
    assert all(s.next for s in steps) and len(steps) == 3


def test_descending_only(nodes: Any):
    with pytest.raises(ValueError, match="use euler"):
        nodes.host.points(path(nodes), [1.0, 2.0])


@pytest.mark.parametrize("kind", ["IMG_TO_IMG", "IMG_TO_IMG_FLOW"])
def test_refused_models(nodes: Any, kind: str):
    with pytest.raises(ValueError, match=f"'{kind}'.*use euler"):
        path(nodes, kind)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_grid(nodes: Any, steps: int):
    ms = nodes.model_sampling()
    sigmas = nodes.host.grid(ms, steps)
    assert len(sigmas) == steps + 1 and sigmas[0] == ms.sigmas[-1] and sigmas[-1] == 0
    assert sigmas.dtype == torch.float32 and (sigmas.diff() < 0).all()
    assert len(nodes.host.grid(ms, 4, 0.0)) == 0
    assert len(nodes.host.scheduler_handler(ms, 300)) == 301


@pytest.mark.parametrize("steps", [999, 1000, 1001, 2000, 7777])
def test_more_steps_than_timesteps_lie_between_them(nodes: Any, steps: int):
    """From 1000 on evenly apart; between two timesteps, the logarithm of sigma is a line."""
    table = nodes.model_sampling().sigmas
    sigmas = nodes.host.scheduler_handler(nodes.model_sampling(), steps)
    assert len(sigmas) == steps + 1 and bool((sigmas.diff() < 0).all()) and sigmas[-1] == 0
    assert torch.allclose(sigmas[[0, -2]], table[[-1, 0]], rtol=1e-6) or steps < 1000
    if steps >= 1000:
        t = 999 - 999 / (steps - 1)
        low, high = table[int(t)].log(), table[min(int(t) + 1, 999)].log()
        assert float(sigmas[1]) == pytest.approx(float(torch.lerp(low, high, t % 1).exp()), rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((4, 0.05, 50), "denoise 0.05 leaves 2 of the 50 .* use 2 steps or fewer, or denoise 0.08 or more"),
        ((4, 0.05, 50), "or original_steps 0, which takes all 1000 timesteps"),
        ((1, 0.01, 50), "denoise 0.01 leaves 0 of the 50 .* use denoise 0.02 or more, or original_steps 0"),
        (
            (60, 1.0, 50),
            "60 steps do not fit: denoise 1 leaves 50 .* use 50 steps or fewer, or original_steps 0",
        ),
        (
            (30, 0.02, None),
            "leaves 20 of the 1000 timesteps of original_steps 0; use 20 steps .* denoise 0.03",
        ),
    ],
)
def test_steps_that_do_not_fit_are_told_by_the_nodes_inputs(nodes: Any, asked: Any, message: str):
    with pytest.raises(ValueError, match=message) as error:
        nodes.host.grid(nodes.model_sampling(), *asked)
    assert "strength" not in str(error.value) and "None" not in str(error.value)


def test_the_grid_of_flow_is_shifted_by_the_model(nodes: Any):
    sigmas = nodes.host.grid(nodes.model_sampling("CONST"), 4)
    assert sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert nodes.host.grid(nodes.model_sampling("CONST"), 2, 0.5).tolist() == pytest.approx([0.75, 0.5, 0])


def test_noise_is_a_function_of_seed_item_and_level(nodes: Any):
    def draw(seed: int, numbers: list[int], sigmas: list[float]) -> list[Tensor]:
        noise = nodes.tcd_sss.step_noise(torch.zeros(len(numbers), 4, 8, 8), seed, "cpu", numbers)
        return [noise(sigma) for sigma in sigmas]

    first, second = draw(1, [0, 1, 2], [5.0, 1.0])
    assert torch.equal(draw(1, [2], [1.0])[0][0], second[2])  # alone, and without the steps before
    distinct = [*first, *second, *draw(2, [0], [5.0]), *draw(1, [0], [5.0, 5.0])[1]]
    distinct = [z.flatten() for z in distinct]
    for i, a in enumerate(distinct):
        assert abs(float(a.std()) - 1) < 0.2
        for b in distinct[:i]:
            assert abs(float((a * b).mean())) < 0.3
    initial = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(1))
    assert abs(float((first[0] * initial).mean())) < 0.2


def test_noise_options(nodes: Any):
    x = torch.zeros(2, 4, 8, 8)
    with pytest.raises(ValueError, match="noise_device"):
        nodes.tcd_sss.step_noise(x, 1, "tpu")
    with pytest.raises(ValueError, match="names 3 items"):
        nodes.tcd_sss.step_noise(x, 1, "cpu", [0, 1, 2])
    assert nodes.tcd_sss.step_noise(x.half(), None)(1.0).dtype == torch.half
    assert nodes.tcd_sss.step_noise(x, -1)(1.0).shape == x.shape


def test_settings_of_the_call_win_then_those_of_the_model(nodes: Any):
    choose, key = nodes.tcd_sss.Settings.choose, nodes.tcd_sss.SETTINGS
    model = {"model_options": {key: {"gamma": 0.9, "gamma_end": 0.1, "order": "2", "end": "clean"}}}
    assert choose({}) == (0.3, None, "1", "official") and choose({}).line == (0.3, 0.3)
    assert choose(model) == (0.9, 0.1, "2", "clean")
    assert choose(model, gamma=0.5, end=None) == (0.5, None, "2", "clean")
    assert choose(model, gamma=0.0).line == (0.0, 0.0)
    for wrong in ({"gamma": -0.1}, {"gamma_end": 1.1}, {"order": "3"}, {"end": "soon"}):
        with pytest.raises(ValueError):
            choose({}, **wrong)


class Model:
    """A network whose x0 is always 2, where a sampler finds a model."""

    def __init__(self, ms: Any) -> None:
        self.inner_model, self.seen = type("Guider", (), {"model_sampling": ms})(), []

    def __call__(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        assert sigma.shape == (x.shape[0],)
        self.seen.append(extra)
        return torch.full_like(x, 2.0)


def test_the_contract_of_k_diffusion(nodes: Any):
    ms, steps = nodes.model_sampling(), []
    model, x = Model(ms), torch.randn(2, 4, 8, 8) * 14
    kept, sigmas, drawn = x.clone(), nodes.host.grid(ms, 4), []

    def noise_sampler(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        drawn.append((float(sigma), float(sigma_next)))
        return torch.ones(2, 4, 8, 8)

    extra = {"model_options": {}, "seed": None, "denoise_mask": None}
    result = nodes.tcd_sss.sample_tcd_sss(model, x, sigmas, extra, steps.append, True, noise_sampler, 0.3)
    assert torch.equal(x, kept) and result.shape == x.shape and result.dtype == x.dtype
    assert [sorted(step) for step in steps] == [["denoised", "i", "sigma", "sigma_hat", "x"]] * 4
    assert all(bool((step["denoised"] == 2).all()) for step in steps)
    assert drawn == [(float(a), float(b)) for a, b in pairwise(sigmas[:4])]
    assert model.seen == [extra] * 4
    assert nodes.tcd_sss.sample_tcd_sss(model, x, sigmas[:1], extra) is x


def test_gamma_zero_asks_for_no_noise(nodes: Any):
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("noise was drawn")

    ms = nodes.model_sampling()
    for sigmas in (nodes.host.grid(ms, 4), nodes.host.grid(ms, 4)[:3], torch.tensor([9.0, 3.3, 0.4, 0.0])):
        nodes.tcd_sss.sample_tcd_sss(
            Model(ms), torch.ones(1, 4, 8, 8), sigmas, None, None, True, refuse, gamma=0.0
        )


@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 4, 8, 8), (2, 4, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_shape_and_type(nodes: Any, shape: tuple[int, ...], dtype: torch.dtype):
    ms = nodes.model_sampling("V_PREDICTION")
    x = torch.randn(shape).to(dtype)
    result = nodes.tcd_sss.sample_tcd_sss(Model(ms), x, nodes.host.grid(ms, 3), {"seed": 3}, disable=True)
    assert result.dtype == dtype and result.shape == shape and bool(result.isfinite().all())


def test_a_mask_keeps_the_picture_at_the_official_end(nodes: Any):
    ms = nodes.model_sampling()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    x = torch.randn(1, 4, 8, 8) * 14
    result = nodes.tcd_sss.sample_tcd_sss(
        Model(ms), x, nodes.host.grid(ms, 3), {"seed": 3, "denoise_mask": mask}, disable=True
    )
    assert bool((result[..., 4:] == 2).all()) and not bool((result[..., :4] == 2).any())


def test_registering_is_in_place_once_and_steals_nothing(nodes: Any):
    lists = nodes.samplers.SAMPLER_NAMES, nodes.samplers.SCHEDULER_NAMES
    for _ in range(2):
        nodes.tcd_sss.register()
    assert lists == (["euler", "tcd_sss"], ["simple", "tcd_grid"])
    assert nodes.samplers.KSampler.SAMPLERS is lists[0] and nodes.samplers.KSampler.SCHEDULERS is lists[1]
    assert nodes.k_diffusion.sample_tcd_sss is nodes.tcd_sss.sample_tcd_sss
    assert nodes.samplers.SCHEDULER_HANDLERS["tcd_grid"].handler is nodes.host.scheduler_handler


def test_a_taken_name_stays(nodes: Any, caplog: pytest.LogCaptureFixture):
    def theirs() -> None: ...

    nodes.k_diffusion.sample_tcd_sss = theirs
    nodes.samplers.SCHEDULER_HANDLERS["tcd_grid"] = nodes.samplers.SchedulerHandler(theirs)
    nodes.tcd_sss.register()
    assert nodes.k_diffusion.sample_tcd_sss is theirs
    assert nodes.samplers.SCHEDULER_HANDLERS["tcd_grid"].handler is theirs
    assert "tcd_sss" not in nodes.samplers.SAMPLER_NAMES and len(caplog.records) == 2


def test_a_second_copy_of_the_pack_is_told_and_used(
    nodes: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    other = tmp_path / "other copy/nodes/tcd_sss.py"
    other.parent.mkdir(parents=True)
    mark = f"sample_tcd_sss.{nodes.tcd_sss.MARK} = {nodes.tcd_sss.PACK!r}"
    other.write_text(f"def sample_tcd_sss(): ...\n{mark}\n")
    nodes.k_diffusion.sample_tcd_sss = run_path(str(other))["sample_tcd_sss"]
    for _ in range(2):
        nodes.tcd_sss.register()
    assert nodes.k_diffusion.sample_tcd_sss is nodes.tcd_sss.sample_tcd_sss
    (told,) = caplog.messages
    assert str(other.parents[1]) in told and str(Path(nodes.tcd_sss.__file__).parents[1]) in told
