"""What iterable datasets have in common: an order, a share of it, epochs and states."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from torchslip.errors import StateError
from torchslip.loading._account import Account
from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._byte_plan import ByteShare
from torchslip.loading._clock import Pass, PassClock
from torchslip.loading._deliveries import Deliveries
from torchslip.loading._limits import Constraints, Limits, ProfileName, derive_limits
from torchslip.loading._memory_guard import this_machine, tree_memory_bytes
from torchslip.loading._outlook import Outlook
from torchslip.order import Cursor, Fingerprint, Order, Share, Tail, Topology, check_global_batch

__all__ = ["BatchPlan", "OrderedDataset", "Progress"]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One batch of this rank, before anything is read.

    Attributes:
        ids: The sample ids, int64 ``[B]``.
        epoch: The epoch it belongs to.
        key: The first position of the global batch: equal on all ranks.
        valid: False where ``tail="pad"`` repeats a sample, bool ``[B]``; None under other policies.
    """

    ids: npt.NDArray[np.int64]
    epoch: int
    key: int
    valid: npt.NDArray[np.bool_] | None


@dataclass(slots=True)
class Progress:
    """A pass in one process: it delivered batch `last` (counted from `start`) and `taken` samples of the batch after.

    Its next batch is `first` or later.
    """

    share: Share | ByteShare
    epoch: int
    start: int
    first: int
    last: int | None = None
    taken: int = 0

    @property
    def position(self) -> int:
        share = self.share
        whole = share.end(self.start, 0 if self.last is None else self.last + 1)
        return min(whole + self.taken * share.topology.world_size, max(whole, share.length))


