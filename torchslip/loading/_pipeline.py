"""Builds the batches of one pass ahead of their consumer, several at a time, and gives them out in order."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from torchslip.errors import TorchslipError
from torchslip.loading._autotune import Autotune, Signals
from torchslip.loading._byte_budget import AbandonedError, ByteBudget, Lease
from torchslip.loading._byte_plan import Band
from torchslip.loading._byte_reader import ByteReader, Fill
from torchslip.loading._bytes_batch import BytesBatch
from torchslip.loading._memory import empty_bytes
from torchslip.loading._pages import Pages
from torchslip.loading._slabs import in_same_slab

__all__ = ["Job", "Pipeline"]

_proof = logging.getLogger("torchslip.proof")

_LOOK_SECONDS = 1.0  # between looks at whether whoever is waited for still lives
_TICK_SECONDS, _TICK_BATCHES = 0.5, 4


@dataclass(frozen=True, slots=True)
class Job:
    """One batch to build.

    Attributes:
        number: Its number in the pass.
        position: The first position of its step.
        ids: Sample ids, int64 ``[B]``.
        sizes: Their bytes; None if the source does not know.
        valid: Goes into the batch.
        bands: Go into the batch.
    """

    number: int
    position: int
    ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64] | None
    valid: npt.NDArray[np.bool_] | None
    bands: tuple[Band, Band | None]


@dataclass(slots=True)
class _Build:
    job: Job
    lease: Lease
    lanes: list[Callable[[], None]]
    finish: Callable[[], BytesBatch]
    lanes_left: int
    batch: BytesBatch | None = None
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Pipeline:
    """The threads of one pass in one process: one plans and reserves, the others read.

    Args:
        jobs: The batches, in the order of delivery.
        reader: Reads them.
        budget: Grants room; `ByteBudget.begin` was called.
        autotune: Holds the knobs.
        tuned: Whether it may move them.
        consumer_here: Whether the consumer is this process, so that its waiting can be told to the budget.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        reader: ByteReader,
        budget: ByteBudget,
        autotune: Autotune,
        *,
        tuned: bool,
        consumer_here: bool,
    ) -> None:
        self._jobs, self._reader, self._budget = jobs, reader, budget
        self._autotune, self._tuned, self._consumer_here = autotune, tuned, consumer_here
        self._queue: deque[_Build] = deque()
        self._building = 0
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        rails = autotune.rails
        self._executor = ThreadPoolExecutor(
            rails["prefetch_batches"][1] * rails["want"][1], thread_name_prefix="torchslip-read"
        )
        self._meter = _Meter()
        budget.report_knobs(autotune.knobs, autotune.adjustments)
        inflight_bytes = budget.limits.max_inflight_bytes
        # What lies idle is not in the account, so it is bounded.
        shared = partial(empty_bytes, keep_bytes=inflight_bytes // 4 // budget.workers)
        self._memory: Callable[[int], torch.Tensor] = Pages(inflight_bytes // 16).take if consumer_here else shared
        self._dispatcher = threading.Thread(target=self._dispatch, name="torchslip-plan", daemon=True)
        self._dispatcher.start()

    def __iter__(self) -> Iterator[tuple[Job, list[BytesBatch]]]:
        """Each batch, in a list to take it out of: what is yielded would else keep it from being freed."""
        while (build := self._next()) is not None:
            if build.error is not None:
                raise build.error
            job, taken = build.job, [] if build.batch is None else [build.batch]
            del build  # it knows the memory of the batch
            yield job, taken

    def close(self) -> None:
        """Stop all threads, as soon as what they are reading is read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._executor.shutdown(wait=False, cancel_futures=True)
        for build in self._queue:
            self._budget.release(build.lease)
        self._queue.clear()

    # -- the consumer's side

    def _next(self) -> _Build | None:
        began = time.monotonic()
        if self._consumer_here:
            self._budget.check_memory()
            self._budget.ask()
        with self._changed:
            while not self._queue and not self._ended:
                self._changed.wait(_LOOK_SECONDS)
                self._check_dispatcher()
            build = self._queue[0] if self._queue else None
        if build is None:
            if self._failure is not None:
                raise self._failure
            return None
        while not build.done.wait(_LOOK_SECONDS):
            if self._consumer_here:
                self._budget.check_memory()
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()
        if self._consumer_here:
            self._budget.hand_over(build.job.position)
        if build.batch is not None and self._tuned:
            signals = self._meter.add(build.batch.payload_bytes, time.monotonic() - began, self._budget)
            if signals is not None:
                self._tune(signals)
        return build

    def _check_dispatcher(self) -> None:
        if not self._ended and not self._queue and not self._dispatcher.is_alive():
            raise TorchslipError("The thread that plans batches has ended without a word; please report this.")

    def _tune(self, signals: Signals) -> None:
        with self._changed:
            decision = self._autotune.tick(signals)
            self._changed.notify_all()
        if decision.knob is not None:
            self._budget.report_knobs(self._autotune.knobs, self._autotune.adjustments)
            event = {
                "event": "autotune_runtime_adjustment",
                "reason": decision.reason,
                "knob": decision.knob,
                **self._autotune.knobs,
                "bytes_per_second": round(signals.bytes_per_second),
                "wait_ratio": round(signals.wait_ratio, 4),
                "rss_ratio": round(signals.memory_ratio, 4),
                "inflight_ratio": round(signals.inflight_ratio, 4),
                "pid": os.getpid(),
            }
            _proof.info("%s", event)

    # -- the side of the threads

    def _dispatch(self) -> None:
        try:
            job = next(self._jobs, None)
            while job is not None:
                following = next(self._jobs, None)
                if not self._wait_for_place():
                    return
                self._start(job, None if following is None else following.position)
                job = following
        except AbandonedError:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self._budget.end()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_place(self) -> bool:
        with self._changed:
            while not self._closed:
                knobs = self._autotune.knobs
                finished = len(self._queue) - self._building
                if self._building < knobs["prefetch_batches"] and finished < knobs["max_queue_batches"]:
                    return True
                self._changed.wait(_LOOK_SECONDS)
        return False

    def _start(self, job: Job, then: int | None) -> None:
        build = self._plan_blind(job, then) if job.sizes is None else self._plan(job, job.sizes, then)
        with self._changed:
            if self._closed:
                self._budget.release(build.lease)
                raise AbandonedError
            self._queue.append(build)
            self._building += 1
            self._changed.notify_all()
            for lane in build.lanes:
                self._executor.submit(self._work, build, lane)
            build.lanes = []

    def _plan(self, job: Job, sizes: npt.NDArray[np.int64], then: int | None) -> _Build:
        """Read into places that follow from the sizes, in as many lanes as `want` says."""
        limits, reader, want = self._budget.limits, self._reader, self._autotune.knobs["want"]
        total, transient = int(sizes.sum()), 0
        lanes = [[slice(0, len(sizes))]]
        if reader.in_place:
            lanes = _deal(lanes[0], sizes, want)
        else:
            # What a source returns exists twice until it is copied into its place.
            pieces = reader.pieces(sizes, (limits.max_inflight_bytes - limits.max_batch_bytes - total) // want)
            lanes = _deal(pieces, sizes, want)
            transient = min(total, sum(max(int(sizes[piece].sum()) for piece in lane) for lane in lanes))
        lease = self._budget.reserve(job.position, max(total + transient, 1), then=then)
        memory = self._memory(total)
        labels = np.empty(len(job.ids), np.int64) if reader.has_labels else None
        places = np.concatenate(([0], np.cumsum(sizes)))
        fill = Fill(job.ids, places, memory.numpy(), np.zeros(len(job.ids), np.int64), labels)

        def read(lane: list[slice]) -> None:
            for piece in lane:
                if not self._closed:
                    reader.read(fill, piece)

        def finish() -> BytesBatch:
            offsets = fill.compact()
            return _batch(job, in_same_slab(memory[: offsets[-1]], memory), offsets, fill.labels)

        return _Build(job, lease, [partial(read, lane) for lane in lanes], finish, len(lanes))

    def _plan_blind(self, job: Job, then: int | None) -> _Build:
        """Read into a list, of which only the largest size is known, and put it together then."""
        limits, reader = self._budget.limits, self._reader
        room = min(2 * limits.max_batch_bytes, limits.max_inflight_bytes)
        lease = self._budget.reserve(job.position, room, then=then)
        values: list[bytes] = []
        labels: list[int] = []

        def read() -> None:
            reader.read_blindly(job.ids, room // 2, values, labels)

        def finish() -> BytesBatch:
            offsets = np.concatenate(([0], np.cumsum([len(value) for value in values], dtype=np.int64)))
            memory = self._memory(int(offsets[-1]))
            block = memory.numpy()
            for begin, value in zip(offsets.tolist(), values, strict=False):
                block[begin : begin + len(value)] = np.frombuffer(value, np.uint8)
            return _batch(job, memory, offsets, np.array(labels, np.int64) if reader.has_labels else None)

        return _Build(job, lease, [read], finish, 1)

    def _work(self, build: _Build, lane: Callable[[], None]) -> None:
        try:
            if not self._closed and build.error is None:
                lane()
        except BaseException as error:
            build.error = build.error or error
        with self._changed:
            build.lanes_left -= 1
            if build.lanes_left:
                return
        try:
            if build.error is None and not self._closed:
                build.batch = build.finish()
                self._budget.shrink(build.lease, build.batch.payload_bytes)
                build.batch.attach(self._budget, build.lease)
        except BaseException as error:
            build.error = error
        if build.error is not None:
            self._budget.release(build.lease)
        with self._changed:
            self._building -= 1
            self._changed.notify_all()
        build.done.set()


def _batch(
    job: Job, memory: torch.Tensor, offsets: npt.NDArray[np.int64], labels: npt.NDArray[np.int64] | None
) -> BytesBatch:
    return BytesBatch(memory, offsets, job.ids, labels, job.valid, job.position, job.bands)


def _deal(pieces: list[slice], sizes: npt.NDArray[np.int64], lanes: int) -> list[list[slice]]:
    """Divide pieces among lanes; where there are too few, they are cut into parts of as many samples each."""
    if 1 < lanes != len(pieces) < lanes:
        rows = np.linspace(0, len(sizes), min(lanes, max(len(sizes), 1)) + 1).astype(int).tolist()
        cuts = sorted({*rows, *(piece.start for piece in pieces)})
        pieces = [slice(begin, end) for begin, end in pairwise(cuts)]
    return [part for lane in range(lanes) if (part := pieces[lane::lanes])]


class _Meter:
    """Gathers the signals of autotune from one batch to the next."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._bytes = self._batches = 0
        self._waited, self._inflight = 0.0, 0

    def add(self, size: int, waited: float, budget: ByteBudget) -> Signals | None:
        """Count a batch.

        Returns:
            The signals, if it is time for a tick.
        """
        self._bytes += size
        self._batches += 1
        self._waited += waited
        self._inflight = max(self._inflight, budget.inflight_bytes)
        now = time.monotonic()
        seconds = now - self._began
        if seconds < _TICK_SECONDS or self._batches < _TICK_BATCHES:
            return None
        signals = Signals(
            self._bytes / seconds,
            min(self._waited / seconds, 1.0),
            budget.memory_bytes[0] / budget.limits.max_ram_bytes,
            self._inflight / budget.limits.max_inflight_bytes,
        )
        self._began, self._bytes, self._batches, self._waited, self._inflight = now, 0, 0, 0.0, 0
        return signals
