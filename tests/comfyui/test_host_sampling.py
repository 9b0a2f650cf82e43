"""Everything in ComfyUI that meets a sampler, in real runs whose result is checked.

Numbers such as B6 are those of docs/known-defects.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from comfyui_oracle import SCALE, compare, diffusers_run, randn, relative, timesteps_of_diffusers
from torch import Tensor

pytestmark = pytest.mark.comfyui
Inside = Callable[..., Any]
SHAPE = (1, 4, 8, 8)
EMPTY = torch.zeros(SHAPE)
GAUSSIAN = ["epsilon", "v", "v+zsnr", "x0", "lcm", "edm", "v edm", "v continuous", "cascade", "cosmos"]
FLOW = ["flow", "flux"]
SCHEDULERS = [
    "tcd_grid",
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
]
MORE = [*SCHEDULERS, "kl_optimal"]  # has no finite sigmas of one step
AYS = ["AYS SD1", "AYS SDXL", "AYS SVD"]  # of the node AlignYourStepsScheduler


def run(inside: Inside, kind: str = "epsilon", **given: Any) -> Any:
    arguments = {"latent": EMPTY, "noise": randn(1, *SHAPE), **given}
    if "sigmas" not in arguments:
        arguments["sigmas"] = inside("grid", kind=kind, steps=4)
    return inside("custom", kind=kind, **arguments)


# B6: gamma 0 without the rescaling
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        *product([*GAUSSIAN, *FLOW], ["tcd_grid", "karras", "simple"]),
        *product(["epsilon", "v", "v+zsnr"], AYS),
    ],
)
def test_without_noise_and_to_the_end_it_is_the_hosts_euler(inside: Inside, kind: str, scheduler: str):
    sigmas = inside("schedule", kind=kind, scheduler=scheduler, steps=6)
    ours = run(inside, kind, sigmas=sigmas, gamma=0.0, end="clean")
    euler = run(inside, kind, sigmas=sigmas, core="euler")
    assert relative(ours["latent"], euler["latent"]) < 1e-4
    assert [c["sigma"] for c in ours["calls"]] == [c["sigma"] for c in euler["calls"]]
    assert ours["inputs unchanged"]


# B13: noise of the wrong deviation on flow and other models
@pytest.mark.parametrize("kind", [*GAUSSIAN, *FLOW])
def test_any_sigmas_keep_the_level_of_every_state(inside: Inside, kind: str):
    names = MORE if kind in FLOW else [*MORE, *AYS]
    rows = inside("marginals", kind=kind, schedulers=names, steps=[2, 4, 11], gammas=[0.0, 0.3, 1.0])
    for *which, mean, std, end, finite in rows:
        assert finite, which
        assert mean < 0.1 and std < 0.05, (which, mean, std)  # 4,096 numbers: 0.016 and 0.011 are usual
        assert end < 1e-3, which


# B5: NaN where sigmas lie between timesteps and gamma is small
@pytest.mark.parametrize("steps", [1, 3, 20, 37, 64, 100])
def test_no_scheduler_and_gamma_makes_it_infinite(inside: Inside, steps: int):
    names = SCHEDULERS if steps == 1 else MORE
    gammas = [0.0, 0.01, 0.07, 0.16, 0.5, 0.83, 0.99, 1.0]
    rows = inside("marginals", kind="epsilon", schedulers=names, steps=[steps], gammas=gammas)
    assert [row[:4] for row in rows if not row[-1]] == []


# B4: a sampler bound to one list of sigmas is NaN on a part of it
@pytest.mark.parametrize("kind", ["epsilon", "v", "edm", "flow"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scheduler", ["tcd_grid", "karras", "sgm_uniform"])
@pytest.mark.parametrize("order", ["1", "2"])
def test_a_run_split_in_two_is_the_run(inside: Inside, kind: str, gamma: float, scheduler: str, order: str):
    sigmas = inside("schedule", kind=kind, scheduler=scheduler, steps=6)
    whole = run(inside, kind, sigmas=sigmas, gamma=gamma, order=order)
    high = run(inside, kind, sigmas=sigmas[:4], gamma=gamma, order=order)
    low = run(
        inside,
        kind,
        sigmas=sigmas[3:],
        latent=high["latent"],
        noise=torch.zeros(SHAPE),
        gamma=gamma,
        order=order,
    )
    assert relative(low["latent"], whole["latent"]) < 1e-4


def test_a_split_run_takes_the_noise_it_is_given(inside: Inside):
    sigmas, noises = inside("grid", kind="epsilon", steps=6), [randn(i, *SHAPE) for i in range(5)]
    whole = run(inside, sigmas=sigmas, noises=noises)
    high = run(inside, sigmas=sigmas[:4], noises=noises[:3])
    low = run(inside, sigmas=sigmas[3:], noises=noises[3:], latent=high["latent"], noise=EMPTY)
    assert relative(low["latent"], whole["latent"]) < 1e-5
    noisy, preview = high["latent"] * SCALE, high["seen"][-1][1]
    assert float((noisy - preview).std()) == pytest.approx(float(sigmas[3]), rel=0.2)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_a_sigma_given_twice(inside: Inside, gamma: float):
    sigmas = inside("grid", kind="epsilon", steps=4)
    twice = sigmas[[0, 1, 1, 2, 3, 4, 4]]
    shown = inside("plain", kind="epsilon", sigmas=twice, gamma=gamma, end="clean")
    assert shown["called"] == twice[:5].tolist()
    for sigma, state in zip(shown["called"], shown["states"], strict=True):
        assert float(state.std()) == pytest.approx(sigma, rel=0.05)
    assert float((shown["result"] - 1).abs().max()) < 1e-5
    if gamma == 0:
        assert torch.equal(shown["states"][1], shown["states"][2])


def test_sigmas_beyond_the_table(inside: Inside):
    sigmas = torch.tensor([80.0, 20.0, 14.0, 5.0, 0.5, 0.02, 0.001, 0.0])
    for end in ("official", "clean"):
        shown = inside("plain", kind="epsilon", sigmas=sigmas, gamma=0.3, end=end)
        assert float((shown["result"] - 1).abs().max()) < 1e-4
        for sigma, state in zip(shown["called"], shown["states"], strict=True):
            assert float(state.std()) == pytest.approx(sigma, rel=0.05)


def test_the_target_is_the_whole_timestep_on_the_table_and_between_else(inside: Inside):
    """With x0 = 0 the state before noise is sigma_down eps: gamma shows in how much of eps is left."""
    table = inside("table", kind="epsilon")
    for t_next, s in ((759.0, math.floor(0.7 * 759)), (400.5, 0.7 * 400.5)):
        log_sigma = torch.lerp(table[int(t_next)].log(), table[int(t_next) + 1].log(), t_next % 1)
        low, high = table[int(s)].log(), table[int(s) + 1].log()
        down = torch.lerp(low, high, s % 1).exp()
        sigmas = torch.stack([table[999], log_sigma.exp()])
        shown = inside("plain", kind="epsilon", sigmas=sigmas, gamma=0.3, x0=0.0, shape=(1, 1, 1000, 1000))
        start, end = shown["states"][0] / sigmas[0], shown["result"]
        left = float((start * end).mean() / (start * start).mean())
        assert left == pytest.approx(float(down), rel=0.02)


def test_ascending_sigmas_are_refused_with_advice(inside: Inside):
    with pytest.raises(RuntimeError, match=r"descending sigmas.*use euler"):
        inside("plain", kind="epsilon", sigmas=torch.tensor([0.1, 1.0, 5.0]))


def test_a_model_without_a_trajectory_is_refused_with_advice(inside: Inside):
    with pytest.raises(RuntimeError, match=r"TCD cannot sample .*IMG_TO_IMG.*use euler"):
        inside("plain", kind="image to image", sigmas=torch.tensor([5.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"gamma": 1.5}, "gamma 1.5"), ({"order": "3"}, "order '3'"), ({"end": "x"}, "end 'x'")],
)
def test_wrong_options_are_refused(inside: Inside, wrong: dict[str, Any], message: str):
    with pytest.raises(RuntimeError, match=message):
        inside("plain", kind="epsilon", sigmas=torch.tensor([5.0, 1.0, 0.0]), **wrong)


def reference_flow(
    inside: Inside, kind: str, sigmas: list[float], gamma: float, noises: list[Tensor]
) -> Tensor:
    """Algorithm 4 by the page, for alpha = 1 - sigma and velocity prediction."""
    unit = 1000.0 if kind == "flow" else 1.0
    x, queue = randn(1, *SHAPE).double(), list(noises)
    for now, following in pairwise(sigmas):
        velocity = inside("network", kind=kind, x=x.float(), t=torch.tensor(now * unit)).double()
        x0, eps = x - now * velocity, x + (1 - now) * velocity
        s = (1 - gamma) * following
        x = (1 - s) * x0 + s * eps
        if following > 0 and gamma > 0:
            r = (1 - following) / (1 - s)
            x = r * x + math.sqrt(following**2 - (r * s) ** 2) * queue.pop(0)
    return x.float()


# B19: another share of x0 on flow models
@pytest.mark.parametrize("kind", FLOW)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_flow_models(inside: Inside, kind: str, gamma: float):
    sigmas, noises = inside("grid", kind=kind, steps=5), [randn(i, *SHAPE) for i in range(4)]
    assert sigmas[0] == 1 and sigmas[-1] == 0
    ours = run(inside, kind, sigmas=sigmas, gamma=gamma, noises=noises)
    expected = reference_flow(inside, kind, sigmas.tolist(), gamma, noises)
    assert relative(ours["latent"] * SCALE, expected) < 1e-4


@pytest.mark.parametrize("kind", FLOW)
def test_the_grid_of_a_flow_model_is_uniform_before_its_shift(inside: Inside, kind: str):
    """As the host's simple scheduler, which looks it up in a table."""
    ours, host = (inside("schedule", kind=kind, scheduler=s, steps=8) for s in ("tcd_grid", "simple"))
    assert torch.allclose(ours, host, atol=2e-4)
    assert (inside("grid", kind=kind, steps=4, denoise=0.5).diff() < 0).all()


