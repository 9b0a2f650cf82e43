"""How TCD Compare runs: the sampling, decoding and timing of its cells, and the files that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import comfy.patcher_extension
import comfy.sample
import comfy.utils
import folder_paths
from comfy_api.v0_0_2 import ui
from torch import Tensor

from . import lora
from .cells import Setting
from .comparison import Comparison
from .sampler import Part, initial, progress, sample_latent, sampled
from .sheet import to_image

NONE = "none"
PREVIEW = 1024
"""The longest side of the sheet as a preview."""


def decode(vae: Any, latent: Any) -> Tensor:
    """IMAGEs of a LATENT, as the host's VAE Decode; frames become a batch."""
    samples = latent["samples"]
    images = vae.decode(samples.unbind()[0] if samples.is_nested else samples)
    return images.reshape(-1, *images.shape[-3:]).float().cpu()


class Clock:
    """Times the sampling of the models that it is put on: without loading and patching the weights."""

    seconds = 0.0

    def on(self, model: Any) -> Any:
        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, self._measure)
        return model

    def _measure(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        began = perf_counter()
        out = executor(*args, **kwargs)
        out.flatten()[:1].cpu()  # waits for the device
        self.seconds = perf_counter() - began
        return out


def sample_reference(
    model: Any, positive: Any, negative: Any, latent: Any, about: dict[str, Any], part: Part
) -> Any:
    """Sample a LATENT as the host's KSampler does, with the same initial noise as every cell."""
    start, noise, _ = initial(model, latent, about["seed"])
    samples = comfy.sample.sample(
        model,
        noise,
        about["steps"],
        about["cfg"],
        about["sampler"],
        about["scheduler"],
        positive,
        negative,
        start,
        denoise=about["denoise"],
        noise_mask=latent.get("noise_mask"),
        callback=progress(model, about["steps"], part),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=about["seed"],
    )
    return sampled(latent, samples)


class Task(NamedTuple):
    """The sampling of one cell."""

    cell: Setting | None  # None: the reference
    steps: int
    sample: Callable[[Part], Any]  # -> LATENT


def fill(found: Comparison, tasks: Iterable[Task], clock: Clock, vae: Any, total: int) -> None:
    """Run the tasks; after each, the sheet so far is the node's preview."""
    bar, done = comfy.utils.ProgressBar(total), 0
    for task in tasks:
        latent = task.sample(Part(done, total))
        found.add(task.cell, decode(vae, latent), clock.seconds)
        done += task.steps
        bar.update_absolute(done, total, ("JPEG", found.sheet(), PREVIEW))


def save(found: Comparison, prefix: str, node: Any) -> tuple[Tensor, ui.SavedImages]:
    """The sheet as IMAGE and as shown; it and the table are files of the output folder."""
    image = to_image(found.sheet())
    shown = ui.ImageSaveHelper.get_save_images_ui(image, prefix, node)
    (result,) = shown.results
    file = Path(folder_paths.get_output_directory(), result.subfolder, result.filename)
    file.with_suffix(".csv").write_text(found.csv(), encoding="utf-8", newline="\n")
    return image, shown


def with_lora(model: Any, name: str, strength: float) -> tuple[Any, list[str]]:
    """The model with the LoRA as TCD LoRA Loader applies it, and what that says."""
    if name == NONE or strength == 0:
        return model, []
    file = lora.read(folder_paths.get_full_path_or_raise("loras", name))
    patched, _, lines = lora.apply(model, None, file, strength)
    return patched, lines


def sample_cell(*args: Any) -> Any:
    return sample_latent(*args)[0]
