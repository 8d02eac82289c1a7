"""The files of a node cache in the hands of a process: an entry that is open, and one that is being fetched."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from torchslip.errors import FormatError
from torchslip.storage._lock import hold_exclusively, release, share

__all__ = ["Check", "Fetch", "Held", "Part", "fetch_into_memory", "verify"]

Fetch = Callable[[Path], None]
"""Writes the bytes of an entry into a file that is there already, in place."""
Check = Callable[[memoryview], None]
"""Raises `FormatError` if these are not the bytes of the entry."""


class Held:
    """An entry that is open. Until it is closed, and its maps are gone too, no process removes it.

    Attributes:
        path: The file; only valid while this is open.
        bytes: Its size.
        kept: Whether it lies in the cache. Else it is in memory, and gone when it is closed.
    """

    def __init__(self, descriptor: int, path: Path, size_bytes: int, *, kept: bool) -> None:
        self._descriptor = descriptor
        self.path = path
        self.bytes = size_bytes
        self.kept = kept

    def fileno(self) -> int:
        """The file descriptor, which holds the lock."""
        return self._descriptor

    def map(self) -> mmap.mmap | bytes:
        """The bytes, mapped; the map keeps the entry held."""
        return mmap.mmap(self._descriptor, self.bytes, access=mmap.ACCESS_READ) if self.bytes else b""

    def close(self) -> None:
        """Let go of the entry."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # Closed, not unlocked: a map, or a forked child, may still have it.
            os.close(descriptor)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Part:
    """An entry that this process fetches: a file of its own, locked so that others can tell whether it is alive.

    Args:
        path: Where; made here.
        size_bytes: What is set aside for it on the disk.

    Raises:
        OSError: If the disk is full.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        self._bytes = size_bytes
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if not hold_exclusively(self._descriptor):
                raise BlockingIOError(errno.EWOULDBLOCK, "Another process has locked a new file", str(path))
            _allocate(self._descriptor, size_bytes)
        except BaseException:
            self.remove()
            raise

    def check(self, check: Check | None) -> None:
        """See `verify`; then make the bytes durable."""
        verify(self._descriptor, self._bytes, check)
        os.fsync(self._descriptor)

    def publish(self, path: Path) -> Held:
        """Give it the name of the entry, and hold that; to be called with the folder locked."""
        self.path.replace(path)
        share(self._descriptor)
        return Held(self._descriptor, path, self._bytes, kept=True)

    def remove(self, *, put_aside: Path | None = None) -> None:
        """Remove the file, or give it the name of a damaged one if it is no larger than it should be."""
        with contextlib.suppress(OSError):
            if put_aside is not None and os.fstat(self._descriptor).st_size <= self._bytes:
                self.path.replace(put_aside)
            self.path.unlink(missing_ok=True)
        release(self._descriptor)


def verify(descriptor: int, size_bytes: int, check: Check | None) -> None:
    """Compare a file with what it should be.

    Raises:
        FormatError: If it has another size, or `check` does not like it.
    """
    found = os.fstat(descriptor).st_size
    if found != size_bytes:
        raise FormatError(f"{found} bytes came where {size_bytes} were expected")
    if check is not None:
        if not size_bytes:
            check(memoryview(b""))
            return
        with mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            check(view)


def fetch_into_memory(size_bytes: int, fetch: Fetch, check: Check | None) -> Held:
    """An entry that is not kept: in memory where the system has files there, else in a temporary file without a name.

    Raises:
        FormatError: See `verify`.
    """
    name = None
    if sys.platform == "linux" and Path("/proc/self/fd").exists():
        descriptor = os.memfd_create("torchslip", os.MFD_CLOEXEC)
        path = Path(f"/proc/self/fd/{descriptor}")
    else:
        descriptor, name = tempfile.mkstemp(prefix="torchslip-")
        path = Path(name)
    try:
        fetch(path)
        verify(descriptor, size_bytes, check)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        if name is not None:
            with contextlib.suppress(OSError):  # Windows
                path.unlink()
    return Held(descriptor, path, size_bytes, kept=False)


def _allocate(descriptor: int, size_bytes: int) -> None:
    """Take the room now, so that a full disk shows before anything is fetched."""
    if size_bytes and sys.platform == "linux":
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
