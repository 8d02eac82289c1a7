"""What each recipe trains, in small: a backbone, the heads and the loss of the paper.

They show that a recipe's batches are what its method needs, and what it costs to make them; they are no
reproductions of the papers' results.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchslip.cli import _losses as losses
from torchslip.cli._backbones import ConvNet
from torchslip.errors import FormatError
from torchslip.recipes import Recipe

__all__ = ["DINO", "Method", "follow", "frozen_copy", "mlp"]

Batch = Mapping[str, torch.Tensor]


class Method(nn.Module):
    """A backbone that learns from the batches of a recipe.

    Args:
        recipe: Whose views are used.
        channels: Of the prepared pictures.
        classes: How many labels there are.

    Raises:
        FormatError: If the recipe lacks what the method needs.
    """

    least_views = 1
    backbone: Any
    projector: nn.Module

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        super().__init__()
        self.views = list(recipe.views)
        if len(self.views) < self.least_views:
            raise FormatError(
                f"{type(self).__name__} needs at least {self.least_views} views; the recipe {recipe.name} has "
                f"{', '.join(self.views)}."
            )
        sizes = {name: getattr(view, "size", 0) for name, view in recipe.views.items()}
        self.large = [name for name in self.views if sizes[name] == max(sizes.values())]
        self.backbone = self.make_backbone(recipe, channels)
        self.dim: int = self.backbone.dim
        self.make_heads(classes)

    def make_backbone(self, recipe: Recipe, channels: int) -> Any:
        """The network whose features are wanted in the end."""
        return ConvNet(channels)

    def make_heads(self, classes: int) -> None:
        """Everything else that is trained, as attributes."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of a prepared batch."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What changes after the optimizer's step, besides the parameters that it has."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Of the backbone: ``[B, dim]``."""
        return torch.as_tensor(self.backbone(images))

    def embed(
        self, batch: Batch, views: list[str], network: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """The outputs of `network` (default: `project`) for these views; those of one size go through together."""
        network = self.project if network is None else network
        outputs: dict[str, torch.Tensor] = {}
        for shape in dict.fromkeys(batch[view].shape for view in views):
            alike = [view for view in views if batch[view].shape == shape]
            parts = network(torch.cat([batch[view] for view in alike])).chunk(len(alike))
            outputs |= dict(zip(alike, parts, strict=True))
        return [outputs[view] for view in views]

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures to embeddings."""
        return torch.as_tensor(self.projector(self.features(images)))


class Supervised(Method):
    """Cross entropy with the labels, mixed or not."""

    def make_heads(self, classes: int) -> None:
        self.projector = nn.Linear(self.dim, classes)

    def forward(self, batch: Batch) -> torch.Tensor:
        if "label" not in batch:
            raise FormatError("Supervised training needs labels; this data has none. Use one sub-folder per class.")
        scores, labels = self.project(batch[self.views[0]]), batch["label"]
        if labels.is_floating_point():
            return losses.cross_entropy(scores, labels)
        if "label_partner" not in batch:
            return F.cross_entropy(scores, labels)
        own, partner = (F.cross_entropy(scores, batch[key], reduction="none") for key in ("label", "label_partner"))
        return torch.lerp(partner, own, batch["label_weight"]).mean()


class _Pairwise(Method):
    """A loss between two views, averaged over all pairs of large views."""

    least_views = 2
    widths: tuple[int, ...] = (512, 512)

    def make_heads(self, classes: int) -> None:
        self.projector = mlp(self.dim, *self.widths)

    def forward(self, batch: Batch) -> torch.Tensor:
        pairs = list(combinations(self.embed(batch, self.large), 2))
        return torch.stack([self.loss(first, second) for first, second in pairs]).mean()

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class SimCLR(_Pairwise):
    """Contrast with all other pictures of the batch."""

    widths = (256, 128)

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return losses.nt_xent(first, second)


class VICReg(_Pairwise):
    """Variance, invariance and covariance."""

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return losses.vicreg(first, second)


class BarlowTwins(_Pairwise):
    """The cross-correlation of two views is the identity."""

    def loss(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return losses.barlow_twins(first, second)


class BYOL(Method):
    """Predict the embedding that a moving average of the network has of the other view."""

    least_views = 2
    momentum = 0.99

    def make_heads(self, classes: int) -> None:
        self.projector = mlp(self.dim, 512, 128)
        self.predictor = mlp(128, 512, 128)
        self.teacher = frozen_copy(nn.Sequential(self.backbone, self.projector))

    def forward(self, batch: Batch) -> torch.Tensor:
        embeddings = self.embed(batch, self.large)
        with torch.no_grad():
            targets = self.embed(batch, self.large, self.teacher)
        terms = [
            self.loss(self.predictor(embeddings[one]), targets[other])
            for one in range(len(embeddings))
            for other in range(len(targets))
            if one != other
        ]
        return torch.stack(terms).mean()

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Grill et al., arXiv:2006.07733, equation 2."""
        return 2 - 2 * F.cosine_similarity(predicted, target).mean()

    def after_step(self) -> None:
        follow(self.teacher, nn.Sequential(self.backbone, self.projector), self.momentum)


class MoCoV3(BYOL):
    """Contrast with what the moving average sees in the batch."""

    def loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return losses.contrast(predicted, target)


class IPCL(Method):
    """Contrast each view's distance from the mean of its picture's views with that from earlier pictures."""

    least_views = 2
    queue: torch.Tensor

    def make_heads(self, classes: int) -> None:
        self.projector = nn.Linear(self.dim, 128)
        self.register_buffer("queue", F.normalize(torch.randn(2048, 128), dim=1))
        self._newest = torch.empty(0, 128)

    def forward(self, batch: Batch) -> torch.Tensor:
        views = F.normalize(torch.stack(self.embed(batch, self.views)), dim=2)
        self._newest = views.detach().flatten(0, 1)
        return losses.instance_prototype(views, self.queue)

    def after_step(self) -> None:
        self.queue = torch.cat((self._newest, self.queue))[: len(self.queue)]


class SwAV(Method):
    """Predict, from every view, the prototypes that the large views are assigned to."""

    least_views = 2

    def make_heads(self, classes: int) -> None:
        self.projector = mlp(self.dim, 256, 128)
        self.prototypes = nn.Linear(128, 64, bias=False)

    def forward(self, batch: Batch) -> torch.Tensor:
        axes = F.normalize(self.prototypes.weight, dim=1)
        scores = [F.normalize(each, dim=1) @ axes.T for each in self.embed(batch, self.views)]
        terms = []
        for name in self.large:
            codes = losses.sinkhorn(scores[self.views.index(name)])
            terms += [
                losses.cross_entropy(other / 0.1, codes)
                for view, other in zip(self.views, scores, strict=True)
                if view != name
            ]
        return torch.stack(terms).mean()


class DINO(Method):
    """Match, from every view, what a moving average says of the large views: Caron et al., arXiv:2104.14294."""

    least_views = 2
    momentum = 0.99
    center: torch.Tensor

    def make_heads(self, classes: int) -> None:
        self.head = _PrototypeHead(self.dim)
        self.teacher = frozen_copy(nn.ModuleList((self.backbone, self.head)))
        self.register_buffer("center", torch.zeros(256))

    def project(self, images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(self.features(images)))

    def forward(self, batch: Batch) -> torch.Tensor:
        scores = self.embed(batch, self.views)
        with torch.no_grad():
            backbone, head = self.teacher
            found = torch.stack(self.embed(batch, self.large, lambda images: head(backbone(images))))
        return self.match(scores, self.sharpen(found))

    def match(self, scores: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Every view against the targets ``[L, B, K]`` of all other large views."""
        terms = [
            losses.cross_entropy(each / 0.1, target)
            for name, target in zip(self.large, targets, strict=True)
            for view, each in zip(self.views, scores, strict=True)
            if view != name
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def sharpen(self, found: torch.Tensor) -> torch.Tensor:
        """Centred and sharpened targets from what the teacher found, ``[..., K]``."""
        targets = ((found - self.center) / 0.04).softmax(-1)
        self.center = torch.lerp(found.flatten(0, -2).mean(0), self.center, 0.9)
        return targets

    def after_step(self) -> None:
        follow(self.teacher, nn.ModuleList((self.backbone, self.head)), self.momentum)


class LeJEPA(Method):
    """Predict the mean of the large views from every view, with embeddings that are normally distributed."""

    least_views = 2
    weight = 0.05

    def make_heads(self, classes: int) -> None:
        self.projector = mlp(self.dim, 512, 64)

    def forward(self, batch: Batch) -> torch.Tensor:
        embeddings = self.embed(batch, self.views)
        mean = torch.stack([embeddings[self.views.index(name)] for name in self.large]).mean(0)
        predicted = torch.stack([F.mse_loss(each, mean) for each in embeddings]).mean()
        normal = torch.stack([losses.sigreg(each) for each in embeddings]).mean()
        return (1 - self.weight) * predicted + self.weight * normal


class _PrototypeHead(nn.Module):
    """Features to scores of 256 prototypes of length 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Linear(64, 256, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body(features), dim=-1) @ F.normalize(self.prototypes.weight, dim=1).T


def mlp(before: int, hidden: int, after: int) -> nn.Sequential:
    """Two linear layers with a batch normalisation between them."""
    return nn.Sequential(
        nn.Linear(before, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, after)
    )


def frozen_copy(network: nn.Module) -> Any:
    """A copy that no optimizer trains."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the parameters of `teacher` towards those of `student`, and take its statistics."""
    for parameter, other in zip(teacher.parameters(), student.parameters(), strict=True):
        parameter.lerp_(other, 1 - momentum)
    for buffer, newest in zip(teacher.buffers(), student.buffers(), strict=True):
        buffer.copy_(newest)
