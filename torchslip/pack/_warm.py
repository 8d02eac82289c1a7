"""Reading a dataset ahead, so that the first epoch finds it near."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torchslip.errors import FormatError
from torchslip.pack._chunks import map_records
from torchslip.pack._progress import Progress
from torchslip.sources import MDS, Objects, Source, source_of
from torchslip.sources.mds import ShardFile, shard_files
from torchslip.storage import NodeCache

__all__ = ["Warmed", "warm"]

JOBS = 8
_Loaded = tuple[ShardFile, str]


@dataclass(frozen=True, slots=True)
class Warmed:
    """What is near now.

    Attributes:
        bytes: Of the dataset.
        near_bytes: Of what was read, or is in the cache.
        fetched_bytes: Of what came from elsewhere in this call.
        where: ``cache`` or ``memory``.
    """

    bytes: int
    near_bytes: int
    fetched_bytes: int
    where: str


def warm(
    dataset: Source | str | os.PathLike[str],
    *,
    cache: NodeCache | str | os.PathLike[str] | None = None,
    budget_bytes: int | str | None = None,
    jobs: int = JOBS,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Warmed:
    """Fetch the shards of a dataset into the node cache, ahead of all use; what lies on this machine is read once.

    As much as fits into the budget is fetched, from the first shard on; the rest would only push it out again. Shards
    that are there are left alone, so a call after a kill goes on where that one stopped.

    Args:
        dataset: A path or URL that `torchslip.open` knows, or a source.
        cache: For a path: a `NodeCache` or its folder, see `torchslip.MDS`.
        budget_bytes: For a folder as `cache`, or the default one: its budget.
        jobs: How many shards to fetch at a time.
        progress: Show a progress bar on a terminal.
        storage_options: For fsspec, of URLs.

    Raises:
        FormatError: If it cannot be opened, or is a bucket of pictures, for which there is no cache but a packed one.
        SampleError: If a record cannot be read.
        OSError: If a shard cannot be fetched.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}.")
    source = source_of(dataset, storage_options)
    if isinstance(source, MDS):
        if not isinstance(cache, NodeCache):
            cache = NodeCache(cache, budget_bytes)
        if not isinstance(dataset, Source):
            source = MDS(source.root, cache=cache, storage_options=storage_options)
        return _warm_shards(source, cache, jobs, progress)
    if isinstance(source, Objects) and source.snapshot.is_remote:
        raise FormatError(
            f"{source!r} is read object by object, and nothing keeps them. Pack it once with torchslip.cached or "
            "ImageDataset(cache=...), or fetch it with torchslip sync."
        )
    read = 0
    rows = map_records(source, _read_records)
    with Progress("Reading", len(source), shown=progress) as bar, contextlib.closing(rows):
        for size in rows:
            bar.advance()
            read += size
    return Warmed(read, read, 0, "memory")


def _read_records(source: Source, ids: range) -> tuple[list[int], int]:
    records = source.fetch(ids)
    sizes = [sum(len(value) for value in record.values() if isinstance(value, bytes)) for record in records]
    return sizes, sum(sizes)


def _warm_shards(source: MDS, cache: NodeCache, jobs: int, progress: bool) -> Warmed:
    files = shard_files(source)
    whole = sum(file.bytes for file in files)
    entries = [file.entry for file in files if file.entry is not None]
    if entries:
        files = _first_that_fit(files, cache.capacity_bytes())
        cache.plan([file.entry.name for file in files if file.entry is not None])
    done: Counter[str] = Counter()
    with Progress("Warming", whole, shown=progress, unit="bytes") as bar:
        for file, outcome in _load_all(files, jobs):
            done[outcome] += file.bytes
            bar.advance(file.bytes)
    near = done["kept"] + done["fetched"] + done["busy"] + done["read"]
    return Warmed(whole, near, done["fetched"], "cache" if entries else "memory")


def _first_that_fit(files: list[ShardFile], capacity_bytes: int) -> list[ShardFile]:
    left, chosen = capacity_bytes, []
    for file in files:
        if file.entry is not None:
            if file.bytes > left:
                break
            left -= file.bytes
        chosen.append(file)
    return chosen


def _load_all(files: list[ShardFile], jobs: int) -> Iterator[_Loaded]:
    with ThreadPoolExecutor(jobs, thread_name_prefix="torchslip-warm") as pool:
        pending: deque[tuple[ShardFile, Future[str]]] = deque()
        try:
            for turn, file in enumerate(files):
                pending.append((file, pool.submit(file.load, turn)))
                if len(pending) >= 2 * jobs:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()
