"""How good synthetic images are: agreement with their labels, Inception Score and Fréchet distance."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferd.datasets import Images, require_batches
from ferd.errors import FerdError
from ferd.fairness import normalised_entropy
from ferd.models.classifier import Classifier, fast_layout
from ferd.pixels import to_float
from ferd.tf32 import tf32_convolutions

INCEPTION_SIZE = 299  # pixels


class Embedding(Protocol):
    """The features and predictions that images are compared by; ``name`` says whose they are."""

    name: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, channels, H, W) in [0, 1] -> features (B, K), probabilities (B, C)."""


class TeacherEmbedding:
    """The teacher's pooled features and its softmax."""

    name = "teacher"

    def __init__(self, teacher: Classifier, device: torch.device) -> None:
        self.teacher = fast_layout(teacher, device).eval()

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Embedding``."""
        features = self.teacher.features(images)
        return features.mean((2, 3)), self.teacher.head(features).softmax(1)


class InceptionEmbedding:
    """torchvision's Inception-v3, its 2048 pooled features and its softmax over ImageNet's classes.

    Images are resized to 299×299 (bilinear) and mapped to [−1, 1]; grey ones are repeated over three
    channels. Published Fréchet distances are of other weights of the same network (TensorFlow's of
    2015): not comparable.

    Args:
        weights: a state dict of ``torchvision.models.inception_v3``, with its auxiliary classifier.

    Raises:
        FerdError: the file is not that.
    """

    name = "inception-v3"

    def __init__(self, weights: Path, device: torch.device) -> None:
        from torchvision.models import inception_v3

        network = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=False)
        try:
            network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError) as error:
            raise FerdError(
                f"{weights}: not a state dict of torchvision's inception_v3 ({type(error).__name__}); "
                "correct analysis.inception, or set it to null to use the teacher's features"
            ) from None
        self.head = network.fc.to(device).requires_grad_(False)
        network.fc = nn.Identity()
        self.network = fast_layout(network, device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Embedding``."""
        size = (INCEPTION_SIZE, INCEPTION_SIZE)
        large = F.interpolate(images.expand(-1, 3, -1, -1), size, mode="bilinear", align_corners=False)
        features = self.network(2 * large - 1)
        return features, self.head(features).softmax(1)


def inception_score(probs: Tensor) -> float:
    """exp(E_x KL(p(y|x) ‖ p(y))), between 1 and C (Salimans et al. 2016); probs (N, C)."""
    probs = probs.double()
    marginal = probs.mean(0, keepdim=True)
    divergence = (torch.xlogy(probs, probs) - torch.xlogy(probs, marginal)).sum(1)
    return divergence.mean().exp().item()


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """μ (K,) and the unbiased Σ (K, K) in float64 of features (N, K), N at least 2."""
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """‖μ1 − μ2‖² + Tr(Σ1 + Σ2 − 2(Σ1Σ2)^½) of two Gaussians (Heusel et al. 2017); (K,), (K, K) float64.

    Tr (Σ1Σ2)^½ = Σ √λ over the eigenvalues λ of the symmetric Σ1^½ Σ2 Σ1^½. Of fewer images than K the
    estimate is far too large: compare distances of equal numbers of images only.
    """
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_2 @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance: Tensor = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross
    return distance.clamp(min=0).item()


def class_balance(labels: Tensor, classes: int) -> dict[str, Any]:
    """``counts`` of each class and their ``entropy`` over log C; labels (N,)."""
    counts = torch.bincount(labels, minlength=classes)
    return {"counts": counts.tolist(), "entropy": normalised_entropy(counts)}


@torch.no_grad()
@tf32_convolutions(False)
def agreement(network: Classifier, data: Images, batch_size: int, device: torch.device) -> float:
    """The share of images that a network takes for their labels; it is moved and left in eval mode.

    Raises:
        FerdError: there are no images, or a batch is empty; ``embed`` too.
    """
    network = fast_layout(network, device).eval()
    predicted = torch.cat([network(images).argmax(1).cpu() for images in _batches(data, batch_size, device)])
    return (predicted == data.labels).double().mean().item()


@torch.no_grad()
@tf32_convolutions(False)
def embed(embedding: Embedding, data: Images, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (N, K) and probabilities (N, C) of all images, on the CPU."""
    parts = [embedding(images) for images in _batches(data, batch_size, device)]
    return torch.cat([part[0].cpu() for part in parts]), torch.cat([part[1].cpu() for part in parts])


def image_quality(
    pool: Images,
    real: Images,
    teacher: Classifier,
    judge: Classifier,
    embedding: Embedding,
    batch_size: int,
    device: torch.device,
) -> dict[str, Any]:
    """Figures of synthetic images beside real ones.

    Args:
        pool: synthetic images with the labels that were asked for.
        real: real images that the judge was not trained on, nor a teacher that was trained here; one that
            was given may have been.
        judge: a classifier that had no part in making the images.
        embedding: what Inception Score and Fréchet distance are computed on.

    Returns:
        ``agreement`` of judge and teacher with the pool's labels, ``judge_on_real``: the judge's accuracy;
        ``inception_score``, ``frechet_distance`` and whose ``features`` they are, of which dimension, from
        how many images (``n``, ``n_real``); the pool's class ``balance``.
    """
    features, probs = embed(embedding, pool, batch_size, device)
    real_features, _ = embed(embedding, real, batch_size, device)
    return {
        "n": len(pool.labels),
        "n_real": len(real.labels),
        "agreement": {
            "judge": agreement(judge, pool, batch_size, device),
            "teacher": agreement(teacher, pool, batch_size, device),
        },
        "judge_on_real": agreement(judge, real, batch_size, device),
        "features": embedding.name,
        "feature_dim": features.shape[1],
        "inception_score": inception_score(probs),
        "frechet_distance": frechet_distance(*moments(features), *moments(real_features)),
        "balance": class_balance(pool.labels, teacher.classes),
    }


def _batches(data: Images, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    require_batches(data, batch_size)
    for images in data.images.split(batch_size):
        yield to_float(images.to(device))
