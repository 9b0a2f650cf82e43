"""Runs in ComfyUI's interpreter: what core's sampling nodes do beside ours, and what core can do to a model.

    python core_inside.py COMFYUI PACK

Asked and answered as by comfyui_worker.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from hashlib import sha256
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from comfyui_worker import main
from torch import Tensor


class Watched(dict[str, Any]):
    """A LATENT that remembers in `read` which entries were asked for, in its copies too."""

    def __init__(self, entries: dict[str, Any], read: set[str]) -> None:
        super().__init__(entries)
        self.read = read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def copy(self) -> Watched:
        return Watched(self, self.read)


def plain(value: Any) -> Any:
    """Describe a value so that two runs can be compared: contents where they say something, else the type."""
    import comfy.samplers

    if isinstance(value, Tensor):
        content = sha256(value.contiguous().numpy().tobytes()).hexdigest()
        return ["tensor", list(value.shape), str(value.dtype), content]
    if getattr(value, "is_nested", False):
        return ["nested", [plain(part) for part in value.unbind()]]
    if isinstance(value, comfy.samplers.KSAMPLER):
        return ["sampler", value.sampler_function.__name__, plain(value.inpaint_options)]
    if isinstance(value, comfy.samplers.CFGGuider):
        return ["guider", value.cfg, plain(value.original_conds)]
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


@contextmanager
def recorded() -> Generator[list[Any]]:
    """[name, arguments by name] of every call of the host's functions that a sampling node makes."""
    import comfy.sample
    import comfy.samplers
    import latent_preview

    calls: list[Any] = []
    places: list[tuple[Any, str]] = [
        *((comfy.sample, name) for name, f in vars(comfy.sample).items() if inspect.isfunction(f)),
        *((latent_preview, name) for name, f in vars(latent_preview).items() if inspect.isfunction(f)),
        (comfy.samplers, "sample"),
        (comfy.samplers.CFGGuider, "sample"),
    ]

    def watched(place: Any, name: str) -> Callable[..., Any]:
        function = getattr(place, name)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(function).bind(*args, **kwargs)
            given.apply_defaults()
            calls.append([f"{place.__name__}.{name}", plain(dict(given.arguments))])
            return function(*args, **kwargs)

        return call

    kept = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, watched(place, name))
    try:
        yield calls
    finally:
        for (place, name), function in zip(places, kept, strict=True):
            setattr(place, name, function)


def results(node: Any, **given: Any) -> list[Any]:
    """Run a node of either API."""
    if hasattr(node, "execute"):
        return list(node.execute(**given).args)
    return list(getattr(node(), node.FUNCTION)(**given))


def model_of(ratio: int, temporal: int) -> Any:
    """A model whose latents have `ratio` pixels a number, and `temporal` frames if that is not 0."""
    import comfy.latent_formats
    import comfyui_inside as inside

    ratios = {"spacial_downscale_ratio": ratio}
    if temporal:
        ratios |= {"latent_dimensions": 3, "temporal_downscale_ratio": temporal}
    model = inside.base("epsilon").clone()
    model.add_object_patch("latent_format", type("SD15", (comfy.latent_formats.SD15,), ratios)())
    return model


