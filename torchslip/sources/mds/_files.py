"""Where the bytes of a shard's files come from: mapped as they lie, or decompressed once into the cache.

The cache is a folder that begins with a marker, and in it one file per compressed file::

    <cache>/.torchslip-cache        says whose folder this is
    <cache>/<32 hex>.raw            the decompressed file; the name is a hash of path, size and mtime of the original
    <cache>/<32 hex>.lock           held by the process that decompresses; empty
    <cache>/<32 hex>.<random>.tmp   not yet whole

Nothing else is ever written, and nothing at all in the dataset's own folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchslip.errors import FormatError
from torchslip.sources.mds._compression import parse_compression
from torchslip.sources.mds._hashing import hash_bytes
from torchslip.sources.mds._index import ShardInfo
from torchslip.sources.mds._layout import FileInfo

if sys.platform != "win32":  # there, processes may decompress the same file twice, which costs time only
    import fcntl

__all__ = ["Bytes", "ShardFiles", "default_cache"]

Bytes = mmap.mmap | bytes
"""A mapped file, or the empty one, which cannot be mapped."""

MARKER = ".torchslip-cache"
# A waiter that gives up decompresses the file itself: that is always safe, since entries appear by rename.
_LOCK_DEADLINE_SECONDS = 300.0
_POLL_SECONDS = 0.02
_TRACK_FD = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def default_cache() -> Path:
    """``torchslip/mds`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "torchslip" / "mds"


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Opens the files of shards.

    Attributes:
        root: The folder of the index.
        cache: Where decompressed files go; made when it is first needed.
        validate_hash: An algorithm, True for the first that the index has, or False.
    """

    root: Path
    cache: Path
    validate_hash: bool | str

    def open(self, info: ShardInfo, part: str, *, sparse: bool = False) -> Bytes:
        """Map the file `part` of a shard: data or meta.

        Args:
            info: The shard.
            part: ``data`` or ``meta``.
            sparse: Whether only small parts of the file will be read, so that reading ahead would be waste.

        Raises:
            OSError: If a file is missing or cannot be read.
            FormatError: If its size or hash is not that of the index, or it cannot be decompressed.
        """
        raw = info.files[f"raw_{part}"]
        packed = info.files.get(f"zip_{part}")
        path = self.root / raw.basename
        if packed is not None and not _has_size(path, raw.bytes):
            path = self._decompressed(packed, raw, info.layout.compression or "")
        _keep_freed_memory()
        data = _map(path, raw.bytes)
        self._check_hash(path, raw, data)
        if sparse and isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
            data.madvise(mmap.MADV_RANDOM)
        return data

    def _check_hash(self, path: Path, file: FileInfo, data: Bytes) -> None:
        if self.validate_hash is False:
            return
        algorithm = next(iter(file.hashes)) if self.validate_hash is True else self.validate_hash
        found = hash_bytes(algorithm, memoryview(data))
        if found != file.hashes[algorithm]:
            raise FormatError(f"The {algorithm} is {found}; the index says {file.hashes[algorithm]}: {path}")

    def _decompressed(self, packed: FileInfo, raw: FileInfo, compression: str) -> Path:
        source = self.root / packed.basename
        status = source.stat()
        identity = f"{source.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{raw.bytes}\0{compression}"
        name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        entry = self.cache / f"{name}.raw"
        if _has_size(entry, raw.bytes):
            return entry
        self._prepare_cache()
        with _locked(self.cache / f"{name}.lock"):
            if not _has_size(entry, raw.bytes):
                self._remove_stale(name)
                data = _map(source, packed.bytes)
                self._check_hash(source, packed, data)
                try:
                    whole = parse_compression(compression).decompress(bytes(data), raw.bytes)
                except FormatError as error:
                    raise FormatError(f"{error}: {source}") from error
                self._check_hash(source, raw, whole)
                _write_whole(entry, whole)
        return entry

    def _remove_stale(self, name: str) -> None:
        """Remove what killed processes left of an entry; the file of one that is still at work is younger."""
        for path in self.cache.glob(f"{name}.*.tmp"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - 2 * _LOCK_DEADLINE_SECONDS:
                    path.unlink()

    def _prepare_cache(self) -> None:
        marker = self.cache / MARKER
        if not marker.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            marker.write_text("Decompressed copies of dataset shards; safe to delete.\n")


@functools.cache
def _keep_freed_memory() -> None:
    """Let the C library keep the memory of freed records, as it does in any process that has once freed a large block.

    By default glibc returns it at once, and the pages of the next records are mapped and zeroed anew: batches of 64
    records of 43 kB then come at 35,000 records/s instead of 220,000 (2026-11). After a block of up to 32 MiB was
    freed, glibc raises the limit to twice its size by itself. The block is never touched, so it takes no memory.
    """
    bytes(31 << 20)


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False


def _map(path: Path, size_bytes: int) -> Bytes:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor).st_size
        if found != size_bytes:
            raise FormatError(f"The file has {found} bytes; the index says {size_bytes}: {path}")
        return mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ, **_TRACK_FD) if size_bytes else b""
    finally:
        os.close(descriptor)


def _write_whole(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes, released by the kernel when its owner dies, not inherited by a fork."""
    if sys.platform == "win32":
        yield
        return
    with path.open("a") as file:
        deadline = time.monotonic() + _LOCK_DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                time.sleep(_POLL_SECONDS)
            except OSError:  # a file system without locks
                break
        yield
