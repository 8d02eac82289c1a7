"""Shards that will be needed soon, brought into the cache in the background."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["Prefetcher"]


class Prefetcher:
    """Threads that fetch shards ahead of their use, in the order of their use.

    At most `limit` shards are there, or on their way, that have not been used yet. The threads end when there is
    nothing to do; what they were not able to fetch comes when it is needed, with its error.

    Args:
        fetch: Gets number and turn of a shard.
        limit: How many shards to be ahead.
        threads: How many to fetch at a time.
    """

    def __init__(self, fetch: Callable[[int, int], object], limit: int, threads: int) -> None:
        self._fetch = fetch
        self._limit = limit
        self._threads = threads
        self._lock = threading.Lock()
        self._running = 0
        self._todo: deque[tuple[int, int]] = deque()
        self._ahead: set[int] = set()
        self._used: set[int] = set()

    def expect(self, shards: Sequence[tuple[int, int]]) -> None:
        """These come next, in this order, each with its turn; replaces what was expected before."""
        with self._lock:
            numbers = {shard for shard, _ in shards}
            self._ahead &= numbers
            self._used &= numbers
            self._todo = deque(each for each in shards if each[0] not in self._ahead)
        self._start()

    def used(self, shard: int) -> None:
        """This shard was opened: one more may be fetched."""
        with self._lock:
            self._used.add(shard)
            self._ahead.discard(shard)
        self._start()

    def _start(self) -> None:
        with self._lock:
            while self._running < self._threads and self._next_is_due(self._running):
                self._running += 1
                threading.Thread(target=self._run, name="torchslip-prefetch", daemon=True).start()

    def _next_is_due(self, running: int) -> bool:
        while self._todo and self._todo[0][0] in self._used:
            self._todo.popleft()
        return len(self._todo) > running and len(self._ahead) + running < self._limit

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._next_is_due(0):
                    self._running -= 1
                    return
                shard, turn = self._todo.popleft()
                self._ahead.add(shard)
            with contextlib.suppress(Exception):
                self._fetch(shard, turn)
