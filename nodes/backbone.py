"""A ComfyUI MODEL as what the trainer needs: its network, its schedule, one evaluation of a batch.

The network is called through the host's `apply_model`, never through a guider, which runs every conditioning
of a batch on the whole batch. Losses are in the state of the paper: VP for EPS and V models, flow for CONST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from ..samplers import (
    DiscreteSchedule,
    FlowSchedule,
    Level,
    Point,
    Predict,
    Schedule,
    placed,
    to_x0_eps,
)
from ..training.backbone import Cond
from .host import _table, trajectory
from .prompts import CONSTANTS, ROLE, Group, grouped, stack
from .ready import Aside

LOWEST = 1e-4
"""Of a flow model's sigma: at 0 a network says nothing of the noise."""
PER_PROMPT = ("control", "gligen", "area", "mask", "hooks", "start_percent", "end_percent")
"""What a CONDITIONING may hold that is not the prompt's own: it would be lost, so it is refused."""


def schedule_of(model_sampling: Any) -> Schedule:
    """The path on which the loss is taken. ValueError for a model that the method cannot serve."""
    ms = model_sampling
    trajectory(ms)  # refuses
    if isinstance(ms, comfy.model_sampling.CONST):
        half = float(ms.sigma(torch.tensor(0.5 * getattr(ms, "multiplier", 1.0))))
        return FlowSchedule(half / (1 - half))
    table = _table(ms)
    if len(table) != 1000:
        raise ValueError(
            f"this model's schedule has {len(table)} noise levels; distillation needs the 1000 timesteps of "
            "SD 1.5, SD 2.x and SDXL, or a flow model"
        )
    return DiscreteSchedule.from_sigmas(table)