# B1: a grid that starts below 999, or at 1 for one step
@pytest.mark.parametrize("steps", range(1, 51))
def test_the_grid_of_ksamplers_list(inside: Inside, steps: int):
    table = inside("table", kind="epsilon")
    sigmas = inside("schedule", kind="epsilon", scheduler="tcd_grid", steps=steps)
    times = [999 - 20 * math.floor(i * (50 / steps)) for i in range(steps)]
    assert torch.equal(sigmas, torch.cat([table[times], torch.zeros(1)]))


def test_simple_of_an_lcm_model_has_the_official_timesteps(inside: Inside):
    """What troubleshooting.md advises for nodes that do not offer tcd_grid."""
    for steps in range(1, 51):
        official = inside("schedule", kind="epsilon", scheduler="tcd_grid", steps=steps)
        assert torch.equal(inside("schedule", kind="lcm", scheduler="simple", steps=steps), official)


# B8, B22: more than 50 steps refused, or with sigmas twice
@pytest.mark.parametrize("steps", [51, 66, 100, 400, 1000, 1001, 2000, 100_000])
def test_more_steps_than_the_origin_has(inside: Inside, steps: int):
    """KSampler asks for steps / denoise of them."""
    for kind in ("epsilon", "v+zsnr", "lcm", "cascade", "edm", "flow") if steps < 10_000 else ("epsilon",):
        sigmas = inside("schedule", kind=kind, scheduler="tcd_grid", steps=steps)
        assert len(sigmas) == steps + 1 and (sigmas.diff() < 0).all()


