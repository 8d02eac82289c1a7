"""Which samples have a given value: the index of one field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from torchslip.sources._source import Source

__all__ = ["FieldIndex", "FieldIndexBuilder", "index_values"]

Value = int | str
_SCAN_RECORDS = 4096


class FieldIndex(Mapping[Value, npt.NDArray[np.int64]]):
    """The value of a field to the ids of the samples that have it, rising: ``Subset(source.index("label")[3])``.

    Args:
        values: The values that occur, rising.
        ends: Where the ids of each value end, int64 ``[values]``.
        ids: The ids of all samples, those of one value after those of the other, int64 ``[samples]``.

    Raises:
        ValueError: If these contradict each other.
    """

    def __init__(self, values: Sequence[Value], ends: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> None:
        self._place = {value: place for place, value in enumerate(values)}
        self.ends = ends
        self.ids = ids
        begins = np.concatenate(([0], ends))
        if len(self._place) < len(values) or ends.shape != (len(values),) or begins[-1] != len(ids):
            raise ValueError(f"{len(values)} values, {len(ends)} ends and {len(ids)} samples are no index")
        # The number of every sample, once: then no id is out of range or in two places.
        if (begins[1:] < begins[:-1]).any() or (ids < 0).any() or (ids >= len(ids)).any():
            raise ValueError("the ids of the samples are out of range")
        if (np.bincount(ids, minlength=len(ids)) != 1).any():
            raise ValueError("a sample has two values, or none")

    def __getitem__(self, value: Value) -> npt.NDArray[np.int64]:
        place = self._place[value]
        return self.ids[self.ends[place - 1] if place else 0 : self.ends[place]].copy()

    def __iter__(self) -> Iterator[Value]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def __repr__(self) -> str:
        return f"FieldIndex({len(self)} values of {len(self.ids)} samples)"

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many samples have each value, in the order of iteration, int64 ``[values]``."""
        return np.diff(self.ends, prepend=0)


class FieldIndexBuilder:
    """Makes an index of the values of a field, sample after sample.

    Args:
        limit: With more values than this, there is no index: one of captions is as large as the captions.
    """

    def __init__(self, *, limit: int | None = None) -> None:
        self._limit = limit
        self._codes: dict[Value, int] = {}
        self._parts: list[npt.NDArray[np.int32]] = []

    def add(self, values: Iterable[Value]) -> None:
        """The values of the next samples."""
        if self.is_over():
            return
        codes = self._codes
        # `setdefault` gets its second argument before it looks, so a new value has the next number.
        self._parts.append(np.fromiter((codes.setdefault(value, len(codes)) for value in values), np.int32))
        if self.is_over():
            self._parts.clear()  # what `build` would make is of no use any more

    def is_over(self) -> bool:
        """Whether there are more values than the limit."""
        return self._limit is not None and len(self._codes) > self._limit

    def build(self) -> FieldIndex:
        """The index of all samples that were added; not if there are too many values."""
        values = sorted(self._codes, key=lambda value: (isinstance(value, str), value))
        rank = np.empty(len(values), np.int32)
        rank[[self._codes[value] for value in values]] = np.arange(len(values))
        ranks = rank[np.concatenate((np.zeros(0, np.int32), *self._parts))]
        ends = np.cumsum(np.bincount(ranks, minlength=len(values)), dtype=np.int64)
        return FieldIndex(values, ends, np.argsort(ranks, kind="stable").astype(np.int64))


def index_values(source: Source, name: str) -> FieldIndex:
    """The index of a field, by reading it from every record; `source` should have no other field."""
    builder = FieldIndexBuilder()
    for begin in range(0, len(source), _SCAN_RECORDS):
        records = source.fetch(range(begin, min(begin + _SCAN_RECORDS, len(source))))
        builder.add(record[name] for record in records)
    return builder.build()