class HostBackbone:
    """`training.backbone.Backbone` of a loaded MODEL. `latent_shape [C, H, W]` as the host has latents,
    `aside` as `ready` gives it.
    """

    def __init__(
        self,
        patcher: Any,
        latent_shape: Sequence[int],
        decode: Callable[[Tensor], Tensor],
        aside: Aside = nullcontext,
    ) -> None:
        self.patcher, self.model = patcher, patcher.model
        if hasattr(self.network, "clear_kv_cache"):
            raise ValueError(
                f"{type(self.network).__name__} keeps what it computed of a prompt for later calls, which a "
                "LoRA in training would have changed: this model can be sampled, not distilled"
            )
        self.latent_shape = tuple(latent_shape)
        self.schedule = schedule_of(patcher.get_model_object("model_sampling"))
        self.flow = isinstance(self.schedule, FlowSchedule)
        self._decode, self._aside = decode, aside
        self.constants: list[dict[str, Any]] = []

    @property
    def network(self) -> nn.Module:
        return self.model.diffusion_model

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    def predictor(self, cond: Cond) -> Predict:
        """One evaluation of every row; raises the host's interrupt, so that a cancel is never a step late.

        Prompts of unlike shapes or constants are evaluated one group after the other.
        """
        groups = grouped(cond)
        calls = [self._call(group) for group in groups]
        order = torch.cat([group.rows for group in groups]).argsort()

        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            at = self._seen(now)
            alpha, sigma = at.level.broadcast(x)
            # EPS and V models live in x0 + sigma eps: divided by alpha; flow models in our own state.
            state, level = (x, sigma) if self.flow else (x / alpha, sigma / alpha)
            state, sigmas = state.float(), level.flatten().expand(len(x)).float()
            if len(calls) == 1:
                x0 = calls[0](state, sigmas)
            else:
                rows = [placed(group.rows, x.device) for group in groups]
                parts = [call(state[r], sigmas[r]) for call, r in zip(calls, rows, strict=True)]
                x0 = torch.cat(parts)[placed(order, x.device)]
            return to_x0_eps("sample", x0, x, at.level)

        return predict

    def _call(self, group: Group) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what evaluates states `[B, ...]` at sigmas `[B]` under prompts of one shape: their x0."""
        given = dict(group.cond)
        options = self._options(given.pop(ROLE))
        if CONSTANTS in given:
            given = {**given, **self.constants[int(given.pop(CONSTANTS)[0])]}

        def call(state: Tensor, sigmas: Tensor) -> Tensor:
            options["sigmas"], options["sample_sigmas"] = sigmas, sampling_of(sigmas)
            return self._apply(state, sigmas, options, given)

        return call

    def _apply(self, x: Tensor, sigmas: Tensor, options: dict[str, Any], conds: dict[str, Any]) -> Tensor:
        """The host's own last call of a sampling, with what other nodes put around it."""
        conds = {**conds, "transformer_options": options}
        around = self.patcher.model_options.get("model_function_wrapper")
        if around is None:
            return self.model.apply_model(x, sigmas, **conds)
        kinds = options["cond_or_uncond"]
        given = {"input": x, "timestep": sigmas, "c": conds, "cond_or_uncond": kinds}
        return around(self.model.apply_model, given)

    def decode(self, latents: Tensor) -> Tensor:
        """uint8 pictures `[B, H, W, 3]` of latents in the model's own scale."""
        with self._aside():
            return self._decode(self.model.process_latent_out(latents.float()))

    def encode(self, conditioning: Sequence[Any], uncond: bool = False) -> dict[str, Tensor]:
        """Return a batch of prompts from a CONDITIONING (one entry each), encoded as the host does for this
        model.

        Raises ValueError that names what an entry holds that a distillation cannot keep.
        """
        noise = torch.zeros(1, *self.latent_shape, device=self.device)
        role = "negative" if uncond else "positive"
        rows: list[dict[str, Tensor]] = []
        for i, entry in enumerate(conditioning):
            lost = [name for name in PER_PROMPT if entry[1].get(name) is not None]
            if lost:
                raise ValueError(
                    f"{role} prompt {i + 1} carries {', '.join(lost)}: a distillation takes plain prompts; "
                    "connect the text encoder's CONDITIONING directly"
                )
            conds = comfy.sampler_helpers.convert_cond([entry])
            conds = comfy.samplers.encode_model_conds(
                self.model.extra_conds, conds, noise, self.device, role, latent_image=noise, seed=0
            )
            rows.append(self._tensors(conds[0]["model_conds"]))
        for row in rows:
            row[ROLE] = torch.full((1,), float(uncond))
        return stack(rows)

    def _tensors(self, conds: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of one prompt, and the number of its constants."""
        found: dict[str, Tensor] = {}
        constants: dict[str, Any] = {}
        for name, cond in conds.items():
            value = cond.process_cond(batch_size=1, area=None).cond
            if isinstance(value, Tensor):
                # Conditionings are made in inference mode: a copy can take part in autograd.
                found[name] = value.clone().to(self.device)
            elif isinstance(cond, comfy.conds.CONDConstant):
                constants[name] = value
            else:
                raise ValueError(
                    f"{name} of this model's conditioning is a {type(value).__name__}, which a distillation "
                    "cannot cut into batches; use a conditioning without it"
                )
        if constants:
            if constants not in self.constants:
                self.constants.append(constants)
            found[CONSTANTS] = torch.tensor([self.constants.index(constants)])
        return found

    def _seen(self, now: Point) -> Point:
        if not self.flow:
            return now
        sigma = now.level.sigma.clamp(min=LOWEST)
        return Point(sigma, Level(1 - sigma, sigma))

    def _options(self, role: Tensor) -> dict[str, Any]:
        """What attention patches (IP-Adapter and others on the MODEL) are told when the host samples."""
        given = self.patcher.model_options.get("transformer_options", {})
        merge = comfy.patcher_extension.merge_nested_dicts
        own = {"wrappers": self.patcher.wrappers, "callbacks": self.patcher.callbacks}
        options = merge(own, given)
        kinds = [int(k) for k in torch.unique_consecutive(role)]
        return {**options, "cond_or_uncond": kinds, "uuids": [None] * len(kinds)}


def sampling_of(sigmas: Tensor) -> Tensor:
    """Return the sigmas of a sampling that would come by those of a batch: from the highest down, then 0.

    The host's networks and other nodes look up the sigma of a call among those of its sampling; a training
    has none. Equal ones are kept, since dropping them would wait for the device.
    """
    return torch.cat([sigmas.sort(descending=True).values, sigmas.new_zeros(1)])
