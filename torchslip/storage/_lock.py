"""Locks between processes, on whole files: the kernel releases them when their holder dies.

`flock` belongs to what `open` made, not to the process: two threads that each open the file exclude each other, and a
forked child shares its parent's lock. A child that lived on would so keep the lock of a parent that was killed, so
children close what their parent has locked exclusively.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["hold_exclusively", "locked", "locked_folder", "release", "share", "try_lock"]

_POLL_SECONDS = (0.001, 0.02)
_exclusive: set[int] = set()


def try_lock(descriptor: int, *, shared: bool) -> bool:
    """Lock an open file; returns whether that was possible at once.

    Raises:
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":  # a file that is open cannot be removed there
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_exclusively(descriptor: int) -> bool:
    """As `try_lock`, for a lock that is kept for longer; it must be given back with `release`."""
    _exclusive.add(descriptor)
    if try_lock(descriptor, shared=False):
        return True
    _exclusive.discard(descriptor)
    return False


def share(descriptor: int) -> None:
    """Turn an exclusive lock into a shared one; for a moment there is none."""
    try_lock(descriptor, shared=True)
    _exclusive.discard(descriptor)


def release(descriptor: int) -> None:
    """Unlock, for children that have a copy of the descriptor too, and close."""
    _exclusive.discard(descriptor)
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, seconds: float) -> Iterator[None]:
    """Hold the exclusive lock of a file, which is made if it is not there.

    Raises:
        TimeoutError: If others have held it for `seconds`.
        OSError: If the file cannot be opened or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline, pause = time.monotonic() + seconds, _POLL_SECONDS[0]
        while not hold_exclusively(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Others have held the lock for {seconds:.0f} s: {path}")
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS[1])
        yield
    finally:
        release(descriptor)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of a folder itself, which needs no file; a file system without locks has none.

    Raises:
        TimeoutError: If another process has it; nobody waits.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            alone = hold_exclusively(descriptor)
        except OSError:
            alone = True
        if not alone:
            raise TimeoutError(f"Another process writes into {path}. Wait for it to end, and try again.")
        yield
    finally:
        release(descriptor)


def _close_in_child() -> None:
    while _exclusive:
        with contextlib.suppress(OSError):
            os.close(_exclusive.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
