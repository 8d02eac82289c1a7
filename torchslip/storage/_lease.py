"""One at a time, between processes and machines.

On a disk the kernel keeps the lock and releases it when its owner dies. In an object store it is an object that its
owner writes again and again: a third of the lease apart. Who waits measures with its own clock how long the object has
not changed, so clocks need not agree, and takes over what has not changed for a whole lease. Taking over is a
conditional write, so of several only one does.

A store that does not know conditional writes may let two in. What is done under a lease must therefore be right, if not
cheap, when it is done twice.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torchslip.storage._folder import Folder, LocalFolder

if sys.platform != "win32":
    import fcntl

__all__ = ["Lease", "lease_at"]

_LOGGER = logging.getLogger(__name__)


class Lease(Protocol):
    """A right that one process has at a time."""

    def take(self) -> bool:
        """Try to get it, without waiting."""

    def holds(self) -> bool:
        """Whether it is still ours."""

    def release(self) -> None:
        """Give it back; passed over if it is not ours."""


def lease_at(folder: Folder, name: str, *, seconds: float) -> Lease:
    """The lease called `name`.

    Args:
        folder: Where its file lies.
        name: Of the file.
        seconds: How long it lasts after its owner died; on a disk it ends at once.
    """
    if isinstance(folder, LocalFolder):
        return _FileLease(folder.path, name)
    return _ObjectLease(folder, name, seconds)


class _FileLease:
    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._descriptor: int | None = None

    def take(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError as error:  # a file system without locks
            _LOGGER.warning("%s cannot be locked (%s); two processes may do the same work.", self._path, error)
        self._descriptor = descriptor
        return True

    def holds(self) -> bool:
        return self._descriptor is not None

    def release(self) -> None:
        # The file stays: removing it would let two processes hold locks on two files of one name.
        if self._descriptor is not None:
            if sys.platform != "win32":
                # A process that was forked meanwhile has the descriptor too, so closing ours would not be enough.
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


class _ObjectLease:
    def __init__(self, folder: Folder, name: str, seconds: float) -> None:
        self._folder = folder
        self._name = name
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._seen: tuple[bytes, float] | None = None
        self._heartbeat: _Heartbeat | None = None

    def take(self) -> bool:
        found = self._read()
        now = time.monotonic()
        if found is not None:
            if self._seen is None or self._seen[0] != found:
                self._seen = (found, now)
            if now - self._seen[1] < self._seconds:
                return False
            etag = self._folder.stat(self._name).etag
            if self._read() != found or not self._write(etag):
                return False
        elif not self._write(None):
            return False
        # Without conditional writes another one may have written too: the last one has it.
        if not self._is_ours():
            return False
        self._heartbeat = _Heartbeat(self._beat, self._seconds / 3)
        return True

    def holds(self) -> bool:
        return self._heartbeat is not None and self._is_ours()

    def release(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None
            if self._is_ours():
                self._folder.remove([self._name])

    def _beat(self) -> bool:
        # Only what is still ours is prolonged: who has been away for longer than the lease may have lost it.
        if not self._is_ours():
            return False
        etag = self._folder.stat(self._name).etag
        return self._write(etag) or self._is_ours()

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and json.loads(found).get("token") == self._token

    def _read(self) -> bytes | None:
        try:
            return self._folder.read(self._name)
        except FileNotFoundError:
            return None

    def _write(self, etag: str | None) -> bool:
        text = {"token": self._token, "owner": f"{socket.gethostname()}:{os.getpid()}", "beat": uuid.uuid4().hex}
        # False may be the second attempt of a write of ours that went through.
        return self._folder.write_if(self._name, json.dumps(text).encode(), etag=etag) or self._is_ours()


class _Heartbeat:
    def __init__(self, beat: Callable[[], bool], every_seconds: float) -> None:
        self._beat = beat
        self._every = every_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchslip-lease", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(self._every):
            try:
                if not self._beat():
                    return
            except OSError as error:
                _LOGGER.warning("A lease could not be prolonged, again in %.0f s: %s", self._every, error)

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
