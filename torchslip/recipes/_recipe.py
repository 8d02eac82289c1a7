"""What a recipe holds when it has been read."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchslip.augment import GaussianBlur, MultiView, PatchMask, Transform
from torchslip.decode import View
from torchslip.loading import ImageDataset
from torchslip.order import Topology
from torchslip.sources import Source

__all__ = ["Evaluation", "Recipe"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How pictures are prepared for the evaluation of what was trained.

    Attributes:
        views: Name to crop, for `ImageDataset`; the name is ``image``.
        augment: What is done with a batch: conversion and normalisation.
    """

    views: Mapping[str, View]
    augment: MultiView = field(repr=False)

    def dataset(self, source: str | os.PathLike[str] | Source, *, batch_size: int, **options: Any) -> ImageDataset:
        """A dataset with these views, in the order of the source; `options` are those of `ImageDataset`."""
        return ImageDataset(source, views=self.views, batch_size=batch_size, **options)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Make a batch of the dataset ready for the model, on the device where it lies."""
        return dict(self.augment(batch))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published training: which crops, which augmentation, how many samples at a time.

    Attributes:
        name: Its name, as for `load`.
        path: The file that it was read from.
        paper: Title, authors, year and number of the paper.
        parameters: Where in the paper, or in the authors' code, the values stand.
        differences: What is not as it was published, and why.
        batch_size: Samples in one step over all ranks.
        seed: Seeds the order of the samples and everything random about them.
        views: Name to crop, for `ImageDataset`.
        augment: What is done with each view of a batch.
        masks: Name of a view to a mask over its patches.
        mix: What is done with the batch after that, to its images and labels; None in most recipes.
        evaluation: How pictures are prepared for the evaluation; None if the paper has nothing to evaluate.
    """

    name: str
    path: Path
    paper: str = field(repr=False)
    parameters: str = field(repr=False)
    differences: tuple[str, ...] = field(repr=False)
    batch_size: int
    seed: int
    views: Mapping[str, View]
    augment: MultiView = field(repr=False)
    masks: Mapping[str, Transform] = field(repr=False)
    mix: Transform | None = field(repr=False)
    evaluation: Evaluation | None = field(repr=False)

    def resized(self, size: int) -> Recipe:
        """The same training on smaller or larger pictures: crops and blurs in proportion.

        Masks keep their grid, so where there are masks, every view gets a whole number of their patches.

        Args:
            size: Of the largest view, in pixels; rounded to whole patches.

        Raises:
            ValueError: If `size` is no positive number of pixels, or a view has no size.
        """
        largest = max(max(_as_pair(_size_of(view))) for view in self.views.values())
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels; got {size}.")
        grid = max((max(mask.grid) for mask in self.masks.values() if isinstance(mask, PatchMask)), default=None)
        patch = 1 if grid is None else max(1, round(size / grid))
        factor = (size if grid is None else patch * grid) / largest
        evaluation = self.evaluation
        if evaluation is not None:
            evaluation = Evaluation(
                {name: _resized_view(view, factor, patch) for name, view in evaluation.views.items()},
                _resized_chains(evaluation.augment, factor),
            )
        return dataclasses.replace(
            self,
            views={name: _resized_view(view, factor, patch) for name, view in self.views.items()},
            augment=_resized_chains(self.augment, factor),
            evaluation=evaluation,
        )

    def dataset(
        self, source: str | os.PathLike[str] | Source, *, batch_size: int | None = None, **options: Any
    ) -> ImageDataset:
        """The dataset to train on: the recipe's views, shuffled, without an incomplete last batch.

        Args:
            source: As for `ImageDataset`.
            batch_size: Samples per rank and batch; default: the recipe's, divided over the ranks that there are now.
            options: Other arguments of `ImageDataset`; they win over the recipe's.

        Raises:
            ValueError: If the recipe's batch size cannot be divided evenly over the ranks.
        """
        if batch_size is None:
            world_size = Topology.resolve(options.get("rank"), options.get("world_size")).world_size
            batch_size, left = divmod(self.batch_size, world_size)
            if left:
                raise ValueError(
                    f"The batch size of {self.name}, {self.batch_size}, cannot be divided over {world_size} ranks; "
                    "pass batch_size, the samples per rank."
                )
        chosen: dict[str, Any] = {
            "views": self.views,
            "batch_size": batch_size,
            "shuffle": True,
            "seed": self.seed,
            "tail": "drop",
        }
        return ImageDataset(source, **(chosen | options))

    def prepare(self, batch: Mapping[str, Any], *, epoch: int | None = None) -> dict[str, Any]:
        """Make a batch of the dataset ready for the model, on the device where it lies.

        Args:
            batch: From `dataset`, or with the same keys.
            epoch: The epoch that it belongs to; default: ``batch["epoch"]`` if it is there.

        Returns:
            A copy with the augmented views; with the masks of a view, ``<view>_mask`` for instance; mixed at last.
        """
        epoch = batch.get("epoch") if epoch is None else epoch
        ready: dict[str, Any] = self.augment(batch, epoch=epoch)
        for view, mask in self.masks.items():
            drawn = mask(batch["sample_id"], epoch=epoch, view=view, seed=self.seed)
            ready |= {f"{view}_{name}": values for name, values in drawn.items()}
        return ready if self.mix is None else dict(self.mix(ready, epoch=epoch, seed=self.seed))


def _resized_view(view: Any, factor: float, patch: int) -> Any:
    """The same view with every number of pixels multiplied, `size` in whole patches."""
    changed = {"size": _times(_size_of(view), factor, patch)}
    if hasattr(view, "resize"):
        changed["resize"] = _times(view.resize, factor, 1)
    return dataclasses.replace(view, **changed)


def _size_of(view: Any) -> int | tuple[int, int]:
    size: int | tuple[int, int] | None = getattr(view, "size", None)
    if size is None:
        raise ValueError(f"Only views that have a size can be resized; got {view}.")
    return size


def _times(size: int | tuple[int, int], factor: float, multiple: int) -> int | tuple[int, int]:
    height, width = (max(1, round(side * factor / multiple)) * multiple for side in _as_pair(size))
    return height if isinstance(size, int) else (height, width)


def _as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _resized_chains(chains: MultiView, factor: float) -> MultiView:
    chains = copy.deepcopy(chains)
    for part in chains.modules():
        if isinstance(part, GaussianBlur):
            # Odd, and wide enough to blur at all.
            part.kernel_size = max(3, 2 * round((part.kernel_size * factor - 1) / 2) + 1)
            part.sigma = (part.sigma[0] * factor, part.sigma[1] * factor)
    return chains
