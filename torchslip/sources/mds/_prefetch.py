"""Shards that will be needed soon, brought into the cache in the background."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["Prefetcher"]


class Prefetcher:
    """Threads that fetch shards ahead of their use, in the order of their use.

    At most `limit` shards are on their way, or came and have not been used yet. The threads end when there is nothing
    to do; what they could not fetch comes when it is needed, with its error.

    Args:
        fetch: Gets number and turn of a shard; returns as `NodeCache.prefetch` does.
        limit: How many shards to be ahead.
        threads: How many to fetch at a time.
    """

    def __init__(self, fetch: Callable[[int, int], str], limit: int, threads: int) -> None:
        self._fetch = fetch
        self._limit = limit
        self._threads = threads
        self._lock = threading.Lock()
        self._running = 0
        self._todo: deque[tuple[int, int]] = deque()
        self._on_their_way: set[int] = set()
        self._came: set[int] = set()

    def expect(self, shards: Sequence[tuple[int, int]]) -> None:
        """These come next, in this order, each with its turn; replaces what was expected before."""
        with self._lock:
            self._todo = deque(each for each in shards if each[0] not in self._on_their_way)
            # Whatever came and was not used may be what only other processes use.
            self._came = set()
        self._start()

    def used(self, shard: int) -> None:
        """This shard was opened: one more may be fetched."""
        with self._lock:
            self._came.discard(shard)
        self._start()

    def _start(self) -> None:
        with self._lock:
            free = min(self._threads - self._running, self._limit - len(self._on_their_way) - len(self._came))
            for _ in range(min(free, len(self._todo))):
                self._running += 1
                threading.Thread(target=self._run, name="torchslip-prefetch", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._todo or len(self._on_their_way) + len(self._came) >= self._limit:
                    self._running -= 1
                    return
                shard, turn = self._todo.popleft()
                self._on_their_way.add(shard)
                came = self._came
            try:
                outcome = self._fetch(shard, turn)
            except Exception:
                outcome = "failed"
            with self._lock:
                self._on_their_way.discard(shard)
                if outcome == "fetched":
                    came.add(shard)
                elif outcome == "no room":
                    self._todo.clear()
