"""`ImageDataset`: shards, shuffles, resumes; an `IterableDataset` for any `DataLoader`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from torchslip.decode import Decode, View
from torchslip.errors import StateError
from torchslip.loading._batcher import MAX_PIXELS, Batch, Batcher, OnError
from torchslip.loading._clock import Pass, PassClock
from torchslip.order import (
    Cursor,
    Fingerprint,
    Order,
    Sequential,
    Share,
    Shuffled,
    Subset,
    Tail,
    Topology,
    check_global_batch,
)
from torchslip.sources import Source
from torchslip.sources import open as open_source

__all__ = ["ImageDataset"]


@dataclass(slots=True)
class _Progress:
    """A pass in one process: it delivered batch `last` (counted from `start`), its next one is `first` or later."""

    share: Share
    epoch: int
    start: int
    first: int
    last: int | None = None


class ImageDataset(IterableDataset[Batch]):
    """Pictures from a source, cropped and in batches, divided over ranks and workers, resumable.

    ::

        train = ts.ImageDataset("data/train", views=ts.RandomResizedCrop(224), batch_size=256, shuffle=True, seed=17)
        for batch in ts.DataLoader(train, num_workers=8):
            batch["image"]      # uint8 [256, 3, 224, 224], channels last
            batch["label"]      # int64 [256]
            batch["sample_id"]  # int64 [256]

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
        decoder: ``auto`` or the name of a backend, see `torchslip.decode.backends`.
        max_pixels: Larger pictures are errors, before they are decoded.

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
        decoder: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.source: Source = open_source(source) if isinstance(source, str | os.PathLike) else source
        self.order = _make_order(self.source, shuffle, seed, window, indices, order)
        self.batch_size = batch_size
        self._tail: Tail = tail
        self._rank, self._world_size = rank, world_size
        self._batcher = Batcher(
            self.source,
            views=Decode() if views is None else views,
            order=self.order,
            seed=seed,
            image_field=image_field,
            on_error=on_error,
            return_params=return_params,
            decoder=decoder,
            max_pixels=max_pixels,
        )
        self.fingerprints: Fingerprint = {"source": self.source.fingerprint, **self.order.fingerprint}
        """Identifies the source and the order in saved states."""
        self._clock = PassClock()
        self._progress: _Progress | None = None
        self._loaded: tuple[Pass, int | None] | None = None
        _ = self.share  # reports bad arguments here rather than in the first pass

    @property
    def classes(self) -> list[str]:
        """Names of the values of ``label``; empty if the source has none."""
        return list(getattr(self.source, "classes", []))

    @property
    def share(self) -> Share:
        """The division of the epoch over ranks, as the process group stands now."""
        topology = Topology.resolve(self._rank, self._world_size)
        return Share(len(self.order), 1 if self.batch_size is None else self.batch_size, topology, self._tail)

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch; samples, if there is no `batch_size`."""
        share = self.share
        if self.batch_size is None and not len(share.batch(0, share.count() - 1).positions):
            return share.count() - 1
        return share.count()

    def __repr__(self) -> str:
        return f"ImageDataset({self.source!r}, {self.order!r}, batch_size={self.batch_size})"

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass at the start of `epoch`; if a state of that epoch was just loaded, go on from there.

        Reaches worker processes too, also persistent ones.
        """
        if self._clock.next.epoch != epoch:
            self._start_at(epoch, 0)

    @property
    def upcoming(self) -> tuple[int, int]:
        """Epoch and position that the next pass begins at."""
        begin = self._clock.next
        return begin.epoch, begin.position

    def __iter__(self) -> Iterator[Batch]:
        # Not a generator: the pass begins now, so that a state taken before the first batch is right.
        if self.batch_size is not None:
            check_global_batch(self.order, self.share.global_batch)
        worker = get_worker_info()
        id_, count = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        loaded, self._loaded = self._loaded, None
        current = self._clock.begin(loaded[0] if loaded is not None else None)
        # The state of a worker stands behind its own last batch: the next count - 1 belong to the others.
        first = count - 1 if loaded is not None and loaded[1] is not None else id_
        progress = self._progress = _Progress(self.share, current.epoch, current.position, first)
        return self._run(progress, count)

    def _run(self, progress: _Progress, step: int) -> Iterator[Batch]:
        share = progress.share
        for number in range(progress.first, share.count(progress.start), step):
            part = share.batch(progress.start, number)
            if self.batch_size is None and not len(part.positions):
                return
            batch = self._batcher(
                self.order.at(part.positions, epoch=progress.epoch),
                epoch=progress.epoch,
                key=share.first_position(progress.start, number),
                valid=part.valid if share.tail == "pad" else None,
            )
            progress.last = number
            yield (batch if self.batch_size is not None else {name: values[0] for name, values in batch.items()})

    def state_dict(self) -> dict[str, Any]:
        """The state after what this process has yielded.

        `torchdata.StatefulDataLoader` asks every worker for it. With workers and another loader, only `ts.DataLoader`
        knows what was delivered.

        Raises:
            RuntimeError: In a main process whose workers iterate, because it cannot know the position.
        """
        worker = get_worker_info()
        if worker is None and self._clock.ran_in_workers:
            raise RuntimeError(
                "The dataset is read in worker processes, so it does not know here how far they are. Take the state "
                "from ts.DataLoader, from torchdata's StatefulDataLoader, or from state_at(batches) with your own "
                "count."
            )
        progress = self._progress
        if self._loaded is not None or progress is None:
            begin, of_worker = self._loaded or (self._clock.next, None)
            epoch, position = begin.epoch, begin.position
        else:
            share, epoch = progress.share, progress.epoch
            delivered = 0 if progress.last is None else progress.last + 1
            position = share.end(progress.start, delivered)
            of_worker = None
            if worker is not None and (progress.last is not None or progress.first != worker.id):
                of_worker = worker.num_workers
        state = Cursor(epoch, position, self.fingerprints).state_dict()
        return state if of_worker is None else state | {"workers": of_worker}

    def state_at(self, batches: int) -> dict[str, Any]:
        """The state after the first `batches` batches of the latest pass, however far the workers have run ahead."""
        latest = self._clock.latest
        position = self.share.end(latest.position, batches)
        return Cursor(latest.epoch, position, self.fingerprints).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state` in the next pass, on any number of ranks and workers and with any batch size.

        A state from the end of an epoch gives an empty pass, which ends it; `ts.DataLoader` leaves that one out.

        Raises:
            StateError: If the state belongs to another dataset, seed, order or version, or to one worker of a
                `StatefulDataLoader` that had another number of workers.
        """
        cursor = Cursor.from_state_dict(state, expected=self.fingerprints)
        begin, of_worker = Pass(cursor.epoch, cursor.position), state.get("workers")
        worker = get_worker_info()
        if worker is None:
            if of_worker is not None:
                raise StateError(
                    "This is the state of one worker process of a StatefulDataLoader; load it through that."
                )
            self._start_at(begin.epoch, begin.position)
            return
        if of_worker not in (None, worker.num_workers):
            raise StateError(f"The state comes from one of {of_worker} workers, this is one of {worker.num_workers}.")
        self._loaded, self._progress = (begin, of_worker), None

    def stats(self) -> dict[str, int]:
        """Totals over all worker processes.

        ``batches`` and ``samples`` that were made (also those prefetched and never delivered), ``skipped_samples``
        that `on_error` replaced, and ``encoded_bytes`` of the pictures.
        """
        return self._batcher.statistics.totals()

    def _start_at(self, epoch: int, position: int) -> None:
        self._clock.set(epoch, position)
        self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group, so the topology travels with the dataset.
        state = self.__dict__.copy()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            topology = Topology.resolve(self._rank, self._world_size)
            state |= {"_rank": topology.rank, "_world_size": topology.world_size}
        return state


def _make_order(
    source: Source,
    shuffle: bool,
    seed: int,
    window: int | None,
    indices: npt.ArrayLike | None,
    order: Order | None,
) -> Order:
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