def handed_on(which: str, latent: dict[str, Any], ratio: int = 16, temporal: int = 0) -> dict[str, Any]:
    """Run the node `which` on a LATENT: its calls of the host, the entries it read, its results, the bar."""
    import comfy.samplers
    import comfy.utils
    import comfyui_inside as inside
    import nodes
    from comfy_extras import nodes_custom_sampler as custom

    model, read, bar = model_of(ratio, temporal), set[str](), list[Any]()
    texts = {"positive": inside.text(1), "negative": inside.text(2)}
    ours = inside.PACK["nodes.sampler"]
    sampler, sigmas = inside.sampler(), ours.TCDScheduler.execute(model, 3, 1.0).args[0]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*texts.values())
    guider.set_cfg(1.5)
    shared = {"model": model, "cfg": 1.5, **texts}
    by_name = {**shared, "seed": 7, "steps": 3, "denoise": 1.0}
    tcd = {"sampler_name": "tcd_sss", "scheduler": "tcd_grid"}
    euler = {"sampler_name": "euler", "scheduler": "normal"}
    about = {"steps": 3, "cfg": 1.5, "sampler": "euler", "scheduler": "normal", "denoise": 1.0, "seed": 7}
    runs: dict[str, Callable[[Any], list[Any]]] = {
        "TCD_KSampler": lambda x: results(ours.TCDKSampler, **by_name, gamma=0.3, latent_image=x),
        "KSampler": lambda x: results(nodes.KSampler, **by_name, **tcd, latent_image=x),
        "SamplerCustom": lambda x: results(
            custom.SamplerCustom, **shared, add_noise=True, noise_seed=7, sampler=sampler, sigmas=sigmas,
            latent_image=x,
        ),
        "SamplerCustomAdvanced": lambda x: results(
            custom.SamplerCustomAdvanced, noise=custom.Noise_RandomNoise(7), guider=guider, sampler=sampler,
            sigmas=sigmas, latent_image=x,
        ),
        "euler in KSampler": lambda x: results(nodes.KSampler, **by_name, **euler, latent_image=x),
        "TCD_CompareGrid": lambda x: [
            inside.PACK["nodes.compare_run"].sample_reference(
                model, *texts.values(), x, about, ours.Part(0, 3)
            )
        ],
    }  # fmt: skip
    update = comfy.utils.ProgressBar.update_absolute  # what the page gets of it depends on the time

    def seen(self: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        bar.append([value, total])
        update(self, value, total, preview)

    comfy.utils.ProgressBar.update_absolute = seen
    try:
        with recorded() as calls:
            found = runs[which](Watched(latent, read))
    finally:
        comfy.utils.ProgressBar.update_absolute = update
    return {"calls": calls, "read": sorted(read), "results": plain([dict(x) for x in found]), "bar": bar}


def handed_on_nested(which: str) -> dict[str, Any] | None:
    """As `handed_on`, with a LATENT of a picture and a film in one; None: the host has no such latents."""
    try:
        from comfy.nested_tensor import NestedTensor
    except ImportError:
        return None
    samples = NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 2, 8, 8)])
    return handed_on(which, {"samples": samples, "batch_index": [0]})


def _classes() -> list[type]:
    import comfy.model_sampling

    module = comfy.model_sampling
    return [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]


def predictions() -> dict[str, str]:
    """Why the pack refuses each of the host's kinds of prediction, "" where it does not."""
    import comfy.model_sampling
    import comfyui_inside as inside

    host, known, found = inside.PACK["nodes.host"], comfy.model_sampling, dict[str, str]()
    for kind in _classes():
        if not hasattr(kind, "calculate_denoised"):
            continue
        flow = issubclass(kind, known.CONST)
        base = known.ModelSamplingDiscreteFlow if flow else known.ModelSamplingDiscrete
        try:
            host.trajectory(type("Sampling", (base, kind), {})())
            found[kind.__name__] = ""
        except ValueError as error:
            found[kind.__name__] = str(error)
    return found


def schedules() -> list[str]:
    """The host's schedules of models."""
    return [c.__name__ for c in _classes() if issubclass(c, torch.nn.Module)]


def schedule(name: str) -> dict[str, Any]:
    """Sample with a schedule of the host; see `sampled`."""
    import comfy.model_sampling

    known, base = comfy.model_sampling, getattr(comfy.model_sampling, name)
    flow = float(base(SimpleNamespace(sampling_settings={})).sigma_max) <= 1
    kind = known.CONST if flow else known.COSMOS_RFLOW if "Cosmos" in name else known.EPS
    return sampled(type("Sampling", (base, kind), {})(SimpleNamespace(sampling_settings={})))


MODULES = ("nodes_model_advanced", "nodes_lt", "nodes_minimax_h3")
SAMPLING_NODES = ("ModelSampling", "MiniMaxH3SigmaShift", "ModelNoiseScale")


def sampling_nodes() -> list[Any]:
    """[module, class, inputs] of the host's nodes that change a model's sampling, for all that they offer."""
    from importlib import import_module
    from importlib.util import find_spec

    found: list[Any] = []
    for module in MODULES:
        if find_spec(f"comfy_extras.{module}") is None:
            continue
        for name, node in vars(import_module(f"comfy_extras.{module}")).items():
            if not name.startswith(SAMPLING_NODES) or not hasattr(node, "INPUT_TYPES"):
                continue
            inputs = node.INPUT_TYPES()["required"]
            offers = [[(key, x) for x in _offered(*given)] for key, given in inputs.items() if key != "model"]
            found += [[module, name, dict(chosen)] for chosen in product(*offers)]
    return found


