"""The losses of the papers, in their smallest form, for one process.

Embeddings are ``[B, D]``, with one row per sample, in the same order in all views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = [
    "barlow_twins",
    "contrast",
    "cross_entropy",
    "instance_prototype",
    "nt_xent",
    "sigreg",
    "sinkhorn",
    "vicreg",
]


def cross_entropy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Between `targets`, which are distributions, and the softmax of `scores`; the mean over all but the last axis."""
    return -(targets * F.log_softmax(scores, -1)).sum(-1).mean()


def nt_xent(first: torch.Tensor, second: torch.Tensor, *, temperature: float = 0.1) -> torch.Tensor:
    """Normalised temperature-scaled cross entropy: Chen et al., arXiv:2002.05709, equation 1."""
    count = len(first)
    both = F.normalize(torch.cat((first, second)), dim=1)
    scores = both @ both.T / temperature
    scores = scores.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=scores.device), -torch.inf)
    return F.cross_entropy(scores, torch.arange(2 * count, device=scores.device).roll(count))


def contrast(queries: torch.Tensor, keys: torch.Tensor, *, temperature: float = 0.2) -> torch.Tensor:
    """Each query against the keys of the batch: Chen, Xie, He, arXiv:2104.02057, algorithm 1."""
    scores = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return 2 * temperature * F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def instance_prototype(views: torch.Tensor, queue: torch.Tensor, *, temperature: float = 0.07) -> torch.Tensor:
    """Each view against the mean of its picture's views and the views of earlier pictures: Konkle and Alvarez, 2022.

    Args:
        views: ``[V, B, D]``, normalised.
        queue: ``[Q, D]``, normalised.
        temperature: Divides the cosines.
    """
    prototypes = F.normalize(views.mean(0), dim=1).expand_as(views)
    own = (views * prototypes).sum(2, keepdim=True)
    scores = torch.cat((own, views @ queue.T), 2).flatten(0, 1) / temperature
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, *, epsilon: float = 0.05, rounds: int = 3) -> torch.Tensor:
    """Codes ``[B, K]`` that use all K prototypes equally often: Caron et al., arXiv:2006.09882, section 3.1."""
    codes = ((scores - scores.max()) / epsilon).exp()
    for _ in range(rounds):
        codes = codes / codes.sum(0, keepdim=True).clamp_min(1e-12) / codes.shape[1]
        codes = codes / codes.sum(1, keepdim=True).clamp_min(1e-12) / codes.shape[0]
    return codes * len(codes)


def vicreg(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Variance, invariance, covariance: Bardes, Ponce, LeCun, arXiv:2105.04906, equations 1 to 6; weights 25, 25, 1."""
    variance = covariance = first.new_zeros(())
    for view in (first, second):
        variance = variance + F.relu(1 - (view.var(0) + 1e-4).sqrt()).mean() / 2
        centered = view - view.mean(0)
        matrix = centered.T @ centered / (len(view) - 1)
        covariance = covariance + _off_diagonal(matrix).square().sum() / view.shape[1]
    return 25 * F.mse_loss(first, second) + 25 * variance + covariance


def barlow_twins(first: torch.Tensor, second: torch.Tensor, *, weight: float = 0.0051) -> torch.Tensor:
    """The cross-correlation of two views against the identity: Zbontar et al., arXiv:2103.03230, equation 1."""
    one, two = ((view - view.mean(0)) / view.std(0).clamp_min(1e-5) for view in (first, second))
    matrix = one.T @ two / len(first)
    return (1 - matrix.diagonal()).square().sum() + weight * _off_diagonal(matrix).square().sum()


def sigreg(embeddings: torch.Tensor, *, directions: int = 256, points: int = 17) -> torch.Tensor:
    """How far projections are from a standard normal, by Epps and Pulley's test: Balestriero, LeCun, arXiv:2511.08544.

    The empirical characteristic function of each projection is compared with that of the normal distribution, which
    is also the weight, by the trapezoidal rule on [-5, 5].
    """
    axes = F.normalize(torch.randn(embeddings.shape[1], directions, device=embeddings.device), dim=0)
    places = torch.linspace(-5, 5, points, device=embeddings.device)
    angles = (embeddings @ axes)[..., None] * places
    normal = (-0.5 * places.square()).exp()
    error = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return torch.trapezoid(error * normal, places, dim=1).mean() * len(embeddings)


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix - torch.diag(matrix.diagonal())
