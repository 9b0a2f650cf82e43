"""The judge: a small network that names what is in a picture, trained on the same data as the teacher.

Its answers measure whether a sample obeys its prompt; its features are the space of the Fréchet distance.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.checkpoint import load_tensors, save_tensors
from .avatars import SLOTS, draw_details, draw_labels, drawings
from .vae import WEIGHTS

CLASSIFIER = WEIGHTS / "classifier.safetensors"
FEATURES = 128
# What no prompt says is judged too: a feature space that ignored it could not see a missing variety.
UNSAID = ("hair", "clothing", "eyes", "mouth", "glasses", "beard", "hat", "accessories")


class Classifier(nn.Module):
    """`forward(images uint8 [B, 16, 16, 3]) -> (features [B, 128], logits: slot values, then unsaid
    drawings)`.
    """

    def __init__(self) -> None:
        super().__init__()

        def conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.SiLU())

        self.body = nn.Sequential(
            conv(3, 32),
            conv(32, 48),
            conv(48, 64, 2),
            conv(64, 96),
            conv(96, 96, 2),
            nn.Flatten(),
            nn.Linear(96 * 16, FEATURES),
        )
        self.sizes = [len(slot.odds) for slot in SLOTS] + [drawings(g) + 1 for g in UNSAID]
        self.heads = nn.ModuleList(nn.Linear(FEATURES, n) for n in self.sizes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        features: Tensor = self.body(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0)
        return features, [head(F.silu(features)) for head in self.heads]

    @torch.no_grad()
    def judge(self, images: Tensor, batch: int = 1000) -> tuple[Tensor, Tensor]:
        """Features `[B, 128]` in float64, and the slot values it sees `[B, 9]`, numbered as in prompts."""
        features: list[Tensor] = []
        values: list[Tensor] = []
        for part in images.split(batch):
            f, logits = self(part)
            features.append(f.double())
            values.append(torch.stack([one.argmax(1) + 1 for one in logits[: len(SLOTS)]], dim=1))
        return torch.cat(features), torch.cat(values)

    @classmethod
    def load(cls, path: Path = CLASSIFIER) -> Classifier:
        """The shipped classifier."""
        model = cls()
        model.load_state_dict({k: v.float() for k, v in load_tensors(path)[0].items()})
        return model.eval().requires_grad_(False)


def train_classifier(out: Path, *, steps: int = 2500, batch: int = 128, seed: int = 0) -> dict[str, float]:
    """Train on freshly drawn pictures, slightly noised so that small defects do not decide; returns held-out
    accuracies.
    """
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    pool, truth = _labelled(seed, 1, 1)
    for step in range(steps):
        if step % 250 == 0:
            pool, truth = _labelled(seed, 16_384, 2 + step)
        rng = np.random.default_rng([seed, 5, step])
        pick = rng.integers(len(pool), size=batch)
        spread = 12.0 * rng.random((batch, 1, 1, 1)).astype(np.float32)
        noise = rng.standard_normal((batch, *pool.shape[1:]), np.float32) * spread
        _, logits = model(pool[pick].float() + torch.from_numpy(noise))
        loss = torch.stack([F.cross_entropy(a, truth[pick, i]) for i, a in enumerate(logits)]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    images, answers = _labelled(seed, 5000, 1_000_003)
    with torch.no_grad():
        _, logits = model(images)
    names = [s.name for s in SLOTS] + [f"{g} drawing" for g in UNSAID]
    accuracy = {
        name: (a.argmax(1) == answers[:, i]).float().mean().item()
        for i, (name, a) in enumerate(zip(names, logits, strict=True))
    }
    metadata = {"steps": str(steps), "batch": str(batch), "seed": str(seed)}
    save_tensors(out, {k: v.half() for k, v in model.state_dict().items()}, metadata)
    return accuracy


def _labelled(seed: int, count: int, stretch: int) -> tuple[Tensor, Tensor]:
    """Pictures with the index of each answer: slot values from 0, then drawings, "none" last."""
    rng = np.random.default_rng([seed, 4, stretch])
    labels = draw_labels(count, rng)
    images, variants = draw_details(labels, rng)
    unsaid = [np.where(variants[g] < 0, drawings(g), variants[g]) for g in UNSAID]
    return torch.from_numpy(images), torch.from_numpy(
        np.concatenate([labels - 1, np.stack(unsaid, 1)], axis=1)
    )
