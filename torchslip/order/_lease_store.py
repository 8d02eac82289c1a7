"""Where leases are kept: any store of `torch.distributed`, or a file; every operation has a deadline.

What was found of torch's stores (2.15) and is answered here:

* No operation but `get` has a time limit: with a stopped server, ``TCPStore.compare_set`` waits for ever. So a thread
  does them, and is given up together with its connection when it takes too long.
* A client does not connect anew after its server came back. A clone does.
* ``get`` waits for a key that is missing. ``compare_set`` answers at once, with the expected value.
* A process that is killed amid a write to a ``FileStore`` leaves half a record, at which all others wait for ever: 7 of
  25 kills of a process that did nothing else (2026-11-21). So leases have a file of their own, beside it, in SQLite.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist

from torchslip.errors import StateError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["LeaseStore", "Request", "Steps", "open_lease_store"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One operation for the store: the name of a method of `LeaseStore` and its arguments."""

    name: str
    arguments: tuple[Any, ...]


Steps = Generator[Request, Any, T]


class LeaseStore(Protocol):
    """The operations that leases need, each of which happens at once or not at all.

    Raises:
        ConnectionError: From any of them, if the store does not answer before the deadline.
    """

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of keys; None for those that are missing."""

    def compare_set(self, key: str, old: bytes | None, new: bytes) -> bytes | None:
        """Set `new` if the value is `old`, None being a missing key; the value that the key has then."""

    def add(self, key: str, amount: int) -> int:
        """Add to a counter that begins at 0; its new value."""

    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""

    def guard(self, key: str, value: bytes) -> None:
        """From now on it is an error if, after an interruption, this key has another value: the store lost all."""

    def close(self) -> None:
        """End the connection; the store may not be used any more."""


def open_lease_store(store: Store | str | os.PathLike[str] | None, *, job: str, deadline_seconds: float) -> LeaseStore:
    """Connect to where the leases of a job are kept.

    Args:
        store: A store of torch's, or the path of a file; None: what the process group uses, beneath all prefixes, so
            that a job goes on where it was when torchrun starts its processes anew.
        job: All keys begin with it.
        deadline_seconds: Until when every operation has an answer.
    """
    if isinstance(store, str | os.PathLike):
        return _FileLeaseStore(Path(store), job, deadline_seconds)
    if store is None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "LeaseSampler needs a store that all processes reach: initialise torch.distributed, or pass "
                "store=torch.distributed.TCPStore(...) or store='a file that all processes see'."
            )
        store = _innermost(dist.distributed_c10d._get_default_store())
    innermost: Any = _innermost(store)
    if isinstance(innermost, dist.FileStore):  # type: ignore[attr-defined]
        return _FileLeaseStore(Path(f"{innermost.path}.leases"), job, deadline_seconds)  # type: ignore[attr-defined]
    return _TorchLeaseStore(store, job, deadline_seconds)


def _innermost(store: Store) -> Store:
    while isinstance(store, dist.PrefixStore):  # type: ignore[attr-defined]
        store = store.underlying_store
    return store


class _Courier:
    """A thread that does one thing at a time for others, who wait no longer than they want."""

    def __init__(self) -> None:
        self._errands: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="torchslip-store", daemon=True).start()

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None:
            future, task = errand
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
            del errand, future, task

    def send(self, task: Callable[[], T], timeout_seconds: float) -> T:
        """What `task` returns or raises; TimeoutError after the time."""
        future: Future[T] = Future()
        self._errands.put((future, task))
        return future.result(timeout_seconds)

    def dismiss(self) -> None:
        """End the thread after what it is doing."""
        self._errands.put(None)


class _TorchLeaseStore:
    def __init__(self, store: Store, job: str, deadline_seconds: float) -> None:
        self._origin, self._job, self._deadline = store, job, deadline_seconds
        self._prefix = f"torchslip/leases/{job}/"
        self._guard: tuple[str, bytes] | None = None
        self._courier = _Courier()
        self._store: Store | None = None

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._do(lambda store: self._read_many(store, [self._prefix + key for key in keys]))

    @staticmethod
    def _read_many(store: Store, keys: list[str]) -> list[bytes | None]:
        if len(keys) > 1 and store.check(keys):
            return [*store.multi_get(keys)]
        # The reply for a missing key is the value that was expected, and no value of ours is this one.
        values = [store.compare_set(key, "?", "?") for key in keys]
        return [None if value == b"?" else value for value in values]

    def compare_set(self, key: str, old: bytes | None, new: bytes) -> bytes | None:
        before = old or b""
        value: bytes = self._do(lambda store: store.compare_set(self._prefix + key, before, new))  # type: ignore[arg-type]
        return None if value == before else value

    def add(self, key: str, amount: int) -> int:
        value: int = self._do(lambda store: store.add(self._prefix + key, amount))
        return value

    def delete(self, key: str) -> None:
        self._do(lambda store: store.delete_key(self._prefix + key))

    def guard(self, key: str, value: bytes) -> None:
        self._guard = key, value

    def close(self) -> None:
        self._courier.dismiss()

    def _do(self, operation: Callable[[Store], T]) -> T:
        give_up = time.monotonic() + self._deadline
        # Long enough for a busy server, short enough to find another way before the time is over.
        patience = max(self._deadline / 4, 0.1)
        while True:
            try:
                return self._courier.send(partial(self._operate, operation), patience)
            except (RuntimeError, FutureTimeoutError) as error:
                self._courier.dismiss()
                self._courier, self._store = _Courier(), None
                if time.monotonic() + 0.05 >= give_up:
                    reason = str(error).splitlines()[0] if str(error) else "no answer"
                    raise ConnectionError(
                        f"The store of job {self._job!r} has not answered for {self._deadline:g} s: {reason}. "
                        "The process that hosts it may have ended; let one host it that outlives all ranks, such as "
                        "torchrun's agent."
                    ) from error
                time.sleep(0.05)

    def _operate(self, operation: Callable[[Store], T]) -> T:
        if self._store is None:
            store = _connect(self._origin, timedelta(seconds=self._deadline / 4))
            if self._guard is not None:
                key, value = self._guard
                if self._read_many(store, [self._prefix + key]) != [value]:
                    raise StateError(
                        f"The store of job {self._job!r} was started anew and has lost what was done. Start all ranks "
                        "again; host the store in a process that outlives them, or pass store='a file'."
                    )
            self._store = store
        return operation(self._store)


def _connect(origin: Store, timeout: timedelta) -> Store:
    """A connection of our own: in that of the process group, another's `get` may wait for minutes."""
    if not hasattr(origin, "clone"):  # torch < 2.6
        return origin
    store: Store = origin.clone()
    store.set_timeout(timeout)
    return store


