"""`ImageDataset`: shards, shuffles, resumes; an `IterableDataset` for any `DataLoader`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from torchslip.decode import Decode, Decoder, Output, View
from torchslip.loading._batcher import MAX_PIXELS, Batch, Batcher, OnError
from torchslip.loading._limits import Constraints, ProfileName
from torchslip.loading._ordered import BatchPlan, OrderedDataset
from torchslip.loading._source_cache import CacheArgument, apply_cache
from torchslip.order import Order, Sequential, Shuffled, Subset, Tail
from torchslip.sources import Source, source_of

__all__ = ["ImageDataset", "make_order"]


class ImageDataset(OrderedDataset[Batch]):
    """Pictures from a source, cropped and in batches, divided over ranks and workers, resumable.

    ::

        train = ts.ImageDataset("data/train", views=ts.RandomResizedCrop(224), batch_size=256, shuffle=True, seed=17)
        for batch in ts.DataLoader(train, num_workers=8):
            batch["image"]      # uint8 [256, 3, 224, 224], channels last
            batch["label"]      # int64 [256]
            batch["sample_id"]  # int64 [256]
            batch["epoch"]      # int64 [256], for what is random later on

    With `batch_size` it yields finished batches, for ``DataLoader(dataset, batch_size=None)``; without, single samples,
    for ``DataLoader(dataset, batch_size=N)``. Samples are dealt to workers one by one, so with several workers and
    without `batch_size` the composition of batches depends on the number of workers; with it, it never does.

    Every pass takes the next epoch, so each has its own order and crops; `set_epoch` chooses another.

    Args:
        source: A path that `torchslip.open` understands, or a `Source`, such as a mixture by `torchslip.mix`, which
            brings its own order.
        views: A view, whose pictures come under the name of the image field, or a dict of names and views, all taken
            from one decode. Default: `Decode`, the whole pictures.
        batch_size: Samples per rank and batch.
        shuffle: Shuffle anew in every epoch.
        seed: Seeds the order and everything random about the views.
        window: Shuffle within this many blocks of the source at a time, see `Shuffled`; None: the whole set.
        indices: Only these samples.
        order: An order of your own, instead of `shuffle`, `window` and `indices`.
        tail: What becomes of an incomplete last global batch: ``uneven`` keeps it smaller, ``drop`` leaves it out,
            ``pad`` fills it and marks the repeats in ``batch["valid"]``, see `Share`.
        rank: This rank; default: `torch.distributed` if it is initialised when the dataset is used, else 0.
        world_size: The number of ranks; default: as for `rank`, else 1.
        on_error: ``raise`` stops at a sample that cannot be read or decoded, with its id and path; ``skip`` replaces
            it by another one, the same on every machine, and counts it in `stats`.
        return_params: Add ``<name>_box`` to the batch for every view: float32 ``[B, 4]``, the top, left, height and
            width of what is shown, in pixels of the source.
        image_field: The field to decode, if the source has several.
        decoder: ``auto``, the name of a backend, see `torchslip.decode.backends`, or a `torchslip.decode.Decoder`, such
            as ``TurboDecoder(scaled_decode=False)``.
        output: ``rgb``; or ``yuv``: Y, Cb and Cr instead of red, green and blue; or ``planes``, half the bytes:
            ``<name>_y``, ``[B, 1, H, W]``, and ``<name>_uv``, ``[B, 2, ceil(H / 2), ceil(W / 2)]``.
            `torchslip.augment.yuv_to_rgb` makes RGB of both, on any device.
        max_pixels: Larger pictures are errors, before they are decoded.
        max_ram_gb: The memory, in GiB, that the process with all its workers may use. This or one of the next two holds
            a cap on the bytes of decoded batches too; it needs `batch_size`, and `ts.DataLoader` around workers.
        constraints: Exact caps instead of those of the profile.
        profile: ``safe``, ``balanced`` or ``throughput``.
        storage_options: For fsspec, if `source` is a URL.
        cache: Pack the source when it is first used, and read the packed form: True, or the folder for packed datasets,
            or a `torchslip.PackedCache` that says more. Nothing but the speed changes. One process of a machine packs,
            here and now, and the others wait; with ``PackedCache(background=True)`` nobody does.

    Raises:
        FormatError: If `source` is a path that cannot be opened.
        ValueError: If arguments are out of range or exclude each other.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Source,
        *,
        views: View | Mapping[str, View] | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        window: int | None = None,
        indices: npt.ArrayLike | None = None,
        order: Order | None = None,
        tail: Tail = "uneven",
        rank: int | None = None,
        world_size: int | None = None,
        on_error: OnError = "raise",
        return_params: bool = False,
        image_field: str | None = None,
        decoder: str | Decoder = "auto",
        output: Output = "rgb",
        max_pixels: int = MAX_PIXELS,
        max_ram_gb: float | None = None,
        constraints: Constraints | None = None,
        profile: ProfileName | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache: CacheArgument = None,
    ) -> None:
        self.source: Source = apply_cache(source_of(source, storage_options), cache)
        super().__init__(
            make_order(self.source, shuffle, seed, window, indices, order),
            source_fingerprint=self.source.fingerprint,
            batch_size=batch_size,
            tail=tail,
            rank=rank,
            world_size=world_size,
        )
        self._batcher = Batcher(
            self.source,
            views=Decode() if views is None else views,
            order=self.order,
            seed=seed,
            image_field=image_field,
            on_error=on_error,
            return_params=return_params,
            decoder=decoder,
            output=output,
            max_pixels=max_pixels,
        )

        if (max_ram_gb, constraints, profile) != (None, None, None):
            self.limit_memory(max_ram_gb=max_ram_gb, constraints=constraints, profile=profile or "balanced")

    @property
    def classes(self) -> list[str]:
        """Names of the values of ``label``; empty if the source has none."""
        return list(getattr(self.source, "classes", []))

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch; samples, if there is no `batch_size`."""
        share = self.share
        if self.batch_size is None and not len(share.batch(0, share.count() - 1).positions):
            return share.count() - 1
        return share.count()

    def __repr__(self) -> str:
        return f"ImageDataset({self.source!r}, {self.order!r}, batch_size={self.batch_size})"

    def _read(self, plan: BatchPlan) -> Iterator[Batch]:
        batch = self._batcher(plan.ids, epoch=plan.epoch, key=plan.key, valid=plan.valid)
        # Encoded batches are for ts.DataLoader alone, which asks for them.
        finished = cast(Batch, batch)
        yield finished if self.batch_size is not None else {name: values[0] for name, values in finished.items()}

    @property
    def batch_bytes(self) -> int | None:
        """Bytes of a full batch as it is delivered; None if pictures have no fixed size."""
        return self._batcher.bytes_of(np.zeros(self.batch_size or 1, np.int64))

    def _bytes_of(self, plan: BatchPlan) -> int:
        decoded = None if self._batcher.leaves_encoded else self._batcher.bytes_of(plan.ids)
        if self._batcher.leaves_encoded and getattr(self.source, "sizes", None) is not None:
            # All that a batch has besides pixels, and its pictures once more while they are put behind each other.
            decoded = self._encoded_bytes(plan) + 64 * len(plan.ids) * (4 + len(self.source.schema))
        if decoded is None and self.budget is not None:
            return self.budget.limits.max_inflight_bytes // 3
        return (decoded or 0) + self._encoded_bytes(plan)

    def _encoded_bytes(self, plan: BatchPlan) -> int:
        sizes = getattr(self.source, "sizes", None)
        return 0 if sizes is None else int(np.maximum(sizes[plan.ids], 0).sum())

    def stats(self) -> dict[str, int]:
        """Totals over all worker processes.

        ``batches`` and ``samples`` that were made (also those prefetched and never delivered), ``skipped_samples``
        that `on_error` replaced, and ``encoded_bytes`` of the pictures. Where memory is limited, also what
        `memory_stats` has.
        """
        return self._batcher.statistics.totals() | self.memory_stats()


def make_order(
    source: Source,
    shuffle: bool,
    seed: int,
    window: int | None,
    indices: npt.ArrayLike | None,
    order: Order | None,
) -> Order:
    """The order that these arguments of a dataset mean.

    Raises:
        ValueError: If they exclude each other, or are those of another source.
    """
    own = getattr(source, "order", None)
    if isinstance(own, Order) and (order is None or order is own):
        if shuffle or window is not None or indices is not None:
            raise ValueError(
                f"{source!r} brings its own order, so shuffle, window and indices have no place here; ts.mix takes "
                "shuffle, window and seed."
            )
        return own
    if order is not None:
        if shuffle or window is not None or indices is not None:
            raise ValueError("Pass either order, or shuffle, window and indices; an order decides all of these.")
        _check_ids(order, len(source))
        return order
    if window is not None and not shuffle:
        raise ValueError(f"window={window} needs shuffle=True.")
    base: Order = Sequential(source) if indices is None else Subset(indices)
    _check_ids(base, len(source))
    if not shuffle:
        return base
    blocks = getattr(source, "shard_sizes", 1024) if indices is None else 1024
    return Shuffled(base, seed=seed, window=window, blocks=blocks)


def _check_ids(order: Order, length: int) -> None:
    """Refuse an order of another dataset; its ids are looked at only where that needs no more than its own memory."""
    if isinstance(order, Subset):
        largest = int(order.at(np.arange(len(order)), epoch=0).max(initial=-1))
        if largest >= length:
            raise ValueError(f"indices must be below {length}, the number of samples; got {largest}.")
    elif len(order) > length and not isinstance(order, Shuffled):
        raise ValueError(f"The order has {len(order)} positions, the source only {length} samples.")
