"""What is measured of a set of samples, and how sure it is.

None of these is a standard metric under its standard name: the features come from our own classifier of 16x16
avatars.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .avatars import Labels, draw_images, draw_labels
from .classifier import Classifier

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
    """Bytes of a picture after lossless compression (zlib, level 9), on average: more detail, or more noise,
    takes more.
    """
    return float(np.mean([len(zlib.compress(image.tobytes(), 9)) for image in images.numpy()]))


def prompt_accuracy(seen: Tensor, labels: Labels) -> float:
    """Share of the prompts' words that the classifier finds in the pictures. `seen, labels [B, 9]`."""
    return float((seen == torch.from_numpy(labels)).double().mean())


@dataclass(frozen=True)
class Judge:
    """The classifier and the real pictures, once for all samples."""

    classifier: Classifier
    real: Gaussian

    @classmethod
    def load(cls, seed: int = 1) -> Judge:
        """Real pictures are drawn anew (from another seed than any training), not shipped."""
        classifier = Classifier.load()
        rng = np.random.default_rng([seed, 7])
        images = torch.from_numpy(draw_images(draw_labels(REFERENCE, rng), rng))
        return cls(classifier, Gaussian.of(classifier.judge(images)[0]))

    def measure(self, images: Tensor, labels: Labels) -> dict[str, object]:
        """All figures of a set of samples. `images uint8 [B, 16, 16, 3]`, `labels [B, 9]` of the prompts."""
        features, seen = self.classifier.judge(images)
        distance, low, high = frechet_interval(features, self.real)
        return {
            "frechet": round(distance, 3),
            "frechet_ci": [round(low, 3), round(high, 3)],
            "complexity": round(complexity(images), 2),
            "prompt_accuracy": round(prompt_accuracy(seen, labels), 4),
            "samples": len(images),
        }

    def floor(self, labels: Labels, seed: int = 2) -> dict[str, object]:
        """The same figures for as many other real pictures: what perfect samples would score."""
        images = torch.from_numpy(draw_images(labels, np.random.default_rng([seed, 8])))
        return self.measure(images, labels)
