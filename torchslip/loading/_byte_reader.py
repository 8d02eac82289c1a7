"""The stored bytes of samples, from any source into one block of memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import SampleError
from torchslip.sources import Record, Source, locate

__all__ = ["PIECE_BYTES", "ByteReader", "Fill"]

Int64s = npt.NDArray[np.int64]

PIECE_BYTES = 4 << 20
"""How many bytes are asked of a source at once, where they have to be copied into their place."""

_BLIND_SAMPLES = 8  # at once, where sizes are not known


@dataclass(slots=True)
class Fill:
    """A batch while it is read: where each sample goes, and how much of its place it took.

    Attributes:
        ids: Sample ids, int64 ``[B]``.
        places: Where the place of each sample begins, and where the last one ends, int64 ``[B + 1]``.
        memory: The bytes, uint8 ``[places[-1]]``.
        used: Bytes of each sample, int64 ``[B]``.
        labels: int64 ``[B]``, or None.
    """

    ids: Int64s
    places: Int64s
    memory: npt.NDArray[np.uint8]
    used: Int64s
    labels: Int64s | None

    def compact(self) -> Int64s:
        """Move the samples together, where a place was larger than its sample.

        Returns:
            The offsets of the samples, int64 ``[B + 1]``.
        """
        offsets = np.concatenate(([0], np.cumsum(self.used)))
        if offsets[-1] != self.places[-1]:
            for row in range(len(self.ids)):
                here, there, size = int(self.places[row]), int(offsets[row]), int(self.used[row])
                if here != there:
                    self.memory[there : there + size] = self.memory[here : here + size]
        return offsets


class ByteReader:
    """Reads one field of a source.

    Args:
        source: The records.
        field: The field; default: the only one that holds bytes.

    Raises:
        ValueError: If there is no such field, or several and none is named.
    """

    def __init__(self, source: Source, field: str | None) -> None:
        self.source = source
        self.field = _choose_field(source, field)
        self._sizes: Int64s | None = None
        self.has_labels = source.schema.get("label") == "int"

    @property
    def in_place(self) -> bool:
        """Whether the source writes into given memory."""
        return hasattr(self.source, "fetch_into")

    @property
    def knows_sizes(self) -> bool:
        """Whether the source knows sizes without reading."""
        return self._known() is not None

    def sizes(self, ids: Int64s) -> Int64s:
        """Bytes of samples, before they are read. A sample that cannot be read has 0 here, and raises when it is."""
        known = self._known()
        assert known is not None
        return np.maximum(known[ids], 0)

    def _known(self) -> Int64s | None:
        if self._sizes is None:
            sizes = getattr(self.source, "sizes", None)
            self._sizes = None if sizes is None else np.asarray(sizes, np.int64)
        return self._sizes

    def __getstate__(self) -> dict[str, Any]:
        # Eight bytes of each of a million samples would be sent to each worker; there they come from the source again.
        return {**self.__dict__, "_sizes": None}

    def pieces(self, sizes: Int64s, room: int) -> list[slice]:
        """Divide a batch into what is fetched at once: at most `room` bytes, but at least one sample."""
        limit = max(min(PIECE_BYTES, room), 1) if not self.in_place else 1 << 62
        before = np.concatenate(([0], np.cumsum(sizes)))
        pieces, begin = [], 0
        while begin < len(sizes):
            end = max(int(np.searchsorted(before, before[begin] + limit, side="right")) - 1, begin + 1)
            pieces.append(slice(begin, end))
            begin = end
        return pieces

    def read(self, fill: Fill, rows: slice) -> None:
        """Read some samples of a batch into their places.

        Raises:
            SampleError: If one cannot be read, or does not fit its place.
        """
        ids = fill.ids[rows].tolist()
        bounds = list(
            zip(fill.places[rows].tolist(), fill.places[rows.start + 1 : rows.stop + 1].tolist(), strict=True)
        )
        if self.in_place:
            block = memoryview(fill.memory)  # type: ignore[arg-type]
            buffers = [block[begin:end] for begin, end in bounds]
            records: list[Record] = self.source.fetch_into(ids, self.field, buffers)  # type: ignore[attr-defined]
            fill.used[rows] = [record[self.field] for record in records]
        else:
            records = self.source.fetch(ids)
            for row, (begin, end), record in zip(range(rows.start, rows.stop), bounds, records, strict=True):
                value = record[self.field]
                if len(value) > end - begin:
                    raise self._misfit(int(fill.ids[row]), len(value), end - begin)
                fill.memory[begin : begin + len(value)] = np.frombuffer(value, np.uint8)
                fill.used[row] = len(value)
        if fill.labels is not None:
            fill.labels[rows] = [record["label"] for record in records]

    def read_blindly(self, ids: Int64s, most_bytes: int, values: list[bytes], labels: list[int]) -> None:
        """Read samples whose sizes nobody knows, a few at a time.

        Args:
            ids: Sample ids, int64 ``[B]``.
            most_bytes: How many bytes they may have together.
            values: Where their bytes go.
            labels: Where their labels go.

        Raises:
            SampleError: If one cannot be read, or they have more bytes.
        """
        total = 0
        for begin in range(0, len(ids), _BLIND_SAMPLES):
            part: Sequence[int] = ids[begin : begin + _BLIND_SAMPLES].tolist()
            for number, record in zip(part, self.source.fetch(part), strict=True):
                values.append(record[self.field])
                if self.has_labels:
                    labels.append(record["label"])
                total += len(values[-1])
                if total > most_bytes:
                    raise SampleError(
                        f"The first samples of a batch of {len(ids)} have more than {most_bytes} bytes, up to sample "
                        f"{number} ({locate(self.source, number)}), and {self.source!r} does not know sizes ahead. "
                        "Use a smaller batch_size, or raise max_inflight_bytes."
                    )

    def _misfit(self, sample_id: int, size: int, place: int) -> SampleError:
        return SampleError(
            f"Sample {sample_id} has {size} bytes, and had {place} when its source was opened; open the source again: "
            f"{locate(self.source, sample_id)}"
        )


def _choose_field(source: Source, name: str | None) -> str:
    fields = [field for field, kind in source.schema.items() if kind in ("image", "bytes")]
    if name is None and len(fields) == 1:
        return fields[0]
    if name in fields:
        return str(name)
    if name is None:
        raise ValueError(f"{source!r} has {len(fields)} fields of bytes {fields}; choose the one to read with field=.")
    raise ValueError(f"field must be one of the fields of bytes {fields} of {source!r}; got {name!r}.")
