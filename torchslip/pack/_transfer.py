"""Copying files from one place to another: in parallel, whole or not at all, and only what is not there already."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeVar

from torchslip.errors import FormatError, MissingDependencyError, StorageError
from torchslip.pack._progress import Progress
from torchslip.sources.mds import hash_bytes
from torchslip.storage import TEMPORARY_PREFIX, FileStat, Folder, LocalFolder

__all__ = ["Item", "Transfer"]

T = TypeVar("T")

JOBS = 16
# One request and one buffer: what is larger comes in parts, through the disk.
_SMALL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """A file to copy.

    Attributes:
        name: Its path below the source, and below the target, with ``/``.
        bytes: Its size.
        hashes: What its content must have: algorithm to hex digest.
        stat: What the source says of it, as far as that is known without asking for this one.
        check: Gets what the source says of it when it is read; raises if it is not what was meant.
    """

    name: str
    bytes: int
    hashes: Mapping[str, str] = field(default_factory=dict)
    stat: FileStat | None = None
    check: Callable[[FileStat], None] | None = field(default=None, repr=False)


class Transfer:
    """Copies files.

    Args:
        source: Where they are.
        target: Where they shall be. Names lead to the same names.
        items: Which.
        jobs: How many at a time.
        show: Whether to show progress bars on a terminal.
        done: Called after each file.

    Raises:
        FormatError: If a name would lead out of the target.
    """

    def __init__(
        self,
        source: Folder,
        target: Folder,
        items: Sequence[Item],
        *,
        jobs: int = JOBS,
        show: bool = False,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        for item in items:
            _check_name(item.name, source)
        self._source, self._target = source, target
        self._items = items
        self._jobs, self._show, self._done = jobs, show, done
        self._found: dict[str, FileStat] = {}
        self.missing: list[Item] = []
        """What is not at the target, after `compare`."""
        self.different: list[Item] = []
        """What is there under the same name, but is something else."""

    def compare(self) -> None:
        """Look at what is there already, and read it where there are hashes to compare with."""
        if not isinstance(self._target, LocalFolder):
            self._found = _listed(self._target)
        with Progress("Comparing", sum(item.bytes for item in self._items), shown=self._show, unit="bytes") as bar:
            for item, state in zip(self._items, self._map(self._state_of, self._items), strict=True):
                bar.advance(item.bytes)
                if state == "missing":
                    self.missing.append(item)
                elif state == "different":
                    self.different.append(item)

    def copy(self) -> int:
        """Copy what is missing or different; returns how many bytes those were.

        Raises:
            FormatError: If what came twice has not the hash that it must have.
            OSError: If something cannot be read or written.
        """
        todo = [*self.missing, *self.different]
        todo_bytes = sum(item.bytes for item in todo)
        whole = sum(item.bytes for item in self._items)
        with Progress("Copying", whole, shown=self._show, done=whole - todo_bytes, unit="bytes") as bar:
            for item, _ in zip(todo, self._map(self._copy_one, todo), strict=True):
                bar.advance(item.bytes)
                self._done()
        if isinstance(self._target, LocalFolder) and os.name == "posix":
            for folder in {(self._target.path / item.name).parent for item in todo}:
                _fsync(folder)
        return todo_bytes

    def _map(self, work: Callable[[Item], T], items: Iterable[Item]) -> Iterator[T]:
        """In threads, in order; after an error nothing more begins."""
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="torchslip-copy") as pool:
            pending: deque[Future[T]] = deque()
            try:
                for item in items:
                    pending.append(pool.submit(work, item))
                    if len(pending) >= 4 * self._jobs:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _state_of(self, item: Item) -> str:
        if isinstance(self._target, LocalFolder):
            path = self._target.path / item.name
            try:
                found = self._target.stat(item.name)
            except FileNotFoundError:
                return "missing"
            same = found.bytes == item.bytes and self._is_same_here(item, path, found)
        else:
            there = self._found.get(item.name)
            if there is None:
                return "missing"
            same = there.bytes == item.bytes and self._is_same_there(item, there)
        return "same" if same else "different"

    def _is_same_here(self, item: Item, path: Path, found: FileStat) -> bool:
        if item.hashes:
            return _difference(path, item.hashes) is None
        stat = item.stat
        if stat is None:
            return False
        if (digest := _md5_of(stat)) is not None:
            return _difference(path, {"md5": digest}) is None
        if stat.mtime_ns is not None and stat.mtime_ns == found.mtime_ns:
            return True
        if not isinstance(self._source, LocalFolder):
            return False
        return _hash_file(self._source.path / item.name, "sha256") == _hash_file(path, "sha256")

    def _is_same_there(self, item: Item, there: FileStat) -> bool:
        digest = _md5_of(there)
        if digest is not None and isinstance(self._source, LocalFolder):
            return _hash_file(self._source.path / item.name, "md5") == digest
        stat = item.stat or self._source.stat(item.name)
        if digest is not None and (wanted := _md5_of(stat)) is not None:
            return wanted == digest
        # An object that was uploaded in parts: as large, and not older than what it shall be a copy of.
        return None not in (stat.mtime_ns, there.mtime_ns) and (there.mtime_ns or 0) >= (stat.mtime_ns or 0)

    def _copy_one(self, item: Item) -> None:
        if isinstance(self._target, LocalFolder):
            path = self._target.path / item.name
            path.parent.mkdir(parents=True, exist_ok=True)
            # The same name in the next attempt, so that what a killed one left is written over.
            key = hashlib.sha256(item.name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
            temporary = path.parent / f"{TEMPORARY_PREFIX}copy-{key}"
            try:
                found = self._fetch(item, temporary)
                _fsync(temporary)
                if found is not None and found.mtime_ns is not None:
                    os.utime(temporary, ns=(found.mtime_ns, found.mtime_ns))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        elif isinstance(self._source, LocalFolder):
            path = self._source.path / item.name
            if path.stat().st_size != item.bytes or (item.hashes and _difference(path, item.hashes) is not None):
                raise FormatError(f"{path} is damaged: its size or hash is not that of its index.")
            self._target.upload(path, item.name)
        else:
            with tempfile.TemporaryDirectory(prefix="torchslip-") as folder:
                self._fetch(item, Path(folder) / "file")
                self._target.upload(Path(folder) / "file", item.name)

    def _fetch(self, item: Item, path: Path) -> FileStat | None:
        """Copy a file into `path` and check it; a second time, if something else came."""
        for attempt in (1, 2):
            found = self._download(item, path)
            size = path.stat().st_size
            reason = f"it has {size} bytes instead of {item.bytes}" if size != item.bytes else None
            reason = reason or (_difference(path, item.hashes) if item.hashes else None)
            if reason is None:
                return found
            if attempt == 2:
                raise FormatError(f"{self._source}/{item.name} is not what it should be, read twice: {reason}.")
        raise AssertionError

    def _download(self, item: Item, path: Path) -> FileStat | None:
        if item.bytes <= _SMALL_BYTES and not isinstance(self._source, LocalFolder):
            data, found = self._source.read_whole(item.name)
            path.write_bytes(data)
        else:
            found = self._source.stat(item.name)
            self._source.download(item.name, path)
        if item.check is not None:
            item.check(found)
        elif item.stat is not None and None not in (found.etag, item.stat.etag) and found.etag != item.stat.etag:
            raise StorageError(f"{self._source}/{item.name} changed since it was listed; start again.")
        return item.stat or found


def _check_name(name: str, source: Folder) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise FormatError(f"{source} has a file whose name would lead out of the folder for it: {name!r}.")


def _listed(folder: Folder) -> dict[str, FileStat]:
    try:
        return dict(folder.entries())
    except FileNotFoundError:
        return {}


def _md5_of(stat: FileStat) -> str | None:
    """The MD5 of the content, where the etag is that."""
    etag = stat.etag or ""
    return etag if len(etag) == 32 and all(digit in "0123456789abcdef" for digit in etag) else None


def _difference(path: Path, hashes: Mapping[str, str]) -> str | None:
    """How the content differs from what it must have, by the first hash that can be computed; None if it does not."""
    for algorithm, expected in hashes.items():
        with contextlib.suppress(MissingDependencyError):
            found = _hash_file(path, algorithm)
            return None if found == expected else f"its {algorithm} is {found} instead of {expected}"
    return None


def _hash_file(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return hash_bytes(algorithm, b"")
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            return hash_bytes(algorithm, view)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
