"""Batches of sample ids that ranks take as they can, so that slow, dead and late ranks lose nothing."""

from __future__ import annotations

import operator
import os
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from torchslip.order._lease_holder import LeaseHolder
from torchslip.order._lease_pass import COUNTS, LeasePass
from torchslip.order._lease_plan import LeasePlan
from torchslip.order._lease_store import open_lease_store
from torchslip.order._order import Fingerprint, Order
from torchslip.order._sampler import IndexBatch
from torchslip.order._topology import Topology

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Exact", "LeaseSampler"]

Exact = Literal["at_least_once", "at_most_once"]

_SEGMENTS_PER_RANK = 4


class LeaseSampler(Sampler[list[int]]):
    """Ranks take leases on ranges of an epoch, and what a dead rank leaves is taken over by the others.

    ::

        sampler = ts.LeaseSampler(ts.Sequential(len(dataset)), batch_size=64, job="thumbnails")
        for batch in ts.DataLoader(dataset, batch_sampler=sampler, num_workers=8):
            ...                                     # acknowledged when the next batch is asked for

    For ETL and inference: ranks may join and leave at any time, fast ones do more, and every sample is processed by
    somebody. The number of batches differs between ranks, so for training in `DistributedDataParallel` use
    `DistributedBatchSampler`, or ``exact="at_most_once"`` within torch's `Join`.

    A batch is acknowledged when it was consumed. With `ts.DataLoader` this happens by itself; with a plain
    `DataLoader` iterate ``sampler.consume(loader)``, or call `ack` after each batch, or pass `prefetch`.

    How many batches a rank will get is not known before, so there is no `len`. Every pass takes the next epoch;
    `set_epoch` chooses another. An epoch that was finished stays finished in its
    store: to do a job again, give it another name.

    Args:
        order: Which sample stands at which position.
        batch_size: Samples per batch. Batch k holds positions ``[k * batch_size, (k + 1) * batch_size)``, whoever gets
            it.
        store: Where leases are kept: a `torch.distributed.TCPStore`, `HashStore` or `PrefixStore`, or the path of a
            file that all processes see (a `FileStore` is taken as the path of such a file, plus ``.leases``). Default:
            the store of the process group.
        job: Names the work; processes that say the same name share it.
        exact: ``at_least_once``: what a dead rank had in hand is done again, and a pass ends when every sample was
            acknowledged. ``at_most_once``: it is not, and a pass ends when this rank can get no more.
        want: Leases with batches left that a rank tries to have.
        lease_batches: Batches in a lease, at most. More mean fewer operations on the store. It is also how many batches
            may be in hand, handed out and not acknowledged, and so how many are repeated at most when a rank dies; with
            workers it must be larger than ``num_workers * prefetch_factor``.
        ttl_seconds: A rank that gives no sign for so long has lost its leases. A thread gives signs while a step lasts.
        stall_seconds: A rank that has neither asked for a batch nor acknowledged one for so long stops giving signs.
        prefetch: For a plain `DataLoader` without calls of `ack`: ``num_workers * prefetch_factor`` of it. Batches that
            were drawn longer ago than that are taken as consumed.
        store_timeout_seconds: A store that does not answer for so long is an error.
        world_size: About how many processes share the work, which may change at any time: leases of a small epoch are
            made so short that there are some for each. Default: `torch.distributed` if it is initialised, else 1.
        fingerprint: Identifies the dataset, so that two datasets do not share one job.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        store: Store | str | os.PathLike[str] | None = None,
        job: str = "default",
        exact: Exact = "at_least_once",
        want: int = 1,
        lease_batches: int = 64,
        ttl_seconds: float = 10.0,
        stall_seconds: float = 600.0,
        prefetch: int | None = None,
        store_timeout_seconds: float = 30.0,
        world_size: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        counts = {"batch_size": batch_size, "want": want, "lease_batches": lease_batches, "world_size": world_size or 1}
        for name, value in counts.items():
            if operator.index(value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for name, seconds in (
            ("ttl_seconds", ttl_seconds),
            ("stall_seconds", stall_seconds),
            ("store_timeout_seconds", store_timeout_seconds),
        ):
            if not seconds > 0:
                raise ValueError(f"{name} must be more than 0, got {seconds}.")
        if exact not in get_args(Exact):
            raise ValueError(
                f"exact must be one of {', '.join(get_args(Exact))}; got {exact!r}. For the same number of batches on "
                "every rank use DistributedBatchSampler."
            )
        if prefetch is not None and not 0 <= prefetch < lease_batches:
            raise ValueError(f"prefetch must lie in [0, lease_batches), got {prefetch=} and {lease_batches=}.")
        self.order = order
        self.lease_batches = lease_batches
        self._batch_size, self._store, self._job, self._exact = batch_size, store, job, exact
        self._want, self._prefetch = want, prefetch
        self._ttl, self._stall, self._store_timeout = ttl_seconds, stall_seconds, store_timeout_seconds
        self._world_size = world_size
        self.fingerprints: Fingerprint = {"source": fingerprint, **order.fingerprint}
        """Identifies the dataset and the order in the store."""
        self._epoch = 0
        self._has_begun = False
        self._pass: LeasePass | None = None
        self._goes_on = False

    def __repr__(self) -> str:
        return f"LeaseSampler({self.order!r}, batch_size={self._batch_size}, job={self._job!r}, exact={self._exact!r})"

    @property
    def epoch(self) -> int:
        """The epoch of the latest pass, or the one that `set_epoch` has named since."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass with `epoch`: at its start, or with what others have left of it."""
        epoch = operator.index(epoch)
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}.")
        self._epoch, self._has_begun = epoch, False

    def __iter__(self) -> Iterator[list[int]]:
        return _Draws(self)

    def consume(self, loader: Iterable[Any] | Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The batches of a loader that draws from this sampler, each acknowledged when the next one is asked for.

        When the loader comes to its end, it is begun again for what other ranks leave unfinished, until the epoch is
        done. Batches that others have taken over in the meantime are left out. Leaving the loop early gives all leases
        back at once.

        Args:
            loader: A `DataLoader` with this sampler as ``batch_sampler``, or a function that begins one.
        """
        begin = loader if callable(loader) else loader.__iter__
        before, current = self._pass, None
        try:
            while True:
                for batch in begin():
                    current = self._latest()
                    if current.drop_lost():
                        continue
                    acknowledged = current.acknowledged
                    yield batch
                    if current.acknowledged == acknowledged:
                        current.acknowledge(1)
                current = self._latest()
                if not current.wait_for_lease():
                    return
                self._goes_on = True
        except Exception:
            # The first batch may have failed after it was drawn.
            current = self._pass if self._pass is not before else current
            raise
        finally:
            self._goes_on = False
            if current is not None:
                current.close()

    def ack(self, batches: int = 1) -> bool:
        """The oldest `batches` batches that were handed out have been consumed, and need not be done again.

        A result that may be written only once should be written when this has returned True.

        Returns:
            False if this rank had lost the lease of one of them, because it gave no sign for `ttl_seconds`: then
            another rank does that batch too.

        Raises:
            ValueError: If fewer batches are in hand.
            ConnectionError: If the store does not answer.
        """
        return self._latest().acknowledge(batches)

    def stats(self) -> dict[str, int | float]:
        """Counts of this rank in its latest pass.

        ``batches``, ``samples`` and ``replayed_batches`` that were handed out; ``acknowledged_batches``,
        ``acknowledged_samples``, ``outstanding_batches`` and ``late_batches``, which others had taken over;
        ``active_leases``, ``leases_granted``, ``leases_completed``, ``leases_expired`` that it took from dead ranks,
        ``leases_split`` that it shared with live ones, ``leases_lost`` to others, ``ranges_requeued``; ``heartbeats``,
        ``store_operations`` and ``wait_seconds`` in which there was nothing to do.
        """
        return dict.fromkeys(COUNTS, 0) if self._pass is None else self._pass.stats()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pass": None, "_goes_on": False}

    def _latest(self) -> LeasePass:
        if self._pass is None:
            raise RuntimeError("No batch was handed out: iterate over a DataLoader with this sampler first.")
        return self._pass

    def _begin(self) -> LeasePass:
        """The pass that an iterator which is now asked for its first batch belongs to."""
        if self._goes_on and self._pass is not None:
            return self._pass
        if self._pass is not None:
            self._pass.close()
        if self._has_begun:
            self._epoch += 1
        self._has_begun = True
        self._pass = self._open()
        return self._pass

    def _open(self) -> LeasePass:
        topology = Topology.resolve(None, None)
        ranks = topology.world_size if self._world_size is None else self._world_size
        store = open_lease_store(self._store, job=self._job, deadline_seconds=self._store_timeout)
        batches = -(-len(self.order) // self._batch_size)
        plan = LeasePlan(
            length=len(self.order),
            batch_size=self._batch_size,
            lease_batches=min(self.lease_batches, -(-batches // (_SEGMENTS_PER_RANK * ranks)) or 1),
            fingerprint={"exact": self._exact, **self.fingerprints},
            nonce=uuid.uuid4().hex,
        )
        agreed = store.compare_set("plan", None, plan.encode()) or plan.encode()
        store.guard("plan", agreed)
        holder = LeaseHolder(
            plan.agreed(agreed, self._job),
            epoch=self._epoch,
            holder=f"{topology.rank}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            ttl_seconds=self._ttl,
            want=self._want,
            replay=self._exact == "at_least_once",
        )
        return LeasePass(
            holder,
            store,
            job=self._job,
            in_hand=self.lease_batches,
            prefetch=self._prefetch,
            ttl_seconds=self._ttl,
            stall_seconds=self._stall,
        )


class _Draws:
    """What a loader draws from. After it has ended it may go on: torch's loaders ask again with every batch."""

    def __init__(self, sampler: LeaseSampler) -> None:
        self._sampler = sampler
        self._pass: LeasePass | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        # A loader may make several iterators and use one (torch 2.15 with workers), so the pass begins here.
        if self._pass is None:
            self._pass = self._sampler._begin()
            self._pass.iterators += 1
            weakref.finalize(self, self._pass.leave)
        batch = self._pass.draw()
        if batch is None:
            raise StopIteration
        ids = self._sampler.order.at(np.arange(batch.begin, batch.end), epoch=self._pass.epoch)
        return IndexBatch(ids, epoch=self._pass.epoch, valid=None, key=batch.begin, replayed=batch.replayed)