def test_too_many_steps_for_denoise_say_what_to_do(inside: Inside):
    advice = "leaves 2 of the 50 .* use 2 steps or fewer, or denoise 0.08 or more, or original_steps 0"
    for kind in ("epsilon", "lcm"):
        with pytest.raises(RuntimeError, match=f"4 steps do not fit: denoise 0.05 {advice}"):
            inside("grid", kind=kind, steps=4, denoise=0.05)
        assert len(inside("grid", kind=kind, steps=4, denoise=0.05, original_steps=0)) == 5
        assert len(inside("grid", kind=kind, steps=4, denoise=0.08)) == 5


@pytest.mark.parametrize(("steps", "denoise"), [(20, 0.02), (20, 0.01), (30, 0.02), (1, 0.001), (4, 0.015)])
@pytest.mark.parametrize("kind", ["epsilon", "lcm", "edm", "flow"])
def test_ksampler_at_any_denoise(inside: Inside, kind: str, steps: int, denoise: float):
    """As many evaluations as with the host's normal scheduler, from as much noise; detailers ask so."""
    latent = {"samples": randn(2, *SHAPE)}
    run = {"kind": kind, "latent": latent, "steps": steps, "denoise": denoise}
    ours, theirs = (inside("ksampler", **run, scheduler=name) for name in ("tcd_grid", "normal"))
    called = [[call["sigma"][0] for call in out["calls"]] for out in (ours, theirs)]
    assert len(called[0]) == len(called[1]) == steps
    assert all(b < a for a, b in pairwise(called[0]))
    assert ours["latent"].isfinite().all()
    if kind in ("epsilon", "edm"):  # lcm has no level below timestep 19 in the host's own schedulers
        assert called[0][0] == pytest.approx(called[1][0], rel=0.2)


