"""One epoch on one rank: what lies between a batch sampler and the pure `LeaseHolder`."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import weakref
from typing import Any

from torchslip.errors import StateError
from torchslip.order._lease import LeasedBatch, OverlapError
from torchslip.order._lease_holder import LeaseHolder
from torchslip.order._lease_store import LeaseStore, Steps, T

__all__ = ["COUNTS", "LeasePass"]

_HEARTBEATS_PER_TTL = 6
_proof = logging.getLogger("torchslip.proof")


class LeasePass:
    """Asks the store what its holder wants to know, waits, keeps the heart beating, and writes the log.

    Args:
        holder: This rank's part in the epoch.
        store: Where the leases are kept.
        job: Appears in events.
        in_hand: How many batches may be handed out and not acknowledged.
        prefetch: See `LeaseSampler`.
        ttl_seconds: See `LeaseSampler`.
        stall_seconds: See `LeaseSampler`.
    """

    def __init__(
        self,
        holder: LeaseHolder,
        store: LeaseStore,
        *,
        job: str,
        in_hand: int,
        prefetch: int | None,
        ttl_seconds: float,
        stall_seconds: float,
    ) -> None:
        self.epoch = holder.epoch
        self.acknowledged = 0
        self.iterators = 0
        self._holder, self._store, self._job = holder, store, job
        self._in_hand, self._prefetch = in_hand, prefetch
        self._ttl, self._stall = ttl_seconds, stall_seconds
        self._lock = threading.Lock()
        self._stop_heart: weakref.finalize[..., LeasePass] | None = None
        self._failure: Exception | None = None
        self._asked = 0
        self._drawn = 0
        self._operations = 0
        self._waited = 0.0
        self._active_at = time.monotonic()
        self._closed = False

    def draw(self) -> LeasedBatch | None:
        """The next batch, or None: then there is none now, or never will be."""
        self._check()
        if self._prefetch is not None and self._holder.replay:
            # The loader draws once for each batch that it returns, after the first `prefetch` draws, and the training
            # loop is through with a batch when it asks for the next (torch 2.15, both kinds of loader iterators).
            consumed = min(self._asked - self._prefetch, self._drawn)
            if consumed > self.acknowledged:
                self.acknowledge(consumed - self.acknowledged)
        self._asked += 1
        if len(self._holder.outstanding) >= self._in_hand:
            raise RuntimeError(
                f"{self._in_hand} batches were handed out and none of them acknowledged. Use ts.DataLoader or "
                "sampler.consume(loader), call sampler.ack() after each batch, or pass prefetch=num_workers * "
                "prefetch_factor. With more workers than that, pass a larger lease_batches."
            )
        while True:
            batch = self._run(self._holder.draw(time.monotonic()))
            if batch is not None:
                self._drawn += 1
                self._start_heartbeat()
                return batch
            # A loader that has batches in hand must deliver these first: to wait for others here would be to wait for
            # ranks that wait for us.
            if self._holder.outstanding or not self.wait_for_lease():
                return None

    def acknowledge(self, batches: int) -> bool:
        """See `LeaseSampler.ack`."""
        self._check()
        if not self._holder.replay:
            self.acknowledged += batches
            return True
        if not 0 < batches <= len(self._holder.outstanding):
            raise ValueError(f"{batches} batches cannot be acknowledged: {len(self._holder.outstanding)} are in hand.")
        late = self._run(self._holder.acknowledge(batches))
        self.acknowledged += batches
        return late == 0

    def drop_lost(self) -> bool:
        """Whether the oldest batch in hand belongs to another rank now; if so, it is no longer in hand."""
        outstanding = self._holder.outstanding
        lost = bool(outstanding) and self._holder.has_lost(outstanding[0])
        if lost:
            self.acknowledge(1)
        return lost

    def wait_for_lease(self) -> bool:
        """Wait until there is a lease to take, and take it; False when the epoch is done.

        It ends: whoever holds a lease and acknowledges nothing loses it after the stall and the time to live.
        """
        if not self._holder.replay:
            return False
        pause, begun = 0.01, time.monotonic()
        while not self._run(self._holder.acquire(time.monotonic())):
            if self._holder.drained:
                self._waited += time.monotonic() - begun
                return False
            # To look again costs a reading of every open segment, and only a rank that dies or leaves changes anything.
            time.sleep(min(max(pause, self._holder.open_segments / 1000), self._ttl / 5))
            pause *= 2
        self._waited += time.monotonic() - begun
        self._start_heartbeat()
        return True

    def leave(self) -> None:
        """An iterator is gone. After the last one nobody draws: what is not acknowledged soon will be taken over."""
        self.iterators -= 1
        if not self.iterators:
            self._stop_heartbeat()

    def close(self) -> None:
        """Give the leases back at once."""
        if self._closed:
            return
        self._closed = True
        self._stop_heartbeat()
        try:
            if not isinstance(self._failure, ConnectionError | StateError):
                self._failure = None
                self._run(self._holder.release())
        except (ConnectionError, StateError) as error:
            _proof.warning("%s", {"event": "lease_not_released", "job": self._job, "reason": str(error)})
        finally:
            self._store.close()

    def stats(self) -> dict[str, int | float]:
        """See `LeaseSampler.stats`."""
        own = {
            "active_leases": self._holder.active_leases,
            "outstanding_batches": len(self._holder.outstanding),
            "store_operations": self._operations,
            "wait_seconds": self._waited,
        }
        return dict.fromkeys(COUNTS, 0) | dict(self._holder.counts) | own

    def _run(self, steps: Steps[T]) -> T:
        with self._lock:
            self._active_at = time.monotonic()
            return self._perform(steps)

    def _perform(self, steps: Steps[T]) -> T:
        reply: Any = None
        try:
            while True:
                request = steps.send(reply)
                begun = time.monotonic()
                reply = getattr(self._store, request.name)(*request.arguments)
                self._operations += 1
                if time.monotonic() - begun > self._ttl / 4:
                    # Others could not reach the store either, so that their silence means nothing.
                    self._holder.forget()
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException as error:
            if isinstance(error, OverlapError):
                _proof.error("%s", {"event": "overlap_detected", "job": self._job, "reason": str(error)})
            # Whether the store has done the last operation is unknown, so this pass may hand out nothing more. Others
            # take over what it had.
            self._failure = error if isinstance(error, Exception) else RuntimeError("This pass was interrupted.")
            raise
        finally:
            self._log()

    def _log(self) -> None:
        for event in self._holder.take_events():
            level = _LEVELS.get(event["event"], logging.INFO)
            if _proof.isEnabledFor(level):
                _proof.log(level, "%s", {"event": event.pop("event"), "job": self._job, **event})

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RuntimeError("This pass has ended; its batches cannot be drawn or acknowledged any more.")

    def _start_heartbeat(self) -> None:
        # Late, so that a loader has forked its workers before there is a thread.
        if self._stop_heart is None:
            stop = threading.Event()
            heart = threading.Thread(
                target=_beat, args=(weakref.ref(self), stop, self._ttl), name="torchslip-heartbeat", daemon=True
            )
            heart.start()
            self._stop_heart = weakref.finalize(self, _stop, stop, heart)

    def _stop_heartbeat(self) -> None:
        if self._stop_heart is not None:
            self._stop_heart()
            self._stop_heart = None

    def renew(self) -> None:
        """One beat of the heart."""
        if time.monotonic() - self._active_at < self._stall and self._failure is None:
            with self._lock, contextlib.suppress(Exception):  # the training loop hears of it when it asks next
                self._perform(self._holder.renew())


def _beat(of: weakref.ref[LeasePass], stop: threading.Event, ttl_seconds: float) -> None:
    while not stop.wait(ttl_seconds / _HEARTBEATS_PER_TTL):
        current = of()
        if current is None:
            return
        current.renew()
        del current


def _stop(stop: threading.Event, heart: threading.Thread) -> None:
    """Runs at the latest when the interpreter ends, which would abort with a thread inside the store."""
    stop.set()
    if heart is not threading.current_thread():
        heart.join(5)


_LEVELS = {"progress": logging.DEBUG, "lease_lost": logging.WARNING, "lease_expired": logging.WARNING}

COUNTS = (
    *("batches", "samples", "replayed_batches"),
    *("acknowledged_batches", "acknowledged_samples", "outstanding_batches", "late_batches"),
    *("active_leases", "leases_granted", "leases_completed", "leases_expired", "leases_split", "leases_lost"),
    *("ranges_requeued", "heartbeats", "store_operations", "wait_seconds"),
)