class OrderedDataset(IterableDataset[T_co]):
    """An `IterableDataset` that goes through an order, divided over ranks and workers, and resumes.

    Every pass takes the next epoch; `set_epoch` chooses another. What is yielded for a batch is up to the subclass.

    Args:
        order: Which sample stands at which position.
        source_fingerprint: Identifies the data in saved states.
        batch_size: Samples per rank and batch; None: each sample by itself.
        tail: See `Share`.
        rank: This rank; default: `torch.distributed` if it is initialised when the dataset is used, else 0.
        world_size: The number of ranks; default: as for `rank`, else 1.

    Raises:
        ValueError: If arguments are out of range.
    """

    budget: ByteBudget | None = None
    """The account of the bytes in flight, if memory is limited."""

    _own_budget: ByteBudget | None = None

    _yields_samples = False
    """Whether `_read` gives one item for each sample of a batch, instead of one for all of it."""

    def __init__(
        self,
        order: Order,
        *,
        source_fingerprint: str,
        batch_size: int | None,
        tail: Tail,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        self.order = order
        self.batch_size = batch_size
        self._tail: Tail = tail
        self._rank, self._world_size = rank, world_size
        self.fingerprints: Fingerprint = {"source": source_fingerprint, **order.fingerprint}
        """Identifies the source and the order in saved states."""
        self._clock = PassClock()
        self._progress: Progress | None = None
        self._loaded: tuple[Pass, int | None] | None = None
        _ = self.share  # reports bad arguments here rather than in the first pass

    @abstractmethod
    def _read(self, plan: BatchPlan) -> Iterator[T_co]:
        """What to yield for one batch."""

    def _topology(self) -> Topology:
        return Topology.resolve(self._rank, self._world_size)

    @property
    def share(self) -> Share:
        """The division of the epoch over ranks, as the process group stands now."""
        batch_size = 1 if self.batch_size is None else self.batch_size
        return Share(len(self.order), batch_size, self._topology(), self._tail)

    def share_of(self, epoch: int) -> Share | ByteShare:
        """The division of `epoch`; only where batches have a size in bytes, epochs are divided differently."""
        return self.share

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

    def __iter__(self) -> Iterator[T_co]:
        # Not a generator: the pass begins now, so that a state taken before the first batch is right.
        share: object = self.share
        # Batches by bytes have no size that an order could be made for.
        if self.batch_size is not None and isinstance(share, Share):
            check_global_batch(self.order, share.global_batch)
        worker = get_worker_info()
        id_, count = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        loaded, self._loaded = self._loaded, None
        current = self._clock.begin(loaded[0] if loaded is not None else None)
        # The state of a worker stands behind its own last batch: the next count - 1 belong to the others.
        first = count - 1 if loaded is not None and loaded[1] is not None else id_
        progress = self._progress = Progress(self.share_of(current.epoch), current.epoch, current.position, first)
        return self._run(progress, count)

    def limit_memory(
        self,
        *,
        max_ram_gb: float | None = None,
        constraints: Constraints | None = None,
        profile: ProfileName = "balanced",
    ) -> Limits:
        """Hold a cap on the bytes of batches that are being made, wait, or are in the hands of the training loop.

        Raises:
            ValueError: If the arguments contradict each other or what the machine has, or if the dataset does not make
                its own batches.
        """
        if self._yields_samples or self.batch_size is None:
            raise ValueError("A memory cap needs a dataset that makes batches: give it a batch_size.")
        limits = derive_limits(this_machine(), profile=profile, max_ram_gb=max_ram_gb, constraints=constraints)
        self.budget = ByteBudget(limits, Deliveries())
        return limits

    def _bytes_of(self, plan: BatchPlan) -> int:
        """The most bytes that a batch takes while it is made; only asked where memory is limited."""
        raise NotImplementedError

    def memory_stats(self) -> dict[str, int]:
        """Bytes in flight and memory of the process tree, and their limits; empty if memory is not limited."""
        if self.budget is None:
            return {}
        budgets = [self.budget, *([self._own_budget] if self._own_budget else [])]
        memory = [budget.memory_bytes for budget in budgets]
        return {
            "inflight_bytes": sum(budget.inflight_bytes for budget in budgets),
            "inflight_bytes_high_water": max(budget.high_water_bytes for budget in budgets),
            "process_rss_bytes": max(used for used, _ in memory) or tree_memory_bytes(os.getpid()),
            "ram_high_water_bytes": max(most for _, most in memory),
            "max_inflight_bytes": self.budget.limits.max_inflight_bytes,
            "max_process_rss_bytes": self.budget.limits.max_ram_bytes,
        }

    def _run(self, progress: Progress, step: int) -> Iterator[T_co]:
        account = self._begin_account(step)
        try:
            yield from self._make(progress, step, account)
        finally:
            self._end_account(account)

    def _end_account(self, account: Account | None) -> None:
        if account is not None:
            account.close()
            if self._own_budget is account.budget:
                self._own_budget = None

    def _begin_account(self, step: int) -> Account | None:
        if self.budget is None:
            return None
        account = Account(self.budget, token=self._clock.token, workers=step)
        self._own_budget = account.budget if account.alone else None
        return account

    def _make(self, progress: Progress, step: int, account: Account | None) -> Iterator[T_co]:
        share = progress.share
        outlook = Outlook(getattr(self, "source", None), self.order, step=8 * step * self.share.global_batch)
        for number in range(progress.first, share.count(progress.start), step):
            part = share.batch(progress.start, number)
            outlook.at(share.first_position(progress.start, number), epoch=progress.epoch)
            if self.batch_size is None and not len(part.positions):
                return
            plan = BatchPlan(
                self.order.at(part.positions, epoch=progress.epoch),
                progress.epoch,
                share.first_position(progress.start, number),
                part.valid if share.tail == "pad" else None,
            )
            if account is not None:
                follows = number + step < share.count(progress.start)
                then = share.first_position(progress.start, number + step) if follows else None
                if not account.make_room(self._bytes_of(plan), plan.key, then):
                    return
            for taken, item in enumerate(self._read(plan), 1):
                if account is not None:
                    account.made(item, plan.key)
                if self._yields_samples and taken < len(plan.ids):
                    progress.taken = taken
                else:
                    progress.last, progress.taken = number, 0
                yield item

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
            epoch, position = progress.epoch, progress.position
            of_worker = None
            if worker is not None and progress.taken:
                raise RuntimeError(
                    f"The state was asked for after {progress.taken} samples of a batch of {self.batch_size}: the "
                    "DataLoader's batch_size must be that of the dataset."
                )
            if worker is not None and (progress.last is not None or progress.first != worker.id):
                of_worker = worker.num_workers
        state = Cursor(epoch, position, self.fingerprints).state_dict()
        return state if of_worker is None else state | {"workers": of_worker}

    def state_at(self, batches: int) -> dict[str, Any]:
        """The state after the first `batches` batches of the latest pass, however far the workers have run ahead."""
        latest = self._clock.latest
        position = self.share_of(latest.epoch).end(latest.position, batches)
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

    def _start_at(self, epoch: int, position: int) -> None:
        self._clock.set(epoch, position)
        self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no process group, so the topology travels with the dataset.
        state = {**self.__dict__, "_own_budget": None}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            topology = Topology.resolve(self._rank, self._world_size)
            state |= {"_rank": topology.rank, "_world_size": topology.world_size}
        return state
