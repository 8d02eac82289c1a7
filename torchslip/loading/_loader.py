"""`ts.DataLoader`: torch's, with one global state for any number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.utils.data
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._byte_plan import ByteShare
from torchslip.loading._bytes import BytesDataset
from torchslip.loading._dataset import ImageDataset
from torchslip.loading._feed import DecodePlace, Feed
from torchslip.loading._handover import Handover
from torchslip.loading._limits import Constraints, ProfileName
from torchslip.loading._map_dataset import ImageMapDataset, collate
from torchslip.loading._ordered import OrderedDataset
from torchslip.loading._streaming import StreamingDataset
from torchslip.order import Cursor, DistributedBatchSampler, LeaseSampler, Share

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

    With `max_ram_gb`, `constraints` or `profile` it holds a cap on the bytes of an `ImageDataset`'s batches, over all
    workers, see ``docs/memory.md``; ``prefetch_factor`` follows from the cap where it is not given.

    With `device` it brings batches there, one ahead of the training loop, see ``docs/device.md``::

        ts.DataLoader(train, num_workers=8, device="cuda", augment=ts.augment.Normalize())

    Args:
        dataset: As torch's.
        args: As torch's.
        device: Where the tensors of batches go, such as ``"cuda"``, the GPU that is current when iteration begins. They
            are copied through pinned memory beside the work of the training loop. None: they stay where they are.
        augment: Called with each batch in the main process, on `device`, for example a `torchslip.augment` transform:
            a batch in, a batch out.
        decode: ``workers`` decode pictures; with ``device`` they ship the encoded bytes, and the main process decodes
            them on `device`: by the dataset's `decoder`, where ``auto`` is DALI on a GPU if it is installed, else
            torchvision, which uses nvJPEG too.
        max_ram_gb: See `ImageDataset`.
        constraints: See `ImageDataset`.
        profile: See `ImageDataset`.
        kwargs: As torch's.

    Raises:
        ValueError: If a `batch_size` is given for a dataset that makes its own batches, or another one than the
            dataset's; if arguments exclude each other.
        RuntimeError: If `device` is a GPU and torch sees none.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset[Any],
        *args: Any,
        device: str | torch.device | None = None,
        augment: Callable[[Any], Any] | None = None,
        decode: DecodePlace = "workers",
        max_ram_gb: float | None = None,
        constraints: Constraints | None = None,
        profile: ProfileName | None = None,
        **kwargs: Any,
    ) -> None:
        if (max_ram_gb, constraints, profile) != (None, None, None):
            if not isinstance(dataset, ImageDataset):
                raise ValueError(
                    f"ts.DataLoader limits the memory of an ImageDataset; a BytesDataset takes max_ram_gb, constraints "
                    f"and profile itself. Got a {type(dataset).__name__}."
                )
            dataset.limit_memory(max_ram_gb=max_ram_gb, constraints=constraints, profile=profile or "balanced")
        if isinstance(dataset, ImageDataset | BytesDataset):
            if args or kwargs.get("batch_size") is not None:
                name = type(dataset).__name__
                raise ValueError(
                    f"The batch size belongs to the dataset: {name}(..., batch_size=N) makes finished batches. "
                    "Leave it out of ts.DataLoader and pass the other arguments by name."
                )
            if dataset.batch_size is None:
                raise ValueError(
                    "ts.DataLoader needs an ImageDataset that makes batches: pass batch_size=N to the dataset, or use "
                    "torch.utils.data.DataLoader(dataset, batch_size=N) for single samples."
                )
            kwargs["batch_size"] = None
            if isinstance(dataset, ImageDataset) and dataset.budget is not None and decode == "workers":
                kwargs |= _prefetch(dataset, dataset.budget, kwargs)
        elif isinstance(dataset, StreamingDataset):
            args, kwargs = _with_one_batch_size(dataset, args, kwargs)
        elif isinstance(dataset, ImageMapDataset):
            kwargs.setdefault("collate_fn", collate)
        batcher = dataset._batcher if isinstance(dataset, ImageDataset | ImageMapDataset) else None
        self._feed = Feed(device=device, augment=augment, decode=decode, batcher=batcher)
        if device is not None and kwargs.get("pin_memory"):
            raise ValueError("device= copies through pinned memory of its own: leave pin_memory out.")
        if decode == "device" and kwargs.get("collate_fn", collate) is not collate:
            raise ValueError("decode='device' needs the batches of the dataset as they are: leave collate_fn out.")
        super().__init__(dataset, *args, **kwargs)
        if isinstance(self.batch_sampler, LeaseSampler):
            _check_prefetch(self.batch_sampler, self, self._feed.ahead)
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
            return self.batch_sampler.consume(lambda: self._count(self._begin()))
        stateful = self._stateful()
        if stateful is None:
            return self._count(self._begin())
        self._epoch, self._start = self._upcoming(stateful)
        # A state from the end of its epoch goes on with the next one, unless `set_epoch` named the old one.
        if self._pass == "loaded" and not self._share(stateful).count(self._start):
            self._epoch, self._start = self._epoch + 1, 0
        self._pass, self._delivered = "begun", 0
        stateful.load_state_dict(self._state(stateful))
        stateful.set_epoch(self._epoch)
        budget = getattr(self.dataset, "budget", None)
        if budget is None or not self.num_workers:
            return self._count(self._begin())
        share, start = self._share(stateful), self._start
        # Opened before the workers begin.
        handover = Handover(budget, lambda number: share.first_position(start, number))
        return self._count(self._begin(), handover)

    def _begin(self) -> Iterator[Any]:
        with self._feed.making():
            batches: Iterator[Any] = super().__iter__()
        return batches

    def _count(self, batches: Iterator[Any], handover: Handover | None = None) -> Iterator[Any]:
        """What the training loop gets; what was taken ahead for it is not delivered."""
        with contextlib.closing(self._feed(self._take(batches, handover))) as delivered:
            while True:
                try:
                    taken = [next(delivered)]
                except StopIteration:
                    return
                self._delivered += 1
                yield taken.pop()  # so that the consumer's reference is the last one

    def _take(self, batches: Iterator[Any], handover: Handover | None) -> Iterator[Any]:
        """The batches of the workers; each is let go of before the next one is asked for."""
        try:
            while True:
                if handover is not None:
                    handover.ask()
                try:
                    with self._feed.making():
                        taken = [next(batches)]
                except StopIteration:
                    return
                if handover is not None:
                    handover.take(taken[0])
                yield taken.pop()  # so that the consumer's reference is the last one
        except Exception:
            # The traceback keeps the iterator in a reference cycle, and when the garbage collector finds it, the queues
            # that tell workers to end are gone already: torch then waits 5 seconds for each worker (2.15).
            if handover is not None:
                handover.close()  # a worker that waits for room would be waited for too
            if isinstance(batches, _MultiProcessingDataLoaderIter):
                batches._shutdown_workers()
                self._iterator = None
            raise
        finally:
            if handover is not None:
                handover.close()

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

    def _share(self, stateful: OrderedDataset[Any] | DistributedBatchSampler) -> Share | ByteShare:
        return stateful.share_of(self._epoch) if isinstance(stateful, OrderedDataset) else stateful.share

    def _state(self, stateful: OrderedDataset[Any] | DistributedBatchSampler) -> dict[str, Any]:
        position = self._share(stateful).end(self._start, self._delivered)
        return Cursor(self._epoch, position, stateful.fingerprints).state_dict()


def _prefetch(dataset: ImageDataset, budget: ByteBudget, kwargs: dict[str, Any]) -> dict[str, Any]:
    """How many batches to prefetch under a cap; and refuse one that holds not even one batch."""
    cap, batch = budget.limits.max_inflight_bytes, dataset.batch_bytes
    if batch is None:
        return {}
    if batch > cap:
        raise ValueError(
            f"max_inflight_bytes={cap} cannot hold one batch: {dataset.batch_size} samples have {batch} bytes. Raise "
            "it, use a smaller batch_size, or smaller views."
        )
    workers = kwargs.get("num_workers", 0)
    if not workers or kwargs.get("prefetch_factor") is not None:
        return {}
    # One batch is in the hands of the training loop. More than torch's 2 would only cost memory.
    return {"prefetch_factor": max(1, min(2, (cap // batch - 1) // workers))}


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


def _check_prefetch(sampler: LeaseSampler, loader: DataLoader, ahead: int) -> None:
    drawn_ahead = loader.num_workers * (loader.prefetch_factor or 0) + ahead
    if drawn_ahead >= sampler.lease_batches:
        raise ValueError(
            f"num_workers * prefetch_factor is {drawn_ahead}, so that {drawn_ahead + 1} batches are in hand at a time; "
            f"the LeaseSampler allows lease_batches={sampler.lease_batches}. Pass a larger lease_batches, or fewer "
            "workers."
        )
    if not getattr(loader, "in_order", True):
        raise ValueError("A LeaseSampler acknowledges batches in their order: it needs in_order=True.")