# B8: denoise 0 raises IndexError
def test_denoise_zero_returns_the_latent(inside: Inside):
    latent = randn(2, *SHAPE)
    sigmas = inside("grid", kind="epsilon", steps=4, denoise=0.0)
    assert torch.equal(run(inside, sigmas=sigmas, latent=latent)["latent"], latent)
    out = inside("tcd_ksampler", kind="epsilon", latent={"samples": latent}, denoise=0.0)
    assert torch.equal(out["latent"], latent) and torch.equal(out["denoised"], latent) and out["calls"] == []


def test_guidance(inside: Inside):
    noises = [randn(10 + i, *SHAPE) for i in range(3)]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        yes, no = (inside("network", kind="epsilon", x=x, t=t, cond=c) for c in (1, 2))
        return no + 3.0 * (yes - no)

    expected = diffusers_run(guided, "epsilon", 4, 0.3, randn(1, *SHAPE), noises)
    ours = run(inside, noises=noises, cfg=3.0)
    assert relative(ours["latent"] * SCALE, expected.x) < 1e-4
    assert sum(call["batch"] for call in ours["calls"]) == 8


def test_without_guidance_one_forward_a_step(inside: Inside):
    for steps in (1, 4, 7):
        calls = run(inside, sigmas=inside("grid", kind="epsilon", steps=steps))["calls"]
        assert [call["batch"] for call in calls] == [1] * steps
    out = inside("tcd_ksampler", kind="epsilon", latent={"samples": EMPTY}, steps=5)
    assert [call["batch"] for call in out["calls"]] == [1] * 5
    multistep = run(inside, order="multistep")["calls"]
    assert [call["batch"] for call in multistep] == [1] * 4
    assert len(run(inside, order="2", end="clean")["calls"]) == 7  # no midpoint to sigma 0


# B22: the official end keeps a trace of noise; both ends are there
def test_the_end_clean_is_the_last_x0(inside: Inside):
    clean, official = (run(inside, end=end) for end in ("clean", "official"))
    assert relative(clean["latent"] * SCALE, clean["seen"][-1][1]) < 1e-6
    table = inside("table", kind="epsilon")
    state, x0, sigma = official["seen"][-1][2], official["seen"][-1][1], official["calls"][-1]["sigma"][0]
    alpha_0 = float((1 + table[0].double() ** 2) ** -0.5)
    expected = alpha_0 * (x0 + table[0] * (state - x0) / sigma)
    assert relative(official["latent"] * SCALE, expected) < 1e-6
    assert relative(clean["latent"], official["latent"]) > 1e-3


# B9: previews of the noisy state
def test_previews_are_x0(inside: Inside):
    ours = run(inside)
    sigmas = inside("grid", kind="epsilon", steps=4)
    assert [(i, total) for i, _, _, total in ours["seen"]] == [(i, 4) for i in range(4)]
    for (_, x0, x, _), sigma, call in zip(ours["seen"], sigmas, ours["calls"], strict=False):
        eps = inside("network", kind="epsilon", x=x / (sigma**2 + 1) ** 0.5, t=torch.tensor(call["t"][0]))
        assert relative(x0, x - sigma * eps) < 1e-5
        assert call["sigma"] == [float(sigma)]  # exactly: packs look sigmas up in the list


# B10: noise of the global generator, not of the seed
def test_seeds(inside: Inside):
    same = [run(inside, seed=5)["latent"] for _ in range(2)]
    assert torch.equal(*same)
    assert relative(run(inside, seed=6)["latent"], same[0]) > 0.05
    assert torch.equal(run(inside, seed=5, gamma=0.0)["latent"], run(inside, seed=6, gamma=0.0)["latent"])
    assert torch.equal(run(inside, seed=5, noise_device="gpu")["latent"], same[0])  # on a CPU the same
    unseeded = [run(inside, seed=None)["latent"] for _ in range(2)]
    assert not torch.equal(*unseeded)


