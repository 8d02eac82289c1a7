"""Single samples of shards that lie elsewhere, without the rest of the shard.

Two kinds of requests: one for the head of a shard, which says where its samples lie, and one for each run of samples
that are near each other. Only for shards of the format mds that are stored as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from torchslip.sources._source import Record
from torchslip.sources.mds._index import ShardInfo
from torchslip.sources.mds._shard import FieldPlan, checked_offsets, sample_reader
from torchslip.storage import Folder

__all__ = ["RangeReader"]

# A sixteenth of a shard that is known to be wanted is downloaded whole, and so is one whose ranges come to a quarter.
WANTED_SHARE, RANGED_SHARE = 1 / 16, 1 / 4
# What lies between two samples is read with them if it is no more than comes in the time of another request.
GAP_BYTES = 1 << 18
_MAX_HEADS = 4096
_REQUESTS = 16


class RangeReader:
    """Reads samples by ranges, and counts how much of each shard came so.

    Args:
        folder: Where the shards lie.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._heads: dict[int, memoryview] = {}
        self._read_bytes: dict[int, float] = {}
        self._pool: ThreadPoolExecutor | None = None

    def pays(self, shard: int, info: ShardInfo, wanted: float) -> bool:
        """Whether to read samples of a shard by ranges, rather than the whole shard.

        Args:
            shard: Its number.
            info: What the index says of it.
            wanted: How many samples are known to be wanted soon, with those that are wanted now.
        """
        if wanted >= WANTED_SHARE * info.samples:
            return False
        return self._read_bytes.get(shard, 0) <= RANGED_SHARE * info.files["raw_data"].bytes

    def start(self, shard: int, info: ShardInfo, plan: FieldPlan, rows: Sequence[int]) -> Future[list[Record]]:
        """Begin to read rows of a shard; several shards are read at a time."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_REQUESTS, "torchslip-ranges")
        return self._pool.submit(self._read_shard, shard, info, plan, rows)

    def _read_shard(self, shard: int, info: ShardInfo, plan: FieldPlan, rows: Sequence[int]) -> list[Record]:
        offsets = self._heads.get(shard)
        if offsets is None:
            offsets = self._read_head(info)
            while len(self._heads) >= _MAX_HEADS:
                self._heads.pop(next(iter(self._heads)), None)
            self._heads[shard] = offsets
        readers: dict[int, tuple[Callable[[int], Record], int]] = {}
        for run in _runs(sorted(set(rows)), offsets):
            begin = offsets[run[0]]
            data = self._folder.read_range(info.files["raw_data"].basename, begin, offsets[run[-1] + 1])
            self._read_bytes[shard] = self._read_bytes.get(shard, 0) + len(data)
            near = np.asarray(offsets[run[0] : run[-1] + 2]) - np.uint32(begin)
            read = sample_reader(data, near.data, plan).read
            readers |= {row: (read, row - run[0]) for row in run}
        return [read(row) for read, row in (readers[row] for row in rows)]

    def _read_head(self, info: ShardInfo) -> memoryview:
        file = info.files["raw_data"]
        head_bytes = 8 + 4 * info.samples
        head = self._folder.read_range(file.basename, 0, head_bytes)
        return checked_offsets(head, info.samples, first=head_bytes, last=file.bytes)


def _runs(rows: Iterable[int], offsets: memoryview) -> list[list[int]]:
    """Rising rows, cut where too much lies between two of them."""
    runs: list[list[int]] = []
    for row in rows:
        if runs and offsets[row] - offsets[runs[-1][-1] + 1] <= GAP_BYTES:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
