"""What is measured of a set of samples, and how sure it is.

None of these is a standard metric under its standard name: the features come from our own classifier of 16x16
avatars.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .avatars import Labels, draw_images, draw_labels
from .classifier import Classifier
from .vae import VAE

VISIBLE = 16  # grey levels of 255
REFERENCE = 10_000  # real pictures that samples are compared with


@dataclass(frozen=True)
class Gaussian:
    """Mean `[D]` and covariance `[D, D]` of features, float64."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        return cls(features.mean(0), features.T.cov())


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Frechet distance of two Gaussians, `|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))`. Biased upwards for few
    samples.
    """
    values, vectors = torch.linalg.eigh(b.cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ a.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)


def spread(a: Gaussian, b: Gaussian) -> float:
    """How far samples lie apart, in units of b's: root of the ratio of total variances."""
    return float((a.cov.trace() / b.cov.trace()).sqrt())


def frechet_interval(
    features: Tensor, real: Gaussian, draws: int = 100, seed: int = 0
) -> tuple[float, float, float]:
    """`(distance, low, high)`: 95% by bootstrap over the samples.

    A resample repeats samples, which raises the distance itself; only the spread of the resamples is used,
    around the estimate.
    """
    distance = frechet(Gaussian.of(features), real)
    generator = torch.Generator().manual_seed(seed)
    count = len(features)
    resamples = [
        frechet(Gaussian.of(features[torch.randint(count, (count,), generator=generator)]), real)
        for _ in range(draws)
    ]
    spread = torch.tensor(resamples) - sum(resamples) / draws
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975])).tolist()
    return distance, distance + low, distance + high


def complexity(images: Tensor) -> float:
    """Edges: percent of neighbouring pixels that differ visibly, by more than `VISIBLE` grey levels in a
    channel.

    Compressed size would be the usual proxy, but the autoencoder's last grey levels, which nobody sees,
    decide it.
    """
    x = images.short()
    down = (x[:, 1:] - x[:, :-1]).abs().amax(-1) > VISIBLE
    across = (x[:, :, 1:] - x[:, :, :-1]).abs().amax(-1) > VISIBLE
    return 100 * float(torch.cat([down.flatten(), across.flatten()]).double().mean())


def prompt_accuracy(seen: Tensor, labels: Labels) -> float:
    """Share of the prompts' words that the classifier finds in the pictures. `seen, labels [B, 9]`."""
    return float((seen == torch.from_numpy(labels)).double().mean())


@dataclass(frozen=True)
class Judge:
    """The classifier, and the pictures that samples are compared with.

    Those are real pictures after the autoencoder: what a perfect latent model would draw. Against the raw
    ones, what the autoencoder loses would be most of every distance; `floors` says how much that is.
    """

    classifier: Classifier
    vae: VAE
    real: Gaussian

    @classmethod
    def load(cls, seed: int = 1) -> Judge:
        """Real pictures are drawn anew (from another seed than any training), not shipped."""
        classifier, vae = Classifier.load(), VAE.load()
        rng = np.random.default_rng([seed, 7])
        images = torch.from_numpy(draw_images(draw_labels(REFERENCE, rng), rng))
        return cls(classifier, vae, Gaussian.of(classifier.judge(through(vae, images))[0]))

    def measure(self, images: Tensor, labels: Labels) -> dict[str, object]:
        """All figures of a set of samples. `images uint8 [B, 16, 16, 3]`, `labels [B, 9]` of the prompts."""
        features, seen = self.classifier.judge(images)
        distance, low, high = frechet_interval(features, self.real)
        return {
            "frechet": round(distance, 3),
            "frechet_ci": [round(low, 3), round(high, 3)],
            "spread": round(spread(Gaussian.of(features), self.real), 4),
            "complexity": round(complexity(images), 2),
            "prompt_accuracy": round(prompt_accuracy(seen, labels), 4),
            "samples": len(images),
        }

    def floors(self, labels: Labels, seed: int = 2) -> dict[str, dict[str, object]]:
        """The same figures for as many other real pictures, after the autoencoder and before it.

        The first is what a perfect latent model would score: the floor.
        """
        images = torch.from_numpy(draw_images(labels, np.random.default_rng([seed, 8])))
        return {
            "autoencoder": self.measure(through(self.vae, images), labels),
            "real": self.measure(images, labels),
        }


def through(vae: VAE, images: Tensor) -> Tensor:
    """Pictures into latents and back."""
    return torch.cat([vae.decode(vae.encode(part)) for part in images.split(1000)])
