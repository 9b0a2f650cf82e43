"""The parts of `nodes` that compute, without ComfyUI: small stand-ins for the few host names they use."""

from __future__ import annotations

import sys
from collections.abc import Generator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

NODES = Path(__file__).resolve().parents[2] / "nodes"


def _module(name: str, **names: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(names)
    return module


def _class(name: str, *bases: type) -> type:
    return type(name, bases, {})


def stand_ins() -> dict[str, ModuleType]:
    class SchedulerHandler(NamedTuple):
        handler: Any
        use_ms: bool = True

    samplers, schedulers = ["euler"], ["simple"]
    eps, const = _class("EPS"), _class("CONST")
    ms = _module(
        "comfy.model_sampling",
        EPS=eps,
        V_PREDICTION=_class("V_PREDICTION", eps),
        IMG_TO_IMG=_class("IMG_TO_IMG", eps),
        CONST=const,
        IMG_TO_IMG_FLOW=_class("IMG_TO_IMG_FLOW", const),
        COSMOS_RFLOW=_class("COSMOS_RFLOW"),
        ModelSamplingDiscrete=_class("ModelSamplingDiscrete"),
    )
    k_diffusion = _module("comfy.k_diffusion.sampling")
    host_samplers = _module(
        "comfy.samplers",
        SAMPLER_NAMES=samplers,
        SCHEDULER_NAMES=schedulers,
        SCHEDULER_HANDLERS={"simple": SchedulerHandler(None)},
        SchedulerHandler=SchedulerHandler,
        KSampler=type("KSampler", (), {"SAMPLERS": samplers, "SCHEDULERS": schedulers}),
    )
    package = _module("comfy.k_diffusion", sampling=k_diffusion)
    comfy = _module("comfy", model_sampling=ms, samplers=host_samplers, k_diffusion=package)
    return {m.__name__: m for m in (comfy, ms, host_samplers, package, k_diffusion)}


class Nodes(NamedTuple):
    host: Any
    tcd_sss: Any
    samplers: Any  # the host's
    k_diffusion: Any

    def model_sampling(self, kind: str = "EPS", discrete: bool = True, zsnr: bool = False) -> Any:
        """SD 1.5's schedule, as a host's model has it."""
        known = sys.modules["comfy.model_sampling"]
        if kind == "CONST":
            ms = type("Sampling", (known.CONST,), {})()
            ms.multiplier, ms.sigma = 1000.0, lambda t: 3 * t / 1000 / (1 + 2 * t / 1000)
            return ms
        bases = (known.ModelSamplingDiscrete,) if discrete else ()
        ms = type("Sampling", (*bases, getattr(known, kind)), {})()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, 0)
        if zsnr:
            root = (abar.sqrt() - abar[-1].sqrt()) / (1 - abar[-1].sqrt() / abar[0].sqrt())
            abar = root**2
            abar[-1] = 4.8973451890853435e-08
        ms.sigmas, ms.num_timesteps = ((1 - abar) / abar).sqrt().float(), 1000
        return ms


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Generator[Nodes]:
    """`nodes.host` and `nodes.tcd_sss`; the package's own `__init__`, which needs the host, is not run."""
    for name in [name for name in sys.modules if name.startswith("comfyui_tcd.nodes")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in stand_ins().items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = ModuleSpec("comfyui_tcd.nodes", None, is_package=True)
    spec.submodule_search_locations = [str(NODES)]
    monkeypatch.setitem(sys.modules, spec.name, module_from_spec(spec))
    host, tcd_sss = (import_module(f"comfyui_tcd.nodes.{name}") for name in ("host", "tcd_sss"))
    yield Nodes(host, tcd_sss, sys.modules["comfy.samplers"], sys.modules["comfy.k_diffusion.sampling"])
    for name in ("host", "tcd_sss"):
        sys.modules.pop(f"comfyui_tcd.nodes.{name}", None)