# B11: the initial noise once more as that of the first step
@pytest.mark.parametrize("name", ["seed 0", "seed 1", "large"])
def test_the_noise_of_the_steps_is_not_the_initial_noise(inside: Inside, name: str):
    seed = {"seed 0": 0, "seed 1": 1, "large": 2**64 - 1}[name]
    initial = inside("initial_noise", shape=[1, 4, 64, 64], seed=seed)
    # x0 = 0 and gamma = 1: the next state is nothing but the noise of the step
    states = inside(
        "plain", kind="epsilon", sigmas=inside("grid", kind="epsilon", steps=4), x0=0.0, gamma=1.0
    )["states"]
    for state in states[1:]:
        assert abs(float((state * initial).mean() / state.std())) < 0.03
    assert abs(float((states[1] * states[2]).mean() / states[1].std() / states[2].std())) < 0.03


# B2, B3: a gamma without effect, up to 0.24 or at all
def test_gamma_changes_the_picture_at_once(inside: Inside):
    results = [run(inside, gamma=gamma)["latent"] for gamma in (0.0, 0.01, 0.05, 0.3, 0.9)]
    for a in range(len(results)):
        for b in range(a):
            assert relative(results[a], results[b]) > 1e-3


def test_gamma_in_a_line(inside: Inside):
    noises = [randn(20 + i, *SHAPE) for i in range(3)]
    expected = diffusers_run(
        lambda x, t: inside("network", kind="epsilon", x=x, t=t),
        "epsilon",
        4,
        [0.1, 0.5, 0.9, 0.9],
        randn(1, *SHAPE),
        noises,
    )
    ours = run(inside, noises=noises, gamma=0.1, gamma_end=0.9)
    assert relative(ours["latent"] * SCALE, expected.x) < 1e-4


@pytest.mark.parametrize("original_steps", [1000, 100, 25])
def test_other_original_steps(inside: Inside, original_steps: int):
    noises = [randn(20 + i, *SHAPE) for i in range(6)]
    expected = diffusers_run(
        lambda x, t: inside("network", kind="epsilon", x=x, t=t),
        "epsilon",
        7,
        0.3,
        randn(1, *SHAPE),
        noises,
        original_steps=original_steps,
    )
    given = 0 if original_steps == 1000 else original_steps
    sigmas = inside("grid", kind="epsilon", steps=7, original_steps=given)
    ours = run(inside, sigmas=sigmas, noises=noises)
    assert [call["t"][0] for call in ours["calls"]] == expected.timesteps
    assert relative(ours["latent"] * SCALE, expected.x) < 1e-4


def test_interrupt(inside: Inside):
    assert inside("interrupted", kind="epsilon", latent=EMPTY) == ["InterruptProcessingException", 2]
    assert run(inside)["latent"].isfinite().all()


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("end", ["official", "clean"])
def test_inpainting_with_a_mask(inside: Inside, strength: float, end: str):
    latent, mask = randn(2, *SHAPE), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 3:8] = 1
    noises = [randn(10 + i, *SHAPE) for i in range(4)]
    sigmas = inside("grid", kind="epsilon", steps=4, denoise=strength)
    ours = (
        run(inside, sigmas=sigmas, latent=latent / SCALE, mask=mask, noises=noises, end=end)["latent"] * SCALE
    )
    kept = (1 - mask).bool().expand_as(ours)
    assert relative(ours[kept], latent[kept]) < 1e-6
    if strength < 1 and end == "official":
        expected = diffusers_run(
            lambda x, t: inside("network", kind="epsilon", x=x, t=t),
            "epsilon",
            4,
            0.3,
            randn(1, *SHAPE),
            noises,
            strength,
            latent=latent,
            mask=mask,
        )
        assert relative(ours, expected.x) < 1e-4


def test_an_inpainting_model(inside: Inside):
    """Its network gets mask and picture as further channels."""
    concat = torch.cat([torch.ones(1, 1, 8, 8), randn(3, *SHAPE)], 1)
    noises = [randn(10 + i, *SHAPE) for i in range(3)]
    expected = diffusers_run(
        lambda x, t: inside("network", kind="epsilon", x=x, t=t, concat=concat),
        "epsilon",
        4,
        0.3,
        randn(1, *SHAPE),
        noises,
    )
    given = torch.cat([concat[:, :1], concat[:, 1:] / SCALE], 1)
    ours = run(inside, noises=noises, concat=given)
    assert relative(ours["latent"] * SCALE, expected.x) < 1e-4


