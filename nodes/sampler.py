"""The sampling nodes: each declares, then makes one call."""

from __future__ import annotations

from inspect import signature
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.v0_0_2 import io

from .api import advanced, schema
from .host import grid
from .tcd_sss import ENDS, ORDERS, SETTINGS, Settings, sample_tcd_sss

ALIASES = ["tcd", "trajectory consistency", "lcm", "distillation", "few step", "turbo", "hyper-sd", "eta"]
SAME = -1.0
"""Of gamma_end: the same as gamma."""


def _steps() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=4,
        min=1,
        max=1000,
        tooltip="Number of denoising steps. TCD LoRAs: 4 to 8 for speed, up to 50 for detail.",
    )


def _gamma() -> io.Float.Input:
    return io.Float.Input(
        "gamma",
        display_name="gamma (eta)",
        default=0.3,
        min=0.0,
        max=1.0,
        step=0.01,
        round=False,
        display_mode=io.NumberDisplay.slider,
        tooltip="Share of fresh noise in each step; diffusers' eta. 0: none, the run is deterministic. "
        "1: every step starts anew, as LCM does. 0.3 is the TCD authors' default; more steps take more.",
    )


def _denoise() -> io.Float.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="1: starts from pure noise. Below 1: from the latent with noise, keeping that much less of "
        "the schedule, but all steps; diffusers' strength. 0: the latent is returned unchanged.",
    )


def _gamma_end() -> io.Float.Input:
    return advanced(
        io.Float.Input(
            "gamma_end",
            default=SAME,
            min=SAME,
            max=1.0,
            step=0.01,
            round=False,
            optional=True,
            tooltip="Gamma goes from gamma to this in a line over the steps that add noise. -1: it stays.",
        )
    )


def _order() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "order",
            options=list(ORDERS),
            default="1",
            optional=True,
            tooltip="Of the denoising step. 1: TCF(1), as in diffusers. 2: TCF(2), two model evaluations a "
            "step. multistep: second order by the step before, one evaluation; for small gamma.",
        )
    )


def _end() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "end",
            options=list(ENDS),
            default=ENDS[0],
            optional=True,
            tooltip="official: ends at timestep 0 as diffusers does, with a trace of the predicted noise. "
            "clean: ends without noise. Flow models end clean either way.",
        )
    )


def _original_steps() -> io.Int.Input:
    return advanced(
        io.Int.Input(
            "original_steps",
            default=50,
            min=0,
            max=10000,
            optional=True,
            tooltip="Number of timesteps that the model was distilled on, from which the steps are chosen: "
            "50 for TCD and LCM. 0: all timesteps, which more than 50 steps need.",
        )
    )


def _noise_device() -> io.Combo.Input:
    return advanced(
        io.Combo.Input(
            "noise_device",
            options=["cpu", "gpu"],
            default="cpu",
            optional=True,
            tooltip="Where the noise of the steps is drawn. cpu: the same picture on every device. "
            "gpu: where the model runs, on the CPU if that is there.",
        )
    )


def _settings(gamma: float, gamma_end: float, order: str, end: str) -> dict[str, Any]:
    return Settings(gamma, gamma if gamma_end < 0 else gamma_end, order, end)._asdict()


def _sampler(**options: Any) -> comfy.samplers.KSAMPLER:
    # Our function itself, not its name in the host's lists: that may be another pack's.
    return comfy.samplers.KSAMPLER(sample_tcd_sss, extra_options=options)


def _sigmas(model: Any, steps: int, denoise: float, original_steps: int) -> Any:
    return grid(
        model.get_model_object("model_sampling"),
        steps,
        denoise,
        original_steps if original_steps > 0 else None,
    )


class TCDKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_KSampler",
            display_name="TCD Sampler",
            category="TCD",
            description="Samples with Trajectory Consistency Distillation, as diffusers' TCDScheduler does. "
            "Every item of a batch is what it would be alone.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="A model with a TCD LoRA, or one distilled otherwise."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Decides the initial noise and that of the steps.",
                ),
                _steps(),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance. 1: none, one model evaluation a step, no negative prompt; "
                    "TCD LoRAs have guidance in them. Up to 2.",
                ),
                _gamma(),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image"),
                _denoise(),
                _order(),
                _end(),
                _gamma_end(),
                _original_steps(),
                _noise_device(),
            ],
            outputs=[
                io.Latent.Output(display_name="LATENT"),
                io.Latent.Output(display_name="denoised", tooltip="The last prediction of the picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        gamma: float,
        positive: Any,
        negative: Any,
        latent_image: Any,
        denoise: float,
        order: str = "1",
        end: str = "official",
        gamma_end: float = SAME,
        original_steps: int = 50,
        noise_device: str = "cpu",
    ) -> io.NodeOutput:
        sigmas = _sigmas(model, steps, denoise, original_steps)
        options = {**_settings(gamma, gamma_end, order, end), "noise_device": noise_device}
        return io.NodeOutput(
            *sample_latent(model, seed, cfg, positive, negative, latent_image, sigmas, options)
        )


class Part(NamedTuple):
    """What a run is of a longer one, in steps, for the progress bar."""

    done: int
    total: int


def progress(model: Any, steps: int, part: Part | None = None, x0: dict[str, Any] | None = None) -> Any:
    """The host's callback: progress bar, preview, cancel; `x0` gets the last prediction."""
    done, total = part or Part(0, steps)
    callback = latent_preview.prepare_callback(model, total, x0)
    return lambda step, clean, x, _: callback(done + min(step, steps - 1), clean, x, total)


def of_size() -> list[str]:
    """Name the entries of a LATENT that say how it is resized for a model, as this release of the host does.

    They have the names of the arguments that the host's own nodes hand them on as.
    """
    return list(signature(comfy.sample.fix_empty_latent_channels).parameters)[2:]  # after model, samples


def initial(model: Any, latent: Any, seed: int) -> tuple[Any, Any, list[int]]:
    """Give the samples in the size and channels of the model, the noise, and the items' numbers in it."""
    size = {name: latent.get(name) for name in of_size()}
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], **size)
    numbers = latent.get("batch_index")
    if numbers is None:
        numbers = list(range(samples.shape[0]))
    return samples, comfy.sample.prepare_noise(samples, seed, numbers), numbers


