"""The files of a dataset one by one, to be read ahead: into the node cache, or into the memory of the system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torchslip.sources.mds._source import MDS
from torchslip.storage import Entry

__all__ = ["ShardFile", "shard_files"]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file that reading the dataset needs.

    Attributes:
        bytes: Its size, decompressed.
        entry: What it is in the node cache; None if it is mapped where it lies.
        load: Reads it, or fetches it into the cache; gets its turn there. Returns as `NodeCache.prefetch`, or ``read``.
    """

    bytes: int
    entry: Entry | None
    load: Callable[[int], str] = field(repr=False)


def shard_files(source: MDS) -> list[ShardFile]:
    """All files that reading a dataset needs, in its order."""
    found = []
    files = source._files
    for info in source._index:
        for part in ("data",) if info.layout.format == "mds" else ("data", "meta"):
            raw = info.files[f"raw_{part}"]
            entry = files.entry(info, part)
            if entry is None:
                load: Callable[[int], str] = partial(_read, Path(source.root) / raw.basename)
            else:
                load = partial(_fetch, source, info, part)
            found.append(ShardFile(raw.bytes, entry, load))
    return found


def _fetch(source: MDS, info: object, part: str, turn: int) -> str:
    return source._files.prefetch(info, part, next_use=turn)  # type: ignore[arg-type]


def _read(path: Path, turn: int) -> str:
    buffer = bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return "read"
