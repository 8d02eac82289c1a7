"""From samples to the bytes of MDS shards and their index entries; where they go is for others to say."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torchslip.sources.mds import checked_hashes, hash_bytes, parse_compression, parse_encoding
from torchslip.storage import parse_bytes

__all__ = ["Shard", "ShardBuilder", "parse_size"]

_MAX_BYTES = (1 << 32) - 1  # offsets are uint32


@dataclass(frozen=True, slots=True, repr=False)
class Shard:
    """A shard that is complete.

    Attributes:
        name: Of its file.
        data: The whole file.
        entry: What the index says of it.
    """

    name: str
    data: bytes
    entry: Mapping[str, Any]


class ShardBuilder:
    """Collects samples until a shard is full. See `MDSWriter` for the arguments.

    Args:
        columns: Name to encoding.
        compression: Of the files, or None.
        hashes: Algorithms for the hashes in the index.
        size_limit: Bytes of a shard before compression; None or 0 makes one shard.
        first: The number of the first shard.

    Raises:
        ValueError: If an encoding, compression, hash or size is not a valid one.
    """

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        compression: str | None,
        hashes: str | Sequence[str] | None,
        size_limit: int | str | None,
        first: int = 0,
    ) -> None:
        self._columns = [(name, parse_encoding(columns[name])) for name in sorted(columns)]
        if not self._columns:
            raise ValueError("columns must name at least one column.")
        self._compression = parse_compression(compression) if compression else None
        self._hashes = checked_hashes(hashes)
        self._size_limit = parse_size(size_limit) if size_limit else None
        self._config = {
            "column_encodings": [encoding.name for _, encoding in self._columns],
            "column_names": [name for name, _ in self._columns],
            "column_sizes": [encoding.size for _, encoding in self._columns],
            "compression": compression or None,
            "format": "mds",
            "hashes": self._hashes,
            "size_limit": self._size_limit,
            "version": 2,
        }
        self._config_bytes = json.dumps(self._config, sort_keys=True).encode()
        self._number = first
        self._begin()

    def _begin(self) -> None:
        self._samples: list[list[bytes]] = []
        self._sizes: list[int] = []
        self._bytes = 8 + len(self._config_bytes)

    def encode(self, sample: Mapping[str, Any]) -> list[bytes]:
        """The parts that a sample is stored as; nothing is added yet.

        Raises:
            TypeError: If a value is not what its column takes.
            ValueError: If a value does not fit, a column is missing or unknown, or a shard would exceed 4 GiB.
        """
        if len(sample) != len(self._columns) or not all(name in sample for name, _ in self._columns):
            names = [name for name, _ in self._columns]
            missing = [name for name in names if name not in sample]
            unknown = [str(name) for name in sample if name not in names]
            raise ValueError(
                f"The sample must have the columns {', '.join(names)}"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; unknown: {', '.join(unknown)}" if unknown else "")
                + "."
            )
        data, head = [], []
        for name, encoding in self._columns:
            try:
                value = encoding.encode(sample[name])
                if encoding.size is None:
                    head.append(struct.pack("<I", len(value)))
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # Pillow, json and pickle have classes of their own
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"Column {name!r} ({encoding.name}): {error}.") from error
            data.append(value)
        parts = [*head, *data]
        size = sum(map(len, parts))
        alone = not self._samples or self._is_full_for(size)
        if (8 + len(self._config_bytes) if alone else self._bytes) + size + 4 > _MAX_BYTES:
            raise ValueError(
                f"A sample of {size} bytes would make the shard larger than the 4 GiB that its 32-bit offsets can "
                f"reach; {'divide it' if alone else 'set size_limit'}."
            )
        return parts

    def _is_full_for(self, size: int) -> bool:
        return bool(self._size_limit and self._samples and self._size_limit < self._bytes + size + 4)

    def add(self, parts: list[bytes]) -> Shard | None:
        """Add an encoded sample; returns the shard of those before it, if that is full."""
        size = sum(map(len, parts))
        full = self.finish() if self._is_full_for(size) else None
        self._samples.append(parts)
        self._sizes.append(size)
        self._bytes += size + 4
        return full

    def finish(self) -> Shard | None:
        """The shard of the samples since the last one, if there are any."""
        count = len(self._samples)
        if not count:
            return None
        first = 4 + 4 * (count + 1) + len(self._config_bytes)
        raw = b"".join(
            (
                struct.pack(f"<{count + 2}I", count, *accumulate(self._sizes, initial=first)),
                self._config_bytes,
                *(part for parts in self._samples for part in parts),
            )
        )
        self._begin()
        name = f"shard.{self._number:05}.mds"
        self._number += 1
        entry = {**self._config, "samples": count, "raw_data": self._describe(name, raw), "zip_data": None}
        if self._compression is not None:
            raw = self._compression.compress(raw)
            name = f"{name}.{self._compression.name}"
            entry["zip_data"] = self._describe(name, raw)
        return Shard(name, raw, entry)

    def _describe(self, name: str, data: bytes) -> dict[str, Any]:
        return {
            "basename": name,
            "bytes": len(data),
            "hashes": {algorithm: hash_bytes(algorithm, data) for algorithm in self._hashes},
        }


def parse_size(size: int | str, *, argument: str = "size_limit") -> int:
    """Bytes of ``"128mb"``, ``"0.5 gb"``, ``"4096b"`` or a number; `argument` is for the error.

    Raises:
        ValueError: If it is none, or not below 4 GiB.
    """
    value = parse_bytes(size)
    if value is None or value > _MAX_BYTES:
        raise ValueError(
            f"{argument} must be a number of bytes from 1 to 4294967295 (the offsets have 32 bits), or such as '64mb' "
            f"or '1.5gb'; got {size!r}."
        )
    return value
