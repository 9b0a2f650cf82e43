"""The embedded network as a flow model: the same knowledge told by velocities, without any training.

A state of a flow path, `(1 - sigma) x0 + sigma eps`, is one of the variance-preserving path that the network
knows but for its size: at equal ratio of noise to signal, divided by `sqrt((1 - sigma)^2 + sigma^2)`.
"""

from __future__ import annotations

from torch import Tensor

from ..samplers import (
    FlowSchedule,
    Point,
    Predict,
    flow_sigmas,
    from_x0_eps,
    placed,
    to_x0_eps,
)
from ..training.backbone import Cond
from .model import CONFIG, PREDICTION, EmbeddedModel
from .unet import UNetConfig


class FlowModel(EmbeddedModel):
    """Sampled and distilled as SD3 is; states beyond those that the network knows as its last."""

    def __init__(self, config: UNetConfig = CONFIG) -> None:
        super().__init__(config)
        self.known = self.schedule
        self.schedule = FlowSchedule()

    def times(self, steps: int) -> list[float]:
        return flow_sigmas(steps)

    def predictor(self, cond: Cond) -> Predict:
        """The network by its velocity `eps - x0`."""

        def predict(x: Tensor, now: Point, target: Point) -> tuple[Tensor, Tensor]:
            alpha, sigma = now.level.scales(x)
            state, at = x / (alpha**2 + sigma**2) ** 0.5, self.known.at_lam(now.level.lam)
            t = placed(at.t.float(), x.device).expand(len(x))
            out = self.unet(state, t, cond["context"], cond["pooled"])
            velocity = from_x0_eps("flow", *to_x0_eps(PREDICTION, out, state, at.level), at.level)
            return to_x0_eps("flow", velocity, x, now.level)

        return predict
