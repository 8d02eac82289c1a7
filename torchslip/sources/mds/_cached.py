"""What is special about shards that cannot be mapped where they lie: they are elsewhere, or compressed."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchslip.sources.mds._files import ShardFiles
from torchslip.sources.mds._index import Index, ShardInfo
from torchslip.sources.mds._prefetch import Prefetcher
from torchslip.sources.mds._ranges import WANTED_SHARE, RangeReader
from torchslip.storage import Entry, LocalFolder

__all__ = ["CachedShards"]

# What is wanted later than that does not speak for fetching a whole shard now.
SOON_RECORDS = 65_536
# What is wanted later than that, or than an eighth of what is known, is opened again: an open shard cannot make room.
OPEN_RECORDS = 4096
_MAX_ENTRIES = 20_000


class CachedShards:
    """What one process knows of the shards of a dataset that go through the cache.

    Args:
        index: The shards.
        files: Opens their files.
        prefetch: How many shards to be ahead; 0 for none.
    """

    def __init__(self, index: Index, files: ShardFiles, prefetch: int) -> None:
        self.pid = os.getpid()
        self.ranges = RangeReader(files.folder)
        self._index = index
        self._files = files
        self._soon: dict[int, float] = {}
        self._entries: dict[int, list[Entry]] = {}
        self._prefetcher = Prefetcher(self._prefetch, prefetch, threads=min(prefetch, 4))

    def expect(self, shards: npt.NDArray[np.intp], counts: npt.NDArray[np.int64]) -> set[int]:
        """Records of these shards will be read, in this order; returns the shards that are worth keeping open.

        Args:
            shards: The shard of each record.
            counts: How many records each of them stands for.
        """
        distance = np.cumsum(counts) - counts
        soon = distance < SOON_RECORDS
        numbers, first, inverse = np.unique(shards, return_index=True, return_inverse=True)
        wanted = np.bincount(inverse, weights=np.where(soon, counts, 0), minlength=len(numbers))
        in_order = numbers[np.argsort(first)].tolist()
        self._soon = dict(zip(numbers.tolist(), wanted.tolist(), strict=True))
        self._files.cache.plan([entry.name for shard in in_order for entry in self._entries_of(shard)])
        least = np.maximum(1, WANTED_SHARE * self._index.samples[in_order])
        self._prefetcher.expect(
            [(shard, turn) for turn, shard in enumerate(in_order) if self._soon[shard] >= least[turn]]
        )
        now = distance < max(1, min(OPEN_RECORDS, int(counts.sum()) // 8))
        return set(shards[now].tolist())

    def opened(self, shard: int) -> None:
        """Take note that a shard was opened."""
        self._prefetcher.used(shard)

    def by_range(self, shard: int, info: ShardInfo, rows: int) -> bool:
        """Whether to read only the ranges of `rows` samples of a shard that is not open."""
        if isinstance(self._files.folder, LocalFolder) or self._files.validate_hash is not False:
            return False
        if info.layout.format != "mds" or "zip_data" in info.files:
            return False
        if not self.ranges.pays(shard, info, max(rows, self._soon.get(shard, 0))):
            return False
        return not all(entry in self._files.cache for entry in self._entries_of(shard))

    def _prefetch(self, shard: int, turn: int) -> str:
        info, outcome = self._index[shard], "kept"
        for part in _parts(info):
            if self._files.entry(info, part) is not None:
                found = self._files.prefetch(info, part, next_use=turn)
                outcome = outcome if found == "kept" else found
        return outcome

    def _entries_of(self, shard: int) -> Sequence[Entry]:
        entries = self._entries.get(shard)
        if entries is None:
            info = self._index[shard]
            entries = [entry for part in _parts(info) if (entry := self._files.entry(info, part)) is not None]
            if len(self._entries) >= _MAX_ENTRIES:
                self._entries.clear()
            self._entries[shard] = entries
        return entries


def _parts(info: ShardInfo) -> tuple[str, ...]:
    return ("data",) if info.layout.format == "mds" else ("data", "meta")