FEATURES = ["area", "regional prompt", "timestep range", "ControlNet", "IP-Adapter", "hook"]


@pytest.mark.parametrize("feature", FEATURES)
def test_what_works_in_the_hosts_euler_works_here(inside: Inside, feature: str):
    ours, plain = (run(inside, gamma=0.0, end="clean", cfg=2.0, feature=f) for f in (feature, ""))
    euler = run(inside, core="euler", cfg=2.0, feature=feature)
    assert relative(ours["latent"], euler["latent"]) < 1e-4
    assert relative(ours["latent"], plain["latent"]) > 1e-3


@pytest.mark.parametrize("feature", FEATURES)
def test_noise_is_added_to_what_the_host_denoises(inside: Inside, feature: str):
    """Each step of a run with gamma: x0 is what euler makes of the state in one step, the next follows."""
    table, times = inside("table", kind="epsilon"), timesteps_of_diffusers("epsilon", 4)
    sigmas = inside("grid", kind="epsilon", steps=4)
    noises = [randn(10 + i, *SHAPE) for i in range(3)]
    ours = run(inside, sigmas=sigmas, cfg=2.0, feature=feature, gamma=0.3, noises=noises)
    states = [x for _, _, x, _ in ours["seen"]]
    for i, (_, x0, x, _) in enumerate(ours["seen"]):
        once = run(
            inside,
            core="euler",
            cfg=2.0,
            feature=feature,
            sigmas=sigmas[[i, 4]],
            latent=x / SCALE,
            noise=EMPTY,
        )
        assert relative(x0, once["latent"] * SCALE) < 1e-4
        if i < 3:
            down = table[math.floor(0.7 * times[i + 1])]
            at_s = x0 + down * (x - x0) / sigmas[i]
            assert relative(states[i + 1], at_s + (sigmas[i + 1] ** 2 - down**2).sqrt() * noises[i]) < 1e-4


def test_five_dimensions(inside: Inside):
    noise, noises = randn(1, 1, 4, 2, 8, 8), [randn(10 + i, 1, 4, 2, 8, 8) for i in range(3)]
    video = run(inside, latent=torch.zeros_like(noise), noise=noise, noises=noises)["latent"]
    for t in range(2):
        frame = run(inside, noise=noise[:, :, t], noises=[z[:, :, t] for z in noises])["latent"]
        assert relative(video[:, :, t], frame) < 1e-5


def test_nested_latents(inside: Inside):
    if not inside("has_nested"):
        with pytest.raises(RuntimeError, match=r"No module named 'comfy\.nested_tensor'"):
            inside("nested", kind="epsilon")
        return
    latents, denoised, calls = inside("nested", kind="epsilon")
    assert [x.shape for x in latents] == [x.shape for x in denoised] == [(1, 4, 8, 8), (1, 4, 2, 8, 8)]
    assert calls == 4 and all(x.isfinite().all() and float(x.std()) > 0.1 for x in (*latents, *denoised))
    euler = inside("nested", kind="epsilon", core="euler")
    ours, clean, _ = inside("nested", kind="epsilon", gamma=0.0, end="clean")
    assert all(relative(a, b) < 1e-4 for part in (ours, clean) for a, b in zip(part, euler, strict=True))


# B12: an item that depends on the others of its batch
def test_an_item_of_a_batch_is_what_it_is_alone(inside: Inside):
    latent = randn(2, 3, 4, 8, 8)
    mask = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(4)).round()
    for denoise, masks in ((1.0, None), (0.6, None), (0.6, mask)):

        def sample(given: dict[str, Any], denoise: float = denoise) -> Any:
            return inside("tcd_ksampler", kind="epsilon", latent=given, denoise=denoise, gamma=0.5, seed=9)

        batch = {"samples": latent} if masks is None else {"samples": latent, "noise_mask": masks}
        together = sample(batch)
        for i in range(3):
            item: dict[str, Any] = {"samples": latent[i : i + 1], "batch_index": [i]}
            if masks is not None:
                item["noise_mask"] = masks[i : i + 1]
            alone = sample(item)
            for name in ("latent", "denoised"):
                assert relative(together[name][i : i + 1], alone[name]) < 1e-5
        assert relative(together["latent"][:1], together["latent"][1:2]) > 0.1


