"""The files below a folder of this machine, in the order of object stores: by the bytes of their relative paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from torchslip.errors import FormatError
from torchslip.storage._stat import FileStat

__all__ = ["Entry", "list_local"]

Entry = tuple[str, FileStat]
"""The path of a file relative to the folder, with ``/``, and what is known of it."""


def list_local(root: str, *, recursive: bool) -> Iterator[Entry]:
    """Files below `root`, one folder in memory at a time. Symbolic links are followed.

    Raises:
        FormatError: If a symbolic link leads to a folder that it lies in.
        OSError: If `root` is not a folder, or something cannot be read.
    """
    return _below(root, "", recursive, ())


def _below(path: str, prefix: str, recursive: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    status = os.stat(path)  # noqa: PTH116  (as in all of this module: one Path per file costs more than its stat)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise FormatError(f"{path} is a link to a folder that it lies in, so its files have no end. Remove the link.")
    with os.scandir(path) as entries:
        # As if all keys were sorted: of a folder "a" and a file "a.txt", the keys are "a/…" and "a.txt".
        found = sorted((os.fsencode(entry.name) + (b"/" if entry.is_dir() else b""), entry) for entry in entries)
    for _, entry in found:
        name = prefix + (entry.name if os.sep == "/" else entry.name.replace(os.sep, "/"))
        if entry.is_dir():
            if recursive:
                yield from _below(entry.path, f"{name}/", recursive, (*above, here))
            continue
        status = entry.stat()
        if stat.S_ISREG(status.st_mode):
            yield name, FileStat(bytes=status.st_size, mtime_ns=status.st_mtime_ns)
