"""`ImageMapDataset`: the same pictures by index, for samplers of one's own."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from torchslip.decode import Decode, Decoder, Output, View
from torchslip.loading._batcher import MAX_PIXELS, Batch, Batcher, OnError
from torchslip.loading._clock import PassClock
from torchslip.loading._encoded import EncodedBatch
from torchslip.loading._source_cache import CacheArgument, apply_cache
from torchslip.order import IndexBatch, Sequential
from torchslip.sources import Source, source_of

__all__ = ["ImageMapDataset", "collate"]


class ImageMapDataset(Dataset[Batch]):
    """Pictures by index: `__getitem__` for one, `__getitems__` for the batch that a `DataLoader` asks for.

    ::

        dataset = ts.ImageMapDataset("data/train", views=ts.RandomResizedCrop(224), seed=17)
        sampler = ts.DistributedBatchSampler(ts.Shuffled(len(dataset), seed=17), batch_size=256)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=8, collate_fn=ts.collate)

    Any sampler works. Crops depend on the epoch: `DistributedBatchSampler` sends it along with the indices; with other
    samplers call `set_epoch`. `ts.collate` takes the batch as it was decoded; other collate functions get a list of
    samples, each a dict like a batch of one without the batch dimension.

    Args:
        source: A path that `torchslip.open` understands, or a `Source`.
        views: As for `ImageDataset`.
        seed: Seeds everything random about the views.
        on_error: As for `ImageDataset`.
        return_params: As for `ImageDataset`.
        image_field: As for `ImageDataset`.
        decoder: As for `ImageDataset`.
        output: As for `ImageDataset`.
        max_pixels: As for `ImageDataset`.
        storage_options: As for `ImageDataset`.
        cache: As for `ImageDataset`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        views: View | Mapping[str, View] | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        return_params: bool = False,
        image_field: str | None = None,
        decoder: str | Decoder = "auto",
        output: Output = "rgb",
        max_pixels: int = MAX_PIXELS,
        storage_options: Mapping[str, Any] | None = None,
        cache: CacheArgument = None,
    ) -> None:
        self.source: Source = apply_cache(source_of(source, storage_options), cache)
        self._batcher = Batcher(
            self.source,
            views=Decode() if views is None else views,
            order=Sequential(self.source),
            seed=seed,
            image_field=image_field,
            on_error=on_error,
            return_params=return_params,
            decoder=decoder,
            output=output,
            max_pixels=max_pixels,
        )
        self._clock = PassClock()

    @property
    def classes(self) -> list[str]:
        """Names of the values of ``label``; empty if the source has none."""
        return list(getattr(self.source, "classes", []))

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"ImageMapDataset({self.source!r})"

    def set_epoch(self, epoch: int) -> None:
        """Draw the crops of `epoch` from now on, in worker processes too."""
        self._clock.set(epoch, 0)

    def stats(self) -> dict[str, int]:
        """See `ImageDataset.stats`."""
        return self._batcher.statistics.totals()

    def __getitem__(self, index: int) -> Batch:
        """One sample: a dict of views, fields and ``sample_id``."""
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Batch]:
        """The samples of one batch, decoded together."""
        known = indices if isinstance(indices, IndexBatch) else None
        ids = np.asarray(indices, np.int64)
        batch = self._batcher(
            ids,
            epoch=self._clock.next.epoch if known is None else known.epoch,
            key=int(ids[0]) if known is None and len(ids) else getattr(known, "key", 0),
            valid=None if known is None else known.valid,
        )
        fields = batch.fields if isinstance(batch, EncodedBatch) else batch
        if known is not None and known.replayed is not None:
            fields["replayed"] = torch.full((len(ids),), known.replayed)
        return _Samples(batch, len(ids))


class _Samples(list[Batch]):
    """A batch as a list of samples, which are views of it; `collate` takes the whole.

    A batch that is still encoded has none.
    """

    def __init__(self, batch: Batch | EncodedBatch, count: int) -> None:
        if not isinstance(batch, EncodedBatch):
            super().__init__({name: values[row] for name, values in batch.items()} for row in range(count))
        self.batch = batch


def collate(samples: list[Any]) -> Any:
    """A `collate_fn` that takes a batch of `ImageMapDataset` as it is, without copying it; else `default_collate`."""
    return samples.batch if isinstance(samples, _Samples) else default_collate(samples)
