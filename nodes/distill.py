"""TCD Distill: a few-step LoRA of the MODEL that is connected, from prompts alone or from a data set."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..training.backbone import fingerprint
from ..training.checkpoint import check_folder, load_tensors, save_tensors, sweep
from ..training.config import PRESETS, DistillConfig
from ..training.distill import LORA
from ..training.inputs import check_inputs, inputs_of
from ..training.lora import load_lora
from ..training.report import read_log
from ..training.shards import shard_of, write_shard
from ..training.text import lines_of, read_prompts
from .api import schema
from .backbone import HostBackbone
from .dataset import Dataset, shape_of, shards_of
from .lora import apply, read, show
from .progress import Monitor
from .prompts import alike
from .ready import ready
from .runs import inside_input, loras_folder, run_folder
from .sampler import initial

AUTO = "auto"
KINDS = {"Embedded": "embedded", "SDXL": "sdxl", "SSD1B": "sdxl", "Segmind_Vega": "sdxl"}
"""ComfyUI's class of a model to the row of settings; others take sd15's."""
DATA = "data.safetensors"


def prompts_of(clip: Any, text: str, file: str, conditioning: Any, dataset: Any = None) -> list[Any]:
    """The prompts as one CONDITIONING: of `conditioning`, of a text, of a text file, a prompt a line."""
    prompts = lines_of(text)
    if file:
        prompts += read_prompts(inside_input(file, "prompts_file"), f"prompts_file {file}")
    if not prompts and not conditioning and dataset is None:
        raise ValueError("no prompts: write one a line, name a prompts_file, or connect a CONDITIONING")
    if prompts and clip is None:
        raise ValueError("clip is not connected: it encodes the prompts; or connect a CONDITIONING instead")
    return [*(conditioning or []), *(entry for prompt in prompts for entry in encode(clip, prompt))]


def encode(clip: Any, prompt: str) -> Any:
    """A CONDITIONING, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def settings_of(preset: str, model: Any, text: str, **given: Any) -> DistillConfig:
    """The settings of a run: the preset's, over them the text, over them what is given and not 0."""
    if preset == AUTO:
        preset = KINDS.get(type(model.model.model_config).__name__, "sd15")
    values = {name: value for name, value in given.items() if value not in (0, None)}
    for name in ("w_min", "w_max"):  # guidance comes as cfg
        if name in values:
            values[name] = float(values[name]) - 1.0
    if "w_min" in values and "w_max" not in values:
        values["w_max"] = max(values["w_min"], PRESETS[preset]["w_max"])
    if "rank" in values:
        values["alpha"] = float(values["rank"])
    return DistillConfig.resolve(preset, text=text, **values)