def test_ksampler_does_not_know_which_item_it_has(inside: Inside):
    """What README's table says: the first item is what it is alone, the second gets the noise of a first."""
    batch = inside("ksampler", kind="epsilon", latent={"samples": torch.zeros(2, 4, 8, 8)}, steps=4)["latent"]
    for item in range(2):
        alone = {"samples": torch.zeros(SHAPE), "batch_index": [item]}
        again = inside("ksampler", kind="epsilon", latent=alone, steps=4)["latent"]
        assert (relative(again, batch[item : item + 1]) < 1e-5) == (item == 0)


def test_batch_index_names_the_items(inside: Inside):
    def sample(count: int, **numbered: Any) -> Any:
        given = {"samples": torch.zeros(count, 4, 8, 8), **numbered}
        return inside("tcd_ksampler", kind="epsilon", latent=given, gamma=0.7, seed=9)["latent"]

    five, two = sample(5), sample(2, batch_index=[4, 1])
    assert relative(two, five[[4, 1]]) < 1e-5
    same = sample(2, batch_index=[3, 3])
    assert relative(same, five[[3, 3]]) < 1e-5


def test_odd_sizes_of_a_batch(inside: Inside):
    """Not a multiple of 16 numbers: one draw for the whole batch would give other items."""
    latent = torch.zeros(2, 4, 6, 6)[..., :5, :5].contiguous()
    latent = torch.nn.functional.pad(latent, (0, 1, 0, 1))  # the tiny network halves its input
    together = inside("tcd_ksampler", kind="epsilon", latent={"samples": latent}, seed=9)
    alone = inside("tcd_ksampler", kind="epsilon", latent={"samples": latent[1:], "batch_index": [1]}, seed=9)
    assert relative(together["latent"][1:], alone["latent"]) < 1e-5


# B21: a gamma that is constant, whatever the user says
def test_ksampler_by_name_is_the_node(inside: Inside):
    latent = randn(2, *SHAPE)
    for settings in (None, {"gamma": 0.8, "gamma_end": 0.1, "order": "2", "end": "clean"}):
        by_name = inside("ksampler", kind="v", latent={"samples": latent}, steps=4, seed=3, settings=settings)
        node = inside("tcd_ksampler", kind="v", latent={"samples": latent}, seed=3, **(settings or {}))
        assert torch.equal(by_name["latent"], node["latent"])
    assert (
        relative(
            node["latent"], inside("tcd_ksampler", kind="v", latent={"samples": latent}, seed=3)["latent"]
        )
        > 0.01
    )


def test_what_a_node_says_wins_over_the_settings(inside: Inside):
    settings = {"gamma": 0.9, "gamma_end": 0.5, "order": "2", "end": "clean"}
    assert torch.equal(run(inside, settings=settings)["latent"], run(inside)["latent"])


# B7: model_sampling replaced, with the type of prediction, zsnr and earlier patches lost
@pytest.mark.parametrize("kind", ["v+zsnr", "x0", "flow"])
def test_the_models_own_sampling_stays(inside: Inside, kind: str):
    out = inside("tcd_ksampler", kind=kind, latent={"samples": EMPTY}, steps=2)
    assert out["own sampling"]
    by_name = inside("ksampler", kind=kind, latent={"samples": EMPTY}, steps=2, settings={"gamma": 0.5})
    assert by_name["own sampling"]


