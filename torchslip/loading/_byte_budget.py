"""Bytes in flight: never more than the cap, and never a deadlock.

Room is reserved in the order in which batches are delivered, so whatever is in flight is older than whatever waits.
The oldest batch that was not delivered therefore always gets done, however small the cap is.

The account lies in shared memory and has no lock, so that a killed worker leaves nothing locked. Each worker has a row:

* ``pass``, which pass it is in, and ``next``, the first position of the batch that it will reserve next. Only the
  worker with the smallest ``next`` may reserve, so only one process at a time adds to the account;
* slots, one for each of its batches in flight: their bytes, and whose they are. A worker fills a slot; whoever lets go
  of the batch, mostly the main process, sets it to 0. Nobody reads, changes and writes a word that another may write.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchslip.errors import MemoryLimitError
from torchslip.loading._deliveries import Deliveries, Delivery
from torchslip.loading._limits import Limits

__all__ = ["AbandonedError", "ByteBudget", "Lease"]

_proof = logging.getLogger("torchslip.proof")

_WORKERS, _SLOTS = 512, 64
_WORDS = 6  # of a worker besides its slots: pass, next, knobs, how often they were adjusted
_KNOBS = ("prefetch_batches", "max_queue_batches", "want")
_POSITION_BITS, _PASS_BITS = 41, 22
_POSITION_MASK = (1 << _POSITION_BITS) - 1
_FREE, _LAST = -1, (1 << 62)

_KEY, _HIGH_WATER, _OPENED, _CLOSED, _GUIDED, _ASKING, _HELD = range(7)
_STATE, _MEMORY, _MEMORY_HIGH, _THROTTLED = range(7, 11)
_HEADER = 16

_FIRST_NAP_SECONDS, _LONGEST_NAP_SECONDS = 0.0002, 0.005
_STALLED_SECONDS = 10.0
_MEMORY_STATES = ("free", "throttled", "exceeded")

_known: weakref.WeakValueDictionary[int, ByteBudget] = weakref.WeakValueDictionary()


class AbandonedError(Exception):
    """The pass is over: nobody will take the batch that room was asked for."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Room for one batch: where its bytes are counted."""

    worker: int
    slot: int
    owner: int


