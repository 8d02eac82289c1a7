"""Where the bytes of a shard's files come from: mapped as they lie, or downloaded or decompressed into the node cache.

Nothing is ever written into the dataset's own folder.
"""

from __future__ import annotations

import functools
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchslip.errors import FormatError, MissingDependencyError
from torchslip.sources.mds._compression import parse_compression
from torchslip.sources.mds._hashing import hash_bytes
from torchslip.sources.mds._index import ShardInfo
from torchslip.sources.mds._layout import FileInfo
from torchslip.storage import Entry, Folder, LocalFolder, NodeCache

__all__ = ["Bytes", "Place", "ShardFiles"]

Bytes = mmap.mmap | bytes
"""A mapped file, or the empty one, which cannot be mapped."""
Place = Literal["folder", "cache", "memory"]
"""Where a mapped file lies: in the dataset's own folder, in the node cache, or in memory if that cannot keep it."""

_TRACK_FD = {"trackfd": False} if sys.version_info >= (3, 13) else {}


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Opens the files of shards.

    Attributes:
        folder: Where the index lies.
        cache: Where files go that were downloaded or decompressed.
        validate_hash: An algorithm, True for the first that the index has, or False. What was downloaded is checked
            in any case, if the index has hashes.
        version: Of the index: tells the shards of a dataset from those of one that was there before.
    """

    folder: Folder
    cache: NodeCache
    validate_hash: bool | str
    version: str

    def open(
        self, info: ShardInfo, part: str, *, sparse: bool = False, let_go: Callable[[], None] | None = None
    ) -> tuple[Bytes, Place]:
        """Map the file `part` of a shard: data or meta; returns where it lies, too.

        Args:
            info: The shard.
            part: ``data`` or ``meta``.
            sparse: Whether only small parts of the file will be read, so that reading ahead would be waste.
            let_go: See `NodeCache.open`.

        Raises:
            OSError: If a file is missing or cannot be read.
            FormatError: If its size or hash is not that of the index, or it cannot be decompressed.
        """
        raw = info.files[f"raw_{part}"]
        path = self._in_place(info, part)
        _keep_freed_memory()
        if path is not None:
            data = _map(path, raw.bytes)
            self._check_hash(path, raw, data)
            place: Place = "folder"
        else:
            # The map keeps the entry in use when `held` is closed.
            with self.cache.open(
                self._entry(info, part),
                functools.partial(self._fetch, info, part),
                check=functools.partial(self._check_fetched, raw),
                recheck=self.validate_hash is not False,
                let_go=let_go,
            ) as held:
                data = held.map()
                place = "cache" if held.kept else "memory"
        if sparse and isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
            data.madvise(mmap.MADV_RANDOM)
        return data, place

    def prefetch(self, info: ShardInfo, part: str, *, next_use: int) -> str:
        """Bring a file that is not mapped in place into the cache, see `NodeCache.prefetch`."""
        return self.cache.prefetch(
            self._entry(info, part),
            functools.partial(self._fetch, info, part),
            check=functools.partial(self._check_fetched, info.files[f"raw_{part}"]),
            next_use=next_use,
        )

    def entry(self, info: ShardInfo, part: str) -> Entry | None:
        """What the file is in the cache; None if it is mapped in place."""
        return None if self._in_place(info, part) else self._entry(info, part)

    def _in_place(self, info: ShardInfo, part: str) -> Path | None:
        if not isinstance(self.folder, LocalFolder):
            return None
        raw = info.files[f"raw_{part}"]
        path = self.folder.path / raw.basename
        return path if f"zip_{part}" not in info.files or _has_size(path, raw.bytes) else None

    def _entry(self, info: ShardInfo, part: str) -> Entry:
        raw = info.files[f"raw_{part}"]
        source = info.files.get(f"zip_{part}", raw)
        url = f"{self.folder}/{source.basename}"
        if isinstance(self.folder, LocalFolder):
            path = self.folder.path / source.basename
            status = path.stat()
            url, version = str(path.resolve()), f"{status.st_size}\0{status.st_mtime_ns}"
        else:
            # Hashes identify the bytes. Without, it is when the index was written, after the shards.
            version = repr(sorted(source.hashes.items())) if source.hashes else self.version
        return Entry(f"{url}\0{version}\0{source.bytes}\0{info.layout.compression or ''}", raw.bytes, url)

    def _fetch(self, info: ShardInfo, part: str, path: Path) -> None:
        raw, packed = info.files[f"raw_{part}"], info.files.get(f"zip_{part}")
        if packed is None:
            self._expect(raw, self.folder.stat(raw.basename).bytes)
            self.folder.download(raw.basename, path)
            return
        if isinstance(self.folder, LocalFolder):
            source = self.folder.path / packed.basename
            data: Bytes = _map(source, packed.bytes)
            self._check_hash(source, packed, data)
        else:
            data = self.folder.read(packed.basename)
            self._expect(packed, len(data))
            self._check_fetched(packed, data)
        try:
            whole = parse_compression(info.layout.compression or "").decompress(bytes(data), raw.bytes)
        except FormatError as error:
            raise FormatError(f"{error}: {self.folder}/{packed.basename}") from error
        path.write_bytes(whole)

    def _expect(self, file: FileInfo, found: int) -> None:
        if found != file.bytes:
            raise FormatError(f"The file has {found} bytes; the index says {file.bytes}: {self.folder}/{file.basename}")

    def _check_fetched(self, file: FileInfo, data: bytes | memoryview) -> None:
        if self.validate_hash is not False:
            self._check_hash(f"{self.folder}/{file.basename}", file, data)
        elif not isinstance(self.folder, LocalFolder):
            for algorithm in file.hashes:
                try:
                    _compare_hash(algorithm, f"{self.folder}/{file.basename}", file.hashes, data)
                except MissingDependencyError:
                    continue
                break

    def _check_hash(self, path: Path | str, file: FileInfo, data: Bytes | memoryview) -> None:
        if self.validate_hash is not False:
            algorithm = next(iter(file.hashes)) if self.validate_hash is True else self.validate_hash
            _compare_hash(algorithm, path, file.hashes, data)


def _compare_hash(algorithm: str, path: Path | str, hashes: Mapping[str, str], data: Bytes | memoryview) -> None:
    found = hash_bytes(algorithm, memoryview(data))
    if found != hashes[algorithm]:
        raise FormatError(f"The {algorithm} is {found}; the index says {hashes[algorithm]}: {path}")


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
