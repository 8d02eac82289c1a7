"""Work on the records of a source, in any executor, with the results in order and a bound on the memory."""

from __future__ import annotations

import functools
import io
import os
import pickle
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor, TimeoutError
from typing import Any, TypeVar

import numpy as np

__all__ = ["map_records"]

Result = TypeVar("Result")
Records = TypeVar("Records", bound=Sized)
Work = Callable[[Records, range], tuple[list[Result], int]]

_CHUNK_BYTES = 4 << 20
_FIRST_RECORDS = 8
_MAX_RECORDS = 1024
_DEADLINE_SECONDS = 3600.0
_SHARED_BYTES = 1 << 16

_mine = threading.local()


def map_records(
    source: Records, work: Work[Records, Result], *, executor: Executor | None = None, begin: int = 0
) -> Generator[Result, None, None]:
    """The results of `work` for all records, in the order of the records.

    Each thread or process of the executor gets a copy of the source, once, as the workers of a `DataLoader` do. At
    most two chunks of about 4 MB for each are under way at any time.

    Args:
        source: The records, or whatever has a length; it must pickle.
        work: Gets a source and record numbers; returns one result for each, and the bytes that it has read. A function
            of a module, or whatever pickles.
        executor: Any; None for threads of our own, one for each core that can be used.
        begin: The first record.

    Raises:
        TypeError: If the source does not pickle.
        RuntimeError: If no worker answers for an hour.
        Exception: Whatever `work` raises, and what the executor does when its workers die.
    """
    own = ThreadPoolExecutor(_usable_cores(), thread_name_prefix="torchslip-pack") if executor is None else None
    pool = executor if executor is not None else own
    assert pool is not None
    limit = 2 * int(getattr(pool, "_max_workers", None) or _usable_cores())
    token = uuid.uuid4().hex
    make_copy = _copier(source, share=isinstance(pool, ThreadPoolExecutor))
    pending: deque[tuple[Future[tuple[list[Result], int] | None], range]] = deque()
    submitted = records_done = bytes_done = 0
    try:
        while pending or begin < len(source):
            while begin < len(source) and len(pending) < limit:
                count = _FIRST_RECORDS
                if bytes_done:
                    count = max(1, min(_MAX_RECORDS, records_done * _CHUNK_BYTES // bytes_done))
                ids = range(begin, min(begin + count, len(source)))
                # The first ones bring the source along; a worker that comes later asks for it by returning None.
                sent = make_copy if submitted < limit else None
                pending.append((pool.submit(_run, token, sent, work, ids), ids))
                begin, submitted = ids.stop, submitted + 1
            future, ids = pending.popleft()
            done = _wait(future, ids) or _wait(pool.submit(_run, token, make_copy, work, ids), ids)
            assert done is not None
            results, read_bytes = done
            records_done, bytes_done = records_done + len(ids), bytes_done + read_bytes
            yield from results
    finally:
        for future, _ in pending:
            future.cancel()
        if own is not None:
            own.shutdown(wait=True, cancel_futures=True)


def _run(
    token: str, make_copy: Callable[[], Any] | None, work: Work[Any, Result], ids: range
) -> tuple[list[Result], int] | None:
    if getattr(_mine, "token", None) != token:
        if make_copy is None:
            return None
        _mine.source, _mine.token = make_copy(), token
    return work(_mine.source, ids)


def _wait(future: Future[Any], ids: range) -> Any:
    try:
        return future.result(_DEADLINE_SECONDS)
    except TimeoutError as error:
        if future.done():  # raised by the work itself
            raise
        raise RuntimeError(
            f"No worker has finished the records {ids.start} to {ids.stop - 1} within {_DEADLINE_SECONDS:.0f} s; look "
            "whether the executor still has workers, and whether the source's storage answers."
        ) from error


def _copier(source: object, *, share: bool) -> Callable[[], Any]:
    """What makes a copy of `source` in a worker, by pickling it.

    Args:
        source: It.
        share: Whether the workers are threads: their copies share what is large and never written to, such as the
            names of a million files.
    """
    out = io.BytesIO()
    pickler = _SharingPickler(out) if share else pickle.Pickler(out)
    try:
        pickler.dump(source)
    except Exception as error:  # each class has its own way not to pickle
        raise TypeError(f"{source!r} must pickle, so that each worker gets a copy: {error}") from error
    if isinstance(pickler, _SharingPickler):
        return functools.partial(_load_sharing, out.getvalue(), pickler.shared)
    return functools.partial(pickle.loads, out.getvalue())


class _SharingPickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.shared: list[Any] = []

    def persistent_id(self, obj: Any) -> int | None:
        size = obj.nbytes if isinstance(obj, np.ndarray) else len(obj) if isinstance(obj, bytes) else 0
        if size <= _SHARED_BYTES:
            return None
        self.shared.append(obj)
        return len(self.shared) - 1


def _load_sharing(data: bytes, shared: list[Any]) -> Any:
    unpickler = pickle.Unpickler(io.BytesIO(data))
    unpickler.persistent_load = shared.__getitem__  # type: ignore[method-assign]
    return unpickler.load()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