def latent_shape(model: Any, width: int, height: int, latent: Any, dataset: Any) -> tuple[int, ...]:
    """Return the shape `[C, H, W]` or `[C, T, H, W]` of one sample: of the data set, of the connected LATENT
    as the host's samplers make it fit the model, or of a picture of this size.
    """
    if dataset is not None:
        return shape_of(dataset, model.get_model_object("latent_format"))
    if latent is not None:
        return tuple(initial(model, latent, seed=0)[0].shape[1:])
    form = model.get_model_object("latent_format")
    ratio = int(getattr(form, "spacial_downscale_ratio", 8))
    if width % ratio or height % ratio:
        raise ValueError(f"width {width}, height {height}: multiples of {ratio} are needed for this model")
    frames = [1] * (getattr(form, "latent_dimensions", 2) - 2)
    return (form.latent_channels, *frames, height // ratio, width // ratio)


def decoder(form: Any, vae: Any) -> Callable[[Tensor], Tensor]:
    """Return what makes uint8 pictures `[B, H, W, 3]` of latents: the VAE, else the linear guess that the
    host previews with, or three channels.
    """

    def by_vae(latents: Tensor) -> Tensor:
        with torch.inference_mode():
            pictures = vae.decode(latents.to(torch.float32))
        pictures = pictures.reshape(-1, *pictures.shape[-3:])[..., :3]
        return (pictures.clamp(0, 1) * 255).round().to(torch.uint8).cpu().clone()

    def by_colours(latents: Tensor) -> Tensor:
        flat = form.process_in(latents).float().cpu()
        flat = flat[:, :, 0] if flat.ndim == 5 else flat
        # Flux 2's latents hold four pixels in their channels, and the factors are for one
        flat = (getattr(form, "latent_rgb_factors_reshape", None) or (lambda x: x))(flat)
        factors = form.latent_rgb_factors
        if factors is None:
            rgb = flat[:, :3] / flat[:, :3].abs().amax().clamp(min=1e-6)
        else:
            rgb = torch.einsum("bchw,cr->brhw", flat, torch.tensor(factors, dtype=torch.float32))
            bias = getattr(form, "latent_rgb_factors_bias", None)
            rgb = rgb + torch.tensor(bias or [0.0] * 3)[:, None, None]
        return ((rgb.movedim(1, -1) + 1) * 127.5).clamp(0, 255).to(torch.uint8)

    return by_colours if vae is None else by_vae


def distil(
    model: Any,
    config: DistillConfig,
    prompts: Sequence[Any],
    negative: Sequence[Any],
    shape: Sequence[int],
    folder: Path,
    monitor: Monitor,
    *,
    vae: Any = None,
    dataset: Mapping[str, Any] | None = None,
) -> None:
    """Run (or go on with, or find finished) the distillation of `folder`; leaves the MODEL as it was."""
    from ..training.run import train  # peft, and what it brings

    with ready(model) as (patcher, aside, remarks):
        form = patcher.get_model_object("latent_format")
        backbone = HostBackbone(patcher, shape, decoder(form, vae), aside)
        conds = [backbone.encode(prompts or captions(dataset)), backbone.encode(negative[:1], uncond=True)]
        if dataset is not None:
            conds.append(backbone.encode(captions(dataset)))
        cond, uncond, *data = alike(*conds)
        teacher = fingerprint(backbone.network)
        shards, latents = None, None
        if dataset is not None:
            raw = torch.cat([latents for latents, _ in shards_of(dataset)])
            latents = patcher.model.process_latent_in(raw)
        held = None if latents is None else shard_of(latents, data[0])
        check_inputs(folder, inputs_of(teacher, backbone.schedule, shape, cond, uncond, held))
        if latents is not None:
            shards = [folder / DATA]
            write_shard(folder / DATA, latents, data[0])
        kind = type(model.model.model_config).__name__
        metadata = {"tcd.teacher": kind, "tcd.teacher_hash": teacher}

        train(
            config, backbone, cond, uncond, folder, shards=shards, on_step=monitor, quiet=True,
            metadata=metadata, free=free_memory,
            on_plan=lambda plan: monitor.planned("; ".join([plan, *remarks])), on_pairs=monitor.drawing,
        )  # fmt: skip


def free_memory(device: torch.device) -> int:
    """Bytes that the host would let a run take."""
    gc.collect()  # an error that is over may hold a graph
    comfy.model_management.soft_empty_cache()
    return int(comfy.model_management.get_free_memory(device))


def captions(dataset: Mapping[str, Any] | None) -> list[Any]:
    """Of a data set, as CONDITIONING entries."""
    return [] if dataset is None else [entry for _, entries in shards_of(dataset) for entry in entries]


def picture(folder: Path) -> Tensor:
    """The last validation picture as an IMAGE `[1, H, W, 3]`; black where there is none."""
    from PIL import Image

    found = sorted(folder.glob("step-*.png"))
    if not found:
        return torch.zeros(1, 64, 64, 3)
    with Image.open(found[-1]) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).astype(np.float32) / 255)[None]


def text_files() -> list[str]:
    """The .txt files of the input folder, after "none"."""
    inside = Path(folder_paths.get_input_directory())
    return ["none", *sorted(p.name for p in inside.glob("*.txt"))] if inside.is_dir() else ["none"]


