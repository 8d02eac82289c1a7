"""`ts.DataLoader`: torch's, with one global state for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch.utils.data
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from torchslip.loading._dataset import ImageDataset
from torchslip.loading._map_dataset import ImageMapDataset, collate
from torchslip.loading._ordered import OrderedDataset
from torchslip.loading._streaming import StreamingDataset
from torchslip.order import Cursor, DistributedBatchSampler, LeaseSampler

__all__ = ["DataLoader"]

_NO_STATE = (
    "This loader has no state: its dataset is no ImageDataset and its batch_sampler no DistributedBatchSampler. "
    "Use one of them."
)


class DataLoader(torch.utils.data.DataLoader[Any]):
    """A `torch.utils.data.DataLoader` that knows what it has delivered.

    It counts the batches that the training loop has received, not those that workers have prefetched, so its state is
    the one global position: equal on all ranks, and good for any other number of ranks and workers. It moves on to the
    next epoch by itself.

    Takes every argument of torch's. An `ImageDataset` makes its own batches, so ``batch_size`` defaults to None; an
    `ImageMapDataset` needs a `DistributedBatchSampler` as ``batch_sampler`` if states are wanted. A `StreamingDataset`
    and its loader have one batch size: give it to either.

    Raises:
        ValueError: If a `batch_size` is given for a dataset that makes its own batches, or another one than the
            dataset's.
    """

    def __init__(self, dataset: torch.utils.data.Dataset[Any], *args: Any, **kwargs: Any) -> None:
        if isinstance(dataset, ImageDataset):
            if args or kwargs.get("batch_size") is not None:
                raise ValueError(
                    "The batch size belongs to the dataset: ImageDataset(..., batch_size=N) makes finished batches. "
                    "Leave it out of ts.DataLoader and pass the other arguments by name."
                )
            if dataset.batch_size is None:
                raise ValueError(
                    "ts.DataLoader needs an ImageDataset that makes batches: pass batch_size=N to the dataset, or use "
                    "torch.utils.data.DataLoader(dataset, batch_size=N) for single samples."
                )
            kwargs["batch_size"] = None
        elif isinstance(dataset, StreamingDataset):
            args, kwargs = _with_one_batch_size(dataset, args, kwargs)
        elif isinstance(dataset, ImageMapDataset):
            kwargs.setdefault("collate_fn", collate)
        super().__init__(dataset, *args, **kwargs)
        if isinstance(self.batch_sampler, LeaseSampler):
            _check_prefetch(self.batch_sampler, self)
        self._epoch = 0
        self._start = 0
        self._delivered = 0
        self._pass: Literal["chosen", "loaded", "begun"] = "chosen"

    @property
    def epoch(self) -> int:
        """The epoch of the latest pass, or the one that `set_epoch` or `load_state_dict` has named since."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass at the start of `epoch`; if a state of that epoch was just loaded, go on from there."""
        if self._pass == "begun" or epoch != self._epoch:
            self._epoch, self._start, self._delivered = epoch, 0, 0
        self._pass = "chosen"
        if (stateful := self._stateful()) is not None:
            stateful.load_state_dict(self._state(stateful))
            stateful.set_epoch(epoch)

    def __iter__(self) -> Any:
        if isinstance(self.batch_sampler, LeaseSampler):
            begin = super().__iter__
            return self.batch_sampler.consume(lambda: self._count(begin()))
        stateful = self._stateful()
        if stateful is None:
            return super().__iter__()
        self._epoch, self._start = self._upcoming(stateful)
        # A state from the end of its epoch goes on with the next one, unless `set_epoch` named the old one.
        if self._pass == "loaded" and not stateful.share.count(self._start):
            self._epoch, self._start = self._epoch + 1, 0
        self._pass, self._delivered = "begun", 0
        stateful.load_state_dict(self._state(stateful))
        stateful.set_epoch(self._epoch)
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            for batch in batches:
                self._delivered += 1
                yield batch
        except Exception:
            # The traceback keeps the iterator in a reference cycle, and when the garbage collector finds it, the queues
            # that tell workers to end are gone already: torch then waits 5 seconds for each worker (2.15).
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()
                self._iterator = None
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state after the batches that this loader has delivered.

        Raises:
            RuntimeError: If neither the dataset nor the batch sampler is torchslip's.
        """
        stateful = self._stateful()
        if stateful is None:
            raise RuntimeError(_NO_STATE)
        if self._pass != "begun":
            self._epoch, self._start = self._upcoming(stateful)
        return self._state(stateful)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state` in the next pass, whatever the number of ranks, workers and samples per batch.

        Raises:
            StateError: If the state belongs to another dataset, seed, order or version.
            RuntimeError: If neither the dataset nor the batch sampler is torchslip's.
        """
        stateful = self._stateful()
        if stateful is None:
            raise RuntimeError(_NO_STATE)
        stateful.load_state_dict(state)
        cursor = Cursor.from_state_dict(state, expected=stateful.fingerprints)
        self._epoch, self._start, self._delivered, self._pass = cursor.epoch, cursor.position, 0, "loaded"

    def _stateful(self) -> OrderedDataset[Any] | DistributedBatchSampler | None:
        for each in (self.dataset, self.batch_sampler):
            if isinstance(each, OrderedDataset | DistributedBatchSampler):
                return each
        return None

    def _upcoming(self, stateful: OrderedDataset[Any] | DistributedBatchSampler) -> tuple[int, int]:
        """Where the next pass begins: what the loader would do, unless the dataset or sampler was told otherwise."""
        begun = self._pass == "begun"
        own = (self._epoch + 1, 0) if begun else (self._epoch, self._start)
        # Workers that have delivered nothing may not have begun the pass yet.
        not_yet = (self._epoch, self._start) if begun and not self._delivered else own
        return own if stateful.upcoming in (own, not_yet) else stateful.upcoming

    def _state(self, stateful: OrderedDataset[Any] | DistributedBatchSampler) -> dict[str, Any]:
        position = stateful.share.end(self._start, self._delivered)
        return Cursor(self._epoch, position, stateful.fingerprints).state_dict()


def _with_one_batch_size(
    dataset: StreamingDataset, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The loader's arguments with the batch size of the dataset, or the dataset with that of the loader."""
    given = args[0] if args else kwargs.get("batch_size")
    if dataset.batch_size is None:
        dataset.batch_size = given
    size = dataset.batch_size
    if size is None or given not in (None, size):
        raise ValueError(
            f"A StreamingDataset and its loader have one batch size; the dataset has {size}, the loader {given}. Give "
            "batch_size to one of them."
        )
    return args[1:], kwargs | {"batch_size": size}


def _check_prefetch(sampler: LeaseSampler, loader: DataLoader) -> None:
    drawn_ahead = loader.num_workers * (loader.prefetch_factor or 0)
    if drawn_ahead >= sampler.lease_batches:
        raise ValueError(
            f"num_workers * prefetch_factor is {drawn_ahead}, so that {drawn_ahead + 1} batches are in hand at a time; "
            f"the LeaseSampler allows lease_batches={sampler.lease_batches}. Pass a larger lease_batches, or fewer "
            "workers."
        )
    if not getattr(loader, "in_order", True):
        raise ValueError("A LeaseSampler acknowledges batches in their order: it needs in_order=True.")