@pytest.mark.parametrize(
    ("kind", "node", "given", "same"),
    [
        ("epsilon", "ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}, "v+zsnr"),
        ("epsilon", "ModelSamplingDiscrete", {"sampling": "x0", "zsnr": False}, "x0"),
        ("v", "ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}, "lcm"),
        ("flux", "ModelSamplingSD3", {"shift": 3.0}, "flow"),
    ],
)
@pytest.mark.parametrize("name", ["ksampler", "tcd_ksampler"])
def test_a_model_sampling_that_another_node_gave(
    inside: Inside, kind: str, node: str, given: dict[str, Any], same: str, name: str
):
    """The same network as a model that comes with it."""
    latent = {"samples": randn(2, *SHAPE)}
    changed = inside(name, kind=kind, latent=latent, steps=3, denoise=0.6, patch=(node, given))
    assert changed["own sampling"]
    expected = inside(name, kind=same, latent=latent, steps=3, denoise=0.6)
    assert [c["sigma"] for c in changed["calls"]] == [c["sigma"] for c in expected["calls"]]
    assert relative(changed["latent"], expected["latent"]) < 1e-5
    assert relative(inside(name, kind=kind, latent=latent, steps=3)["latent"], expected["latent"]) > 1e-2


def test_ksampler_select_obeys_the_settings(inside: Inside):
    """In SamplerCustom the sampler is a name then, as in the nodes of other packs."""
    settings = {"gamma": 0.8, "gamma_end": 0.1, "order": "2", "end": "clean"}
    by_name = run(inside, core="tcd_sss", settings=settings)
    node = run(inside, gamma=0.8, gamma_end=0.1, order="2", end="clean")
    assert torch.equal(by_name["latent"], node["latent"])
    assert relative(by_name["latent"], run(inside, core="tcd_sss")["latent"]) > 1e-2


# B22: not finite in diffusers; ComfyUI's last alpha is not 0
def test_an_epsilon_model_with_zero_terminal_snr(inside: Inside):
    for steps in (1, 4, 20):
        out = inside("tcd_ksampler", kind="epsilon+zsnr", latent={"samples": EMPTY}, steps=steps, end="clean")
        assert out["latent"].isfinite().all() and out["denoised"].isfinite().all()


# B3: lines printed in every step
def test_nothing_is_printed(inside: Inside):
    assert inside("printed", kind="epsilon", latent={"samples": EMPTY}) == ""


def test_settings_leave_the_model_they_came_from(inside: Inside):
    given = {"kind": "epsilon", "latent": {"samples": EMPTY}, "steps": 3}
    before = inside("ksampler", **given)["latent"]
    assert not torch.equal(inside("ksampler", settings={"gamma": 0.9}, **given)["latent"], before)
    assert torch.equal(inside("ksampler", **given)["latent"], before)


def test_ksampler_advanced_in_two_stages(inside: Inside):
    whole = inside("ksampler", kind="epsilon", latent={"samples": EMPTY}, steps=6, seed=4)["latent"]
    first = inside(
        "ksampler", kind="epsilon", latent={"samples": EMPTY}, steps=6, seed=4, start_step=0, last_step=3
    )["latent"]
    second = inside(
        "ksampler",
        kind="epsilon",
        latent={"samples": first},
        steps=6,
        seed=4,
        start_step=3,
        last_step=10000,
        disable_noise=True,
        force_full_denoise=True,
    )["latent"]
    assert relative(second, whole) < 1e-5


@pytest.mark.parametrize(("steps", "denoise"), [(4, 0.5), (5, 0.5), (2, 0.2), (10, 0.4)])
def test_ksamplers_denoise_where_it_divides(inside: Inside, steps: int, denoise: float):
    """KSampler takes the last of int(steps / denoise) steps: diffusers' choice where it comes out even."""
    out = inside(
        "ksampler", kind="epsilon", latent={"samples": randn(2, *SHAPE)}, steps=steps, denoise=denoise
    )
    start = int(50 * denoise)
    expected = [20 * start - 1 - 20 * math.floor(i * (start / steps)) for i in range(steps)]
    assert [call["t"][0] for call in out["calls"]] == expected


def test_ksamplers_denoise_cannot_be_told_apart_where_the_node_is_exact(inside: Inside):
    """0.29 and 0.3 of 4 steps: one request to a scheduler, but two starts in diffusers."""
    latent = {"samples": randn(2, *SHAPE)}
    host, node = [], []
    for denoise in (0.29, 0.3):
        by_host = inside("ksampler", kind="epsilon", latent=latent, steps=4, denoise=denoise)
        by_node = inside("tcd_ksampler", kind="epsilon", latent=latent, steps=4, denoise=denoise)
        host.append([call["t"][0] for call in by_host["calls"]])
        node.append([call["t"][0] for call in by_node["calls"]])
        assert node[-1] == timesteps_of_diffusers("epsilon", 4, denoise)
    assert host[0] == host[1] and node[0] != node[1]
    assert abs(host[0][0] - node[0][0]) <= 60 and abs(host[1][0] - node[1][0]) <= 60


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_the_worst_case_of_the_others_is_none_here(inside: Inside, steps: int):
    """Sigmas of sgm_uniform lie between timesteps; a table of timesteps would snap them."""
    assert compare(inside, "epsilon", steps, 0.16, 1.0) < 1e-4
    sigmas = inside("schedule", kind="epsilon", scheduler="sgm_uniform", steps=steps)
    for gamma in (0.0, 0.05, 0.16):
        assert run(inside, sigmas=sigmas, gamma=gamma)["latent"].isfinite().all()