def _offered(kind: Any, options: Any = None) -> list[Any]:
    options = options or {}
    if isinstance(kind, list) or "options" in options:
        return list(kind if isinstance(kind, list) else options["options"])
    if kind == "BOOLEAN":
        return [False, True]
    return [options["default"], 2 * options["default"]] if kind == "FLOAT" else [options["default"]]


def with_node(module: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Sample with what a node of the host makes of an epsilon model, or of a flow one; see `sampled`."""
    from importlib import import_module

    import comfyui_inside as inside

    node = getattr(import_module(f"comfy_extras.{module}"), name)
    base = inside.base("flow" if name == "ModelNoiseScale" else "epsilon")
    (model, *_) = results(node, model=base.clone(), **given)
    return sampled(model.get_model_object("model_sampling"))


class Known:
    """A model function whose x0 is known: `share` of the state's mean level, so that it is no constant."""

    def __init__(self, ms: Any, x0: float, share: float = 0.0) -> None:
        self.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=ms))
        self.x0, self.share = x0, share

    def __call__(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        return self.x0 + self.share * torch.tanh(x / (1 + sigma[0]))


def sampled(ms: Any, steps: int = 4) -> dict[str, Any]:
    """Run tcd_sss on tcd_grid with this model_sampling and networks that know the picture.

    "levels": the largest relative error of a state's deviation from that of the host's own noise_scaling;
    "end": how far the clean end is from the picture; "left": the deviation that the official end leaves where
    the picture is 0; "euler": the relative difference to the host's euler without noise.
    """
    import comfyui_inside as inside
    from comfy.k_diffusion import sampling as k_diffusion

    host, run = inside.PACK["nodes.host"], inside.PACK["nodes.tcd_sss"].sample_tcd_sss
    try:
        host.trajectory(ms)
    except ValueError as error:
        return {"refused": str(error)}
    sigmas = host.scheduler_handler(ms, steps)
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(3))

    def at(sigma: Tensor, x0: float) -> Tensor:
        return ms.noise_scaling(sigma.reshape(1), noise.clone(), torch.full_like(noise, x0))

    states: list[tuple[float, Tensor]] = []
    keep = lambda step: states.append((float(step["sigma"]), step["x"].clone()))  # noqa: E731
    given = {"extra_args": {"seed": 1}, "disable": True}
    one = run(Known(ms, 1.0), at(sigmas[0], 1.0), sigmas, **given, callback=keep, gamma=0.4, end="clean")
    levels = 0.0
    for sigma, x in states:
        expected = at(torch.tensor(sigma), 1.0)
        levels = max(levels, abs(float(x.std() / expected.std()) - 1))
        levels = max(levels, abs(float(x.mean() - expected.mean())) / max(float(expected.std()), 0.01))
    zero = run(Known(ms, 0.0), at(sigmas[0], 0.0), sigmas, **given, gamma=0.3, end="official")
    model, start = Known(ms, 0.5, 0.4), at(sigmas[0], 0.5)
    ours = run(model, start, sigmas, **given, gamma=0.0, end="clean")
    euler = k_diffusion.sample_euler(model, start, sigmas, **given)
    return {
        "sigmas": sigmas,
        "sigma_max": float(ms.sigma_max),
        "levels": levels,
        "end": float((one - 1).abs().max()),
        "left": float(zero.std()),
        "euler": float((ours - euler).norm() / euler.norm()),
    }


def reloaded() -> bool:
    """Reload k-diffusion's samplers, as RES4LYF does: whether ours is there still and samples by its name."""
    import importlib

    import comfy.k_diffusion.sampling
    import comfy.samplers
    import comfyui_inside as inside

    importlib.reload(comfy.k_diffusion.sampling)
    ours = inside.PACK["nodes.tcd_sss"].sample_tcd_sss
    return comfy.samplers.sampler_object("tcd_sss").sampler_function is ours


if __name__ == "__main__":
    main(globals())