def sampled(latent: Any, samples: Any) -> Any:
    """Give the LATENT with its new samples, without what told the size of the empty one."""
    return {**{name: value for name, value in latent.items() if name not in of_size()}, "samples": samples}


def sample_latent(
    model: Any,
    seed: int,
    cfg: float,
    positive: Any,
    negative: Any,
    latent: Any,
    sigmas: Any,
    options: Any,
    part: Part | None = None,
) -> tuple[Any, Any]:
    """Sample as the host's SamplerCustom, with noise item by item: (the sampled LATENT, its x0)."""
    start, noise, numbers = initial(model, latent, seed)
    x0: dict[str, Any] = {}
    samples = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        _sampler(**options, batch_index=numbers),
        sigmas,
        positive,
        negative,
        start,
        noise_mask=latent.get("noise_mask"),
        callback=progress(model, len(sigmas) - 1, part, x0),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = sampled(latent, samples)
    if "x0" not in x0:  # no sigmas: nothing was sampled
        return out, out
    denoised = model.model.process_latent_out(x0["x0"].cpu())
    if samples.is_nested and not denoised.is_nested:  # 0.33 nests it before the callback sees it
        from comfy.nested_tensor import NestedTensor  # not in 0.3.64

        shapes = [piece.shape for piece in samples.unbind()]
        denoised = NestedTensor(comfy.utils.unpack_latents(denoised, shapes))
    return out, sampled(latent, denoised)


class TCDSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_Sampler",
            display_name="TCD Sampler (custom)",
            category="TCD",
            description="The TCD sampler for SamplerCustom and SamplerCustomAdvanced, for any sigmas.",
            search_aliases=ALIASES,
            inputs=[_gamma(), _gamma_end(), _order(), _end(), _noise_device()],
            outputs=[io.Sampler.Output(display_name="SAMPLER")],
        )

    @classmethod
    def execute(
        cls,
        gamma: float,
        gamma_end: float = SAME,
        order: str = "1",
        end: str = "official",
        noise_device: str = "cpu",
    ) -> io.NodeOutput:
        options = {**_settings(gamma, gamma_end, order, end), "noise_device": noise_device}
        return io.NodeOutput(_sampler(**options))


class TCDScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_Scheduler",
            display_name="TCD Scheduler",
            category="TCD",
            description="The timesteps of diffusers' TCDScheduler as sigmas of the model's own schedule.",
            search_aliases=ALIASES,
            inputs=[io.Model.Input("model"), _steps(), _denoise(), _original_steps()],
            outputs=[io.Sigmas.Output(display_name="SIGMAS")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float, original_steps: int = 50) -> io.NodeOutput:
        return io.NodeOutput(_sigmas(model, steps, denoise, original_steps))


class TCDSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_Settings",
            display_name="TCD Settings",
            category="TCD",
            description="Settings that KSampler, KSampler (Advanced) and other nodes obey when their sampler "
            "is tcd_sss. Choose the scheduler tcd_grid with it. A denoise below 1 in KSampler is then near "
            "diffusers' strength, but equal to it only where steps / denoise and 50 * denoise are whole "
            "numbers; the nodes TCD Sampler and TCD Scheduler are exact.",
            search_aliases=ALIASES,
            inputs=[io.Model.Input("model"), _gamma(), _gamma_end(), _order(), _end()],
            outputs=[io.Model.Output(display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls, model: Any, gamma: float, gamma_end: float = SAME, order: str = "1", end: str = "official"
    ) -> io.NodeOutput:
        patched = model.clone()
        patched.model_options[SETTINGS] = _settings(gamma, gamma_end, order, end)
        return io.NodeOutput(patched)


NODES: list[type[io.ComfyNode]] = [TCDKSampler, TCDSampler, TCDScheduler, TCDSettings]
