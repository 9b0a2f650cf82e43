"""TCD Compare: one run over lists of steps and gammas, beside the teacher's own sampler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui

from . import lora
from .api import advanced, schema
from .cells import NEAR, Plan
from .compare_run import NONE, Clock, Task, fill, sample_cell, sample_reference, save, with_lora
from .comparison import Comparison
from .sampler import _denoise, _end, _noise_device, _original_steps, _settings, _sigmas

RULE = (
    f"Recommended is, of the cells whose distance is at most {NEAR:g} times the least, the one with the "
    "fewest model evaluations; of equal ones the nearest. Cells with less than two thirds of the reference's "
    "sharpness are left out, unless all are: this distance rewards blur."
)
MEASURES = (
    "sharpness: variance of the Laplacian of the grey levels; noise raises it too. complexity (edges): "
    "percent of neighbouring pixels that differ by more than 16 of 255 levels. distance (d): root mean "
    "square difference to the reference in levels of 255. seconds: of sampling, without loading and decoding."
)


class TCDCompareGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_CompareGrid",
            display_name="TCD Compare",
            category="TCD",
            description="Samples every combination of steps and gammas with the same seed and noise, beside "
            "the teacher's own sampler if one is chosen, and returns a labelled sheet, the pictures, and a "
            f"CSV that is also written beside the sheet into the output folder. {MEASURES} {RULE} Cancelling "
            "keeps what is finished.",
            search_aliases=["tcd", "xyz plot", "xy plot", "grid", "gamma", "steps", "compare", "benchmark"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="A model with a TCD LoRA; or one without, and the LoRA is chosen here."
                ),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent_image", tooltip="A batch fills each cell with several pictures."),
                io.Vae.Input("vae"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Not ControlAfterGenerate.fixed: frontend 1.49.6 makes that word the widget's name.
                    control_after_generate=True,
                    tooltip="The same in every cell and in the reference, and so is the noise.",
                ),
                io.String.Input(
                    "steps", default="2, 4, 8", tooltip="Columns: numbers of steps between commas, 1 to 1000."
                ),
                io.String.Input(
                    "gammas", default="0, 0.3, 0.6", tooltip="Rows: values of gamma between commas, 0 to 1."
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the cells, not of the reference. TCD LoRAs: 1, none, to 2.",
                ),
                _denoise(),
                io.Combo.Input(
                    "lora_name",
                    options=[NONE, *folder_paths.get_filename_list("loras")],
                    default=NONE,
                    tooltip="Applied to the model for the cells, as TCD LoRA Loader does; the reference is "
                    "sampled without it. none: the model as it is.",
                ),
                io.String.Input(
                    "lora_strengths",
                    default="1",
                    tooltip="Strengths of that LoRA between commas; each adds the rows anew.",
                ),
                io.Combo.Input(
                    "reference_sampler",
                    options=[NONE, *comfy.samplers.KSampler.SAMPLERS],
                    default=NONE,
                    tooltip="The teacher's own sampler, for a first column to compare with: distances are "
                    f"those to it. none: no such column, no distances, no recommendation. {RULE}",
                ),
                io.Combo.Input(
                    "reference_scheduler",
                    options=list(comfy.samplers.KSampler.SCHEDULERS),
                    default="normal",
                    tooltip="Of the reference.",
                ),
                io.Int.Input(
                    "reference_steps",
                    default=30,
                    min=1,
                    max=1000,
                    tooltip="Of the reference. More: nearer to where the teacher's path leads. 20 to 50.",
                ),
                io.Float.Input(
                    "reference_cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance of the reference: what the teacher needs, 5 to 8 for SD 1.5 and SDXL.",
                ),
                io.Model.Input(
                    "reference_model",
                    optional=True,
                    tooltip="The teacher, if the model has its LoRA already. Not connected: the model "
                    "without the LoRA chosen here.",
                ),
                advanced(
                    io.String.Input(
                        "orders",
                        default="1",
                        optional=True,
                        tooltip="Orders of the denoising step between commas: 1, 2 (two evaluations a step), "
                        "multistep. Each adds the rows anew.",
                    )
                ),
                _end(),
                _original_steps(),
                _noise_device(),
                advanced(
                    io.Int.Input(
                        "cell_size",
                        default=384,
                        min=64,
                        max=2048,
                        optional=True,
                        tooltip="Longest side of a cell on the sheet, in pixels. The pictures themselves "
                        "stay as they are.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "filename_prefix",
                        default="tcd_compare/grid",
                        optional=True,
                        tooltip="Of the sheet (.png) and the table (.csv) in the output folder.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The labelled sheet."),
                io.Image.Output(
                    display_name="images",
                    tooltip="All pictures: the reference's, if there is one, then those of the cells, row by "
                    "row.",
                ),
                io.String.Output(display_name="csv", tooltip="A line of figures for each cell."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, steps: str = "1", gammas: str = "0", orders: str = "1", lora_strengths: str = "1"
    ) -> bool | str:
        try:
            Plan.read(steps, gammas, orders, lora_strengths)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str = NONE, **_: Any) -> str:
        return lora.TCDLoraLoader.fingerprint_inputs(lora_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        vae: Any,
        seed: int,
        steps: str,
        gammas: str,
        cfg: float,
        denoise: float,
        lora_name: str,
        lora_strengths: str,
        reference_sampler: str,
        reference_scheduler: str,
        reference_steps: int,
        reference_cfg: float,
        reference_model: Any = None,
        orders: str = "1",
        end: str = "official",
        original_steps: int = 50,
        noise_device: str = "cpu",
        cell_size: int = 384,
        filename_prefix: str = "tcd_compare/grid",
    ) -> io.NodeOutput:
        plan = Plan.read(steps, gammas, orders, lora_strengths)
        if lora_name == NONE and plan.strengths != [1.0]:
            raise ValueError(
                f"lora_strengths: {lora_strengths!r}, but lora_name is none; choose a LoRA, or write 1"
            )
        sigmas = {k: _sigmas(model, k, denoise, original_steps) for k in plan.steps}
        # Before the work: it refuses a prefix that leads out of the output folder.
        folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
        shared = {"denoise": denoise, "seed": seed}
        common = {**shared, "cfg": cfg, "sampler": "tcd", "lora": "" if lora_name == NONE else lora_name}
        about: dict[str, Any] | None = None
        if reference_sampler != NONE:
            names = {"sampler": reference_sampler, "scheduler": reference_scheduler}
            about = {**shared, **names, "steps": reference_steps, "cfg": reference_cfg, "lora": ""}
        found, clock, notes = Comparison(plan, common, about, cell_size), Clock(), list[str]()
        if about is not None and lora_name == NONE and reference_model is None:
            notes.append(
                "the reference is sampled with the model as it is: if that has its LoRA already, connect the "
                "model without it to reference_model"
            )
        inputs = (positive, negative, latent_image)

        def tasks() -> Iterator[Task]:
            if about is not None:
                teacher = clock.on(model if reference_model is None else reference_model)
                yield Task(None, about["steps"], partial(sample_reference, teacher, *inputs, about))
            for strength in plan.strengths:
                student, lines = with_lora(model, lora_name, strength)
                notes.extend(line for line in lines if line not in notes)
                student = clock.on(student)
                for cell in (c for c in plan.cells if c.strength == strength):
                    options = _settings(cell.gamma, cell.gamma, cell.order, end)
                    yield Task(cell, cell.steps, partial(
                        sample_cell, student, seed, cfg, *inputs, sigmas[cell.steps],
                        {**options, "noise_device": noise_device},
                    ))  # fmt: skip

        try:
            fill(found, tasks(), clock, vae, sum(c.steps for c in plan.cells) + reference_steps * bool(about))
        except BaseException:
            if found.pictures:
                _, shown = save(found, filename_prefix, cls)
                _tell(cls, ["stopped", *found.words(), *notes], shown)
            raise
        image, shown = save(found, filename_prefix, cls)
        text = _tell(cls, [*found.words(), *notes], shown)
        pictures = torch.cat([found.pictures[c] for c in (None, *plan.cells) if c in found.pictures])
        return io.NodeOutput(image, pictures, found.csv(), ui={**shown.as_dict(), "text": (text,)})


def _tell(node: Any, lines: list[str], shown: ui.SavedImages) -> str:
    """Shows the lines on the node and returns them as a text."""
    (result,) = shown.results
    name = Path(result.subfolder, result.filename)
    text = "\n".join([*lines, f"saved in the output folder: {name}, {name.with_suffix('.csv').name}"])
    lora.show(text, node.hidden.unique_id if node.hidden else None)
    return text


NODES: list[type[io.ComfyNode]] = [TCDCompareGrid]
