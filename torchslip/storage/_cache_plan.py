"""What a process will need of a node cache, told to the others."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from torchslip.storage._lock import hold_exclusively, release

__all__ = ["Plan"]

_STEP_BYTES = 512


class Plan:
    """The names of the entries that this process will need, in a file that is locked while the process lives."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.names: Sequence[str] = ()
        self._file: tuple[int, Path] | None = None
        self._size = 0

    def growth_bytes(self, text: bytes) -> int:
        """How much larger `write` would make the file, which never shrinks."""
        return 0 if self._file is None and not text else -(-len(text) // _STEP_BYTES) * _STEP_BYTES - self._size

    def write(self, root: Path, text: bytes) -> None:
        """Tell the others; with the folder locked."""
        if self._file is None and text:
            path = root / f"{secrets.token_hex(8)}.plan"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            hold_exclusively(descriptor)
            self._file = descriptor, path
        if self._file is not None:
            self._size = max(self._size, -(-len(text) // _STEP_BYTES) * _STEP_BYTES)
            os.pwrite(self._file[0], text.ljust(self._size, b"\n"), 0)

    def __del__(self) -> None:
        # A child has a copy of the object, whose file descriptor was closed when it was forked.
        if self._file is not None and self.pid == os.getpid():
            self._file[1].unlink(missing_ok=True)
            release(self._file[0])