class _FileLeaseStore:
    def __init__(self, path: Path, job: str, deadline_seconds: float) -> None:
        self._path, self._job, self._deadline = path, job, deadline_seconds
        self._connection: sqlite3.Connection | None = None

    def read_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return self._do(lambda connection: [self._get(connection, key) for key in keys])

    def compare_set(self, key: str, old: bytes | None, new: bytes) -> bytes | None:
        def operation(connection: sqlite3.Connection) -> bytes | None:
            found = self._get(connection, key)
            if found != old:
                return found
            self._put(connection, key, new)
            return new

        return self._do(operation)

    def add(self, key: str, amount: int) -> int:
        def operation(connection: sqlite3.Connection) -> int:
            value = int(self._get(connection, key) or 0) + amount
            self._put(connection, key, b"%d" % value)
            return value

        return self._do(operation)

    def delete(self, key: str) -> None:
        def operation(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM leases WHERE job = ? AND key = ?", (self._job, key))

        self._do(operation)

    def guard(self, key: str, value: bytes) -> None:
        """A file does not lose what it holds."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _get(self, connection: sqlite3.Connection, key: str) -> bytes | None:
        row = connection.execute("SELECT value FROM leases WHERE job = ? AND key = ?", (self._job, key)).fetchone()
        return None if row is None else row[0]

    def _put(self, connection: sqlite3.Connection, key: str, value: bytes) -> None:
        connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (self._job, key, value))

    def _do(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = self._open()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                result = operation(self._connection)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise ConnectionError(
                f"The leases of job {self._job!r} cannot be read or written in {self._path}: {error}. It waits "
                f"{self._deadline:g} s for other processes; the folder must exist and be writable."
            ) from error
        return result

    def _open(self) -> sqlite3.Connection:
        # One thread at a time uses it, the training loop's or that of the heartbeat.
        connection = sqlite3.connect(self._path, timeout=self._deadline, isolation_level=None, check_same_thread=False)
        # What a killed process has begun is undone by the next one. Only a machine that loses power could leave a
        # damaged file, which would need a flush to the disk for every batch to prevent.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE IF NOT EXISTS leases (job TEXT, key TEXT, value BLOB, PRIMARY KEY (job, key))")
        return connection
