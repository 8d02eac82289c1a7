"""``index.json``: what the shards of an MDS dataset are called, and how many samples, bytes and hashes they have.

::

    {"shards": [shard, ...], "version": 2}          one line, keys sorted; further top-level keys are allowed

    shard = {"column_encodings": [str], "column_names": [str], "column_sizes": [int|null], "compression": str|null,
             "format": "mds", "hashes": [str], "raw_data": file, "samples": int, "size_limit": int|null,
             "version": 2, "zip_data": file|null}
    file  = {"basename": str, "bytes": int, "hashes": {algorithm: hex}}

``raw_data`` is the shard as it is read, ``zip_data`` the compressed file that is stored in its place. A basename may
have sub-directories. Shards of the formats json, xsv, csv and tsv have ``raw_meta`` and ``zip_meta`` in addition,
``newline`` and, xsv only, ``separator``; no column sizes; and json has ``columns: {name: encoding}`` for names and
encodings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.sources.mds._index_scan import scan_shards
from torchslip.sources.mds._layout import FileInfo, Layout

__all__ = ["INDEX_NAME", "Index", "ShardInfo", "index_text"]

INDEX_NAME = "index.json"


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One shard.

    Attributes:
        layout: What it has in common with others.
        samples: How many there are.
        files: Its files by their key: raw_data, zip_data, raw_meta, zip_meta; those that it has.
    """

    layout: Layout
    samples: int
    files: Mapping[str, FileInfo]


class Index:
    """The shards of a dataset, in about a hundred bytes each.

    Args:
        text: What the file has.

    Raises:
        FormatError: If that is not an index.
    """

    def __init__(self, text: str) -> None:
        self.layouts: list[Layout] = []
        """The distinct layouts, in order of appearance."""
        numbers: dict[Layout, int] = {}
        samples: list[int] = []
        layout_numbers: list[int] = []
        details: list[bytes] = []
        try:
            for layout, count, detail in scan_shards(text):
                number = numbers.setdefault(layout, len(numbers))
                samples.append(count)
                layout_numbers.append(number)
                details.append(detail.encode())
        except (ValueError, RecursionError) as error:
            raise FormatError(f"Not an index of MDS shards: shard {len(samples)}: {error}") from error
        self.layouts.extend(numbers)
        self.samples: npt.NDArray[np.int64] = np.array(samples, np.int64)
        """How many samples each shard has, int64 ``[shards]``."""
        self.layout_numbers: npt.NDArray[np.int32] = np.array(layout_numbers, np.int32)
        """Which of `layouts` each shard has, int32 ``[shards]``."""
        # One block, not an object per shard.
        self._ends = np.cumsum(np.fromiter(map(len, details), np.int64, len(details)))
        self._details = b"".join(details)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read a file.

        Raises:
            FileNotFoundError: If there is none.
            FormatError: If it is not an index.
        """
        return cls.decode(path.read_bytes(), str(path))

    @classmethod
    def decode(cls, data: bytes, where: str) -> Index:
        """Read the bytes of a file that lies at `where`.

        Raises:
            FormatError: If they are not an index.
        """
        try:
            return cls(data.decode())
        except UnicodeDecodeError as error:
            raise FormatError(f"Not an index of MDS shards: not UTF-8: {where}") from error
        except FormatError as error:
            raise FormatError(f"{error}: {where}") from error

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> ShardInfo:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no shard {number}: the index has {len(self)}.")
        layout = self.layouts[self.layout_numbers[number]]
        begin = self._ends[number - 1] if number else 0
        fields = iter(self._details[begin : self._ends[number]].decode().split("\0"))
        files = {
            key: FileInfo(next(fields), int(next(fields)), {name: next(fields) for name in hashes})
            for key, hashes in layout.files
        }
        return ShardInfo(layout, int(self.samples[number]), files)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the index says of its shards."""
        digest = hashlib.sha256(repr(self.layouts).encode())
        for array in (
            self.layout_numbers.astype("<i4"),
            self.samples.astype("<i8"),
            self._ends.astype("<i8"),
        ):
            digest.update(array.tobytes())
        digest.update(self._details)
        return digest.hexdigest()


def index_text(shards: Sequence[Mapping[str, Any]]) -> str:
    """The text of an index of shard entries, byte for byte as mosaicml-streaming writes it."""
    return json.dumps({"shards": list(shards), "version": 2}, sort_keys=True)