class TCDDistill(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TCD_Distill",
            display_name="TCD Distill",
            category="TCD/training",
            description="Distils a few-step LoRA of the model that is connected, with its LoRAs and patches: "
            "from prompts alone, or from a data set. Cancel stops it and keeps what it has; queued again, it "
            "goes on. Validation pictures: the same prompts at 1, 2, 4 and 8 steps, and the teacher.",
            search_aliases=[
                "tcd",
                "train",
                "lora",
                "distillation",
                "lcm",
                "few step",
                "turbo",
                "make a lora",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The teacher, with all that is on it."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One a line, like those the LoRA will be used with. Many and varied ones are "
                    "better: some hundreds serve well.",
                ),
                io.String.Input(
                    "run_name",
                    default="my-tcd-lora",
                    tooltip="Of the folder output/tcd_training/NAME and of the LoRA in output/loras. "
                    "The same name and settings go on with a stopped run. With more steps, a run whose decay "
                    "is constant trains on.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Optimizer steps. Fewer: sooner, but blurred at 1 and 2 steps. 0: the preset's.",
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="Samples in memory at once; more takes more memory. 0: the preset's.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Of the LoRA: size of the file, and what it can learn. 0: the preset's.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-7,
                    round=False,
                    tooltip="Peak of AdamW. Too high: pictures decay; too low: blurred. 0: the preset's.",
                ),
                # Not one Range: a workflow's saved values of the inputs after it would be read one place off.
                io.Float.Input(
                    "cfg_min",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Least guidance of the teacher that the LoRA takes in (1 + w of the paper). "
                    "1 to 1: none, for models that have guidance in them. 0: the preset's.",
                ),
                io.Float.Input(
                    "cfg_max",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Greatest guidance. Equal to cfg_min: always that one. 0: the preset's.",
                ),
                io.Combo.Input(
                    "s_range",
                    options=["uniform", "zero", "phases", "near"],
                    default="uniform",
                    tooltip="Where jumps of the trajectory end. uniform: anywhere (TCD). zero: at the "
                    "picture (LCM). phases: at the ends of four segments (PCM). near: where 4 steps ask.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *PRESETS],
                    default=AUTO,
                    tooltip="Row of settings that 0 stands for. auto: by the kind of model.",
                ),
                # Not "seed": that the page draws anew after each run, which could then not go on.
                io.Int.Input(
                    "run_seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    tooltip="Decides every random choice of the run; another number makes it another run.",
                ),
                io.Int.Input(
                    "width", default=1024, min=8, max=8192, step=8, tooltip="Of the pictures, in pixels."
                ),
                io.Int.Input(
                    "height", default=1024, min=8, max=8192, step=8, tooltip="Of the pictures, in pixels."
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompts."),
                io.Combo.Input(
                    "prompts_file",
                    options=text_files(),
                    default="none",
                    optional=True,
                    tooltip="A .txt file of ComfyUI's input folder, a prompt a line, added to the prompts. "
                    "UTF-8, or UTF-16 as Windows' programs write it.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Encoded prompts (Conditioning Combine), instead of or besides text.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What guidance leads away from. Default: the empty text.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Gives the size of the pictures, instead of width, height.",
                ),
                Dataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="Real pictures from TCD Dataset or TCD Dataset from Latents, instead of the "
                    "teacher's.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the validation pictures; without it they are rough.",
                ),
                io.String.Input(
                    "settings",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Any other setting, as TOML lines: distance = 'l2'. What is set above wins. "
                    "student, target, skip, reuse, targets, decay, average, validate_every, save_every, ...",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="The model with the LoRA on, to sample with."),
                io.LoraModel.Output(
                    display_name="LORA_MODEL", tooltip="For Save LoRA, LoRA Model Loader and TCD Save LoRA."
                ),
                io.String.Output(display_name="path", tooltip="Of the saved LoRA."),
                io.Image.Output(display_name="validation", tooltip="1, 2, 4, 8 steps and the teacher."),
                io.LossMap.Output(display_name="LOSS_MAP", tooltip="For Plot Loss Graph."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        prompts: str,
        run_name: str,
        steps: int,
        batch: int,
        rank: int,
        learning_rate: float,
        cfg_min: float,
        cfg_max: float,
        s_range: str,
        preset: str,
        run_seed: int,
        width: int,
        height: int,
        clip: Any = None,
        prompts_file: str = "none",
        conditioning: Any = None,
        negative: Any = None,
        latent: Any = None,
        dataset: Any = None,
        vae: Any = None,
        settings: str = "",
    ) -> io.NodeOutput:
        folder = run_folder(run_name)
        check_folder(folder, "run_name")
        config = settings_of(
            preset, model, settings, steps=steps, batch=batch, rank=rank, learning_rate=learning_rate,
            w_min=cfg_min, w_max=cfg_max, s_range=s_range, seed=run_seed,
        )  # fmt: skip
        named = "" if prompts_file == "none" else prompts_file
        positive = prompts_of(clip, prompts, named, conditioning, dataset)
        if negative is None:
            if clip is None:
                raise ValueError(
                    "negative is not connected, and no clip to encode the empty text: connect one"
                )
            negative = encode(clip, "")
        shape = latent_shape(model, width, height, latent, dataset)
        node = cls.hidden.unique_id if cls.hidden else None
        with Monitor(node, run_name, folder, config) as monitor:
            distil(model, config, positive, negative, shape, folder, monitor, vae=vae, dataset=dataset)
            path = publish(folder, run_name)
            monitor.message = f"saved as loras/{path.name}"
        tensors = LoraModel(*load_lora(path))
        student, _, lines = apply(model, None, read(str(path)), 1.0)
        show("\n".join([monitor.summary(), *lines]), node)
        losses = [torch.tensor(r["loss"]) for r in read_log(folder / "log.jsonl")]
        shown = {"images": monitor.images[-1:]}
        return io.NodeOutput(student, tensors, str(path), picture(folder), {"loss": losses}, ui=shown)


class LoraModel(dict[str, Tensor]):
    """The host's LORA_MODEL, which is a dict of tensors, with the file's metadata beside it."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def publish(folder: Path, name: str) -> Path:
    """A copy of the run's LoRA in output/loras, which every list of LoRAs shows; whole or not at all."""
    path = loras_folder() / f"{name}.safetensors"
    tensors, metadata = load_tensors(folder / LORA)
    sweep(path.parent, path.name)
    save_tensors(path, tensors, metadata)
    return path


NODES: list[type[io.ComfyNode]] = [TCDDistill]