class ByteBudget:
    """Room for batches, shared by the workers of a loader.

    A batch counts from before its first byte is read until it is freed, or until the next batch was handed over. While
    the consumer waits for the next one and there is no room for it in any other way, the one that it got last does not
    count: so a cap of a single batch works, and a cap of two or more holds with the batch that a loop variable keeps.
    Under a loader that is not ours nobody says when a batch is handed over or waited for; there it counts until it is
    freed, or until nothing has moved for ten seconds.

    Args:
        limits: The caps.
        deliveries: Counts what arrives where nobody says what is handed over, see `open`.
        alone: Whether producer and consumer are one process; that needs no shared memory.
    """

    def __init__(self, limits: Limits, deliveries: Deliveries, *, alone: bool = False) -> None:
        self.limits, self.deliveries = limits, deliveries
        self._alone = alone
        rows = 1 if alone else _WORKERS
        self._shared = torch.zeros(_HEADER + rows * (_WORDS + 3 * _SLOTS), dtype=torch.int64)
        if not alone:
            self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._bind()
        self._rows[:] = _FREE
        self._owners[:] = _FREE
        self._header[_HELD] = self._header[_GUIDED] = _FREE
        self._name()

    def _bind(self) -> None:
        words = self._shared.numpy()
        rows = (len(words) - _HEADER) // (_WORDS + 3 * _SLOTS)
        self._header = words[:_HEADER]
        self._rows, self._bytes, self._owners, self._arrived = (
            part.reshape(rows, -1)
            for part in np.split(words[_HEADER:], [(_WORDS + each * _SLOTS) * rows for each in range(3)])
        )
        self._worker, self._count, self._pass, self._opened, self._next_slot = 0, 1, 0, 0, 0
        self._parent = os.getppid()

    def _name(self) -> None:
        self._header[_KEY] = int.from_bytes(os.urandom(7), "little")
        _known[self.key] = self

    # -- both sides

    @property
    def key(self) -> int:
        """Names this account in every process that shares it."""
        return int(self._header[_KEY])

    @staticmethod
    def known(key: int) -> ByteBudget | None:
        """The account of that name in this process."""
        return _known.get(key)

    @property
    def inflight_bytes(self) -> int:
        """Bytes in flight now."""
        return int(self._bytes.sum())

    @property
    def high_water_bytes(self) -> int:
        """The most that ever were in flight."""
        return int(self._header[_HIGH_WATER])

    def release(self, lease: Lease) -> None:
        """Let go of a batch; once is enough, and more often does no harm."""
        if self._owners[lease.worker, lease.slot] == lease.owner:
            self._bytes[lease.worker, lease.slot] = 0
            self._owners[lease.worker, lease.slot] = _FREE

    def shrink(self, lease: Lease, size: int) -> None:
        """A batch turned out to be no larger than `size`."""
        if self._owners[lease.worker, lease.slot] == lease.owner:
            self._bytes[lease.worker, lease.slot] = min(size, int(self._bytes[lease.worker, lease.slot]))

    def absorb(self, other: ByteBudget) -> None:
        """Take over the figures of a pass that had an account of its own."""
        self._header[_HIGH_WATER] = max(self.high_water_bytes, other.high_water_bytes)
        self._header[_MEMORY] = other.memory_bytes[0]
        self._header[_MEMORY_HIGH] = max(self.memory_bytes[1], other.memory_bytes[1])
        self._rows[:, 2:] = _FREE
        self._rows[0, 2:] = other._rows[0, 2:]

    # -- the side of the consumer

    def open(self) -> int:
        """Begin a pass whose consumer says what it does: `ask`, `hand_over`, `close`.

        Returns:
            The number of the pass, for `close`.
        """
        self._header[_OPENED] += 1
        self._header[_GUIDED] = self._header[_OPENED]
        return int(self._header[_OPENED])

    def close(self, number: int) -> None:
        """End a pass, whether or not all of it was delivered: its workers stop waiting."""
        self._header[_CLOSED] = number
        if self._header[_OPENED] == number:
            self._header[_OPENED] = number + 1
        self._header[_ASKING] = 0
        self._let_go(int(self._header[_HELD]))
        self._header[_HELD] = _FREE

    def ask(self) -> None:
        """The consumer waits for the next batch."""
        self._header[_ASKING] = 1

    def hand_over(self, position: int) -> None:
        """The consumer gets the batch that begins at `position`, and with it lets go of the one before."""
        self._header[_ASKING] = 0
        before, self._header[_HELD] = int(self._header[_HELD]), position
        if before != position:
            self._let_go(before)

    def arrived(self, delivery: Delivery, lease: Lease) -> None:
        """A batch has come to the process of the consumer."""
        self._arrived[lease.worker, lease.slot] = 1
        if self._header[_GUIDED] != self._header[_OPENED]:
            self.deliveries.add(delivery, self.inflight_bytes)

    def _let_go(self, position: int) -> None:
        if position != _FREE:
            for worker, slot in zip(*np.nonzero(self._owners & _POSITION_MASK == position), strict=True):
                # A free slot's owner is -1, whose last bits are all set.
                if self._owners[worker, slot] != _FREE:
                    self.release(Lease(int(worker), int(slot), int(self._owners[worker, slot])))

    # -- the side of the producers

    @property
    def workers(self) -> int:
        """How many processes share it in this pass."""
        return self._count

    def begin(self, token: int, *, worker: int = 0, workers: int = 1) -> None:
        """This process begins a pass.

        Args:
            token: Names the pass: the same in all workers.
            worker: Which of them this is.
            workers: How many there are.
        """
        if worker >= len(self._rows):
            raise ValueError(f"A memory cap can be shared by {len(self._rows)} workers at most, not by {workers}.")
        self._worker, self._count = worker, workers
        self._pass = token & ((1 << _PASS_BITS) - 1)
        self._opened = int(self._header[_OPENED])
        self._parent = os.getppid()
        # What earlier passes, or killed workers, left in this row is not in this loader's hands any more.
        self._rows[worker, 1] = _FREE
        self._owners[worker], self._bytes[worker] = _FREE, 0
        self._rows[worker, 2:] = _FREE
        if worker == 0:
            self._rows[workers:, 2:] = _FREE
            self._owners[workers:], self._bytes[workers:] = _FREE, 0
        self._rows[worker, 0] = self._pass

    def report_knobs(self, knobs: Mapping[str, int], adjustments: int) -> None:
        """Say where the knobs of this process stand, and how often they were moved."""
        self._rows[self._worker, 2:] = (*(knobs[name] for name in _KNOBS), adjustments)

    @property
    def knobs(self) -> dict[str, int]:
        """Where the knobs stand in the process that has gone furthest; without a pass yet, where they begin."""
        most = self._rows[:, 2:5].max(axis=0).tolist()
        return {name: value if value > 0 else self.limits.knobs[name] for name, value in zip(_KNOBS, most, strict=True)}

    @property
    def adjustments(self) -> int:
        """How often all processes together have moved a knob in their latest pass."""
        return int(np.maximum(self._rows[:, 5], 0).sum())

    def end(self) -> None:
        """This process reserves nothing more."""
        if self._rows[self._worker, 0] == self._pass:
            self._rows[self._worker, 1] = _LAST

    @property
    def guided(self) -> bool:
        """Whether the consumer of this pass tells what it does, see `open`."""
        return self._alone or bool(self._header[_GUIDED] == self._opened)

    def reserve(self, position: int, size: int, *, then: int | None) -> Lease:
        """Wait for the turn of this batch and for room.

        Args:
            position: The first position of its step; batches are delivered in this order.
            size: Its bytes.
            then: The position of the next batch of this worker; None if there is none.

        Raises:
            AbandonedError: If the pass is over.
            MemoryLimitError: If the process tree has reached its hard limit, or the batch is larger than the cap.
        """
        if size > self.limits.max_inflight_bytes:
            raise MemoryLimitError(
                f"A batch needs {size} bytes, more than max_inflight_bytes={self.limits.max_inflight_bytes}. Raise it, "
                "or make batches smaller."
            )
        mine = self._rows[self._worker]
        mine[1] = position
        nap, began = _FIRST_NAP_SECONDS, time.monotonic()
        while True:
            self._check_pass()
            if self._is_first(position) and (slot := self._slot_for(size)) is not None:
                break
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP_SECONDS)
            if not self.guided and time.monotonic() - began > _STALLED_SECONDS:
                self._let_go_of_arrived(size)
                began = time.monotonic()
        lease = Lease(self._worker, slot, self._pass << _POSITION_BITS | position & _POSITION_MASK)
        self._arrived[self._worker, slot] = 0
        self._owners[self._worker, slot] = lease.owner
        self._bytes[self._worker, slot] = size
        self._header[_HIGH_WATER] = max(int(self._header[_HIGH_WATER]), self.inflight_bytes)
        mine[1] = _LAST if then is None else then
        return lease

    def _check_pass(self) -> None:
        if self._header[_CLOSED] >= self._opened > 0 or (not self._alone and os.getppid() != self._parent):
            raise AbandonedError
        if self._rows[self._worker, 0] != self._pass:
            raise AbandonedError  # a later pass has begun in this worker
        self.check_memory()

    def _is_first(self, position: int) -> bool:
        rows = self._rows[: self._count]
        return bool((rows[:, 0] == self._pass).all() and rows[:, 1].min() == position)

    def _slot_for(self, size: int) -> int | None:
        """A free slot of this worker, if there is room."""
        free = np.flatnonzero(self._owners[self._worker] == _FREE)
        if not len(free):
            return None
        limit, inflight = self.limits.max_inflight_bytes, self.inflight_bytes
        if self._header[_STATE] == _MEMORY_STATES.index("throttled"):
            # The batch that the consumer holds, and the next one.
            limit = min(limit, 2 * max(size, int(self._bytes.max())))
            self._header[_THROTTLED] += int(inflight + size > limit)
        if inflight + size > limit:
            held = int(self._header[_HELD])
            others = self._bytes[(self._owners != _FREE) & (self._owners & _POSITION_MASK != held)]
            if not self._header[_ASKING] or others.any():
                return None
            self._let_go(held)
            if self.inflight_bytes + size > limit:
                return None
        # In turn, so that nobody who lets go of a batch twice can hit a later one.
        slot = int(free[np.searchsorted(free, self._next_slot) % len(free)])
        self._next_slot = slot + 1
        return slot

    def _let_go_of_arrived(self, size: int) -> None:
        """Go on although the consumer keeps batches, where nobody says whether it waits: each of them counts no more.

        In a long pause of a consumer that waits for nothing this lets in as much as has arrived there, once.
        """
        arrived = (self._owners != _FREE) & (self._arrived == 1)
        if not arrived.any():
            return
        event = {
            "event": "byte_budget_stalled",
            "waiting_bytes": size,
            "inflight_bytes": self.inflight_bytes,
            "kept_bytes": int(self._bytes[arrived].sum()),
            "max_inflight_bytes": self.limits.max_inflight_bytes,
            "advice": "batches count until they are freed: keep fewer, use ts.DataLoader, or raise max_inflight_bytes",
        }
        _proof.warning("%s", event)
        for worker, slot in zip(*np.nonzero(arrived), strict=True):
            self.release(Lease(int(worker), int(slot), int(self._owners[worker, slot])))

    # -- the memory of the process tree, see `MemoryGuard`

    def report_memory(self, used_bytes: int, state: str) -> None:
        """Say how much memory the process tree uses, and whether that is ``free``, ``throttled`` or ``exceeded``."""
        self._header[_MEMORY] = used_bytes
        self._header[_MEMORY_HIGH] = max(int(self._header[_MEMORY_HIGH]), used_bytes)
        self._header[_STATE] = _MEMORY_STATES.index(state)

    def check_memory(self) -> None:
        """Raise if the process tree has reached its hard limit.

        Raises:
            MemoryLimitError: With the figures, and what to change.
        """
        if self._header[_STATE] == _MEMORY_STATES.index("exceeded"):
            limits = self.limits
            raise MemoryLimitError(
                f"The process and its workers use {self.memory_bytes[0]} bytes, more than the {limits.max_ram_bytes} "
                f"that {limits.ram_knob} allows. Batches in flight have {self.inflight_bytes} of them "
                f"(max_inflight_bytes={limits.max_inflight_bytes}). Raise {limits.ram_knob.split()[0]}, or use fewer "
                "workers, smaller batches, or less memory elsewhere."
            )

    @property
    def memory_bytes(self) -> tuple[int, int]:
        """What the process tree used when it was last looked at, and the most that it ever did."""
        return int(self._header[_MEMORY]), int(self._header[_MEMORY_HIGH])

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits, "deliveries": self.deliveries, "_alone": self._alone, "_shared": self._shared}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._alone and not self._shared.is_shared():  # type: ignore[no-untyped-call]
            # A copy made by pickle or deepcopy: an account of its own.
            self._shared.share_memory_()  # type: ignore[no-untyped-call]
            self._bind()
            self._name()
        else:
            self._bind()
            _known[self.key] = self
