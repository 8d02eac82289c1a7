"""Several sources as one, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError, SampleError
from torchslip.sources._source import Record, Schema, Source, checked_indices, lend, locate

__all__ = ["Concatenated"]

_BLOCK = 1024


class Concatenated:
    """Sources with the same fields as one source: record i of source k has the number ``starts[k] + i``.

    Labels go by name: where sources list different `classes`, the classes of the whole are all names in alphabetical
    order, and labels are renumbered. A source that lists none is taken to use the numbers of the others.

    Args:
        sources: At least one.
        source_field: The name of a field that is added to every record: the number of the source that it comes from.
            None adds nothing.

    Raises:
        FormatError: If the sources have different fields, or if labels of some have no names and those of others have
            different ones.
        ValueError: If `source_field` is the name of a field of the sources.
    """

    def __init__(self, sources: Sequence[Source], *, source_field: str | None = "source") -> None:
        if not sources:
            raise ValueError("There must be at least one source, got none.")
        self.sources = tuple(sources)
        self.source_field = source_field
        self.schema: Schema = _common_schema(self.sources, source_field)
        ends = np.cumsum([len(source) for source in sources])
        self._length = int(ends[-1])
        self.starts: list[int] = [0, *ends[:-1].tolist()]
        """The number of the first record of each source."""
        self.classes: list[str]
        """Names of the values of ``label``; empty if no source has names."""
        self.classes, self._labels = _merge_classes(self.sources)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<{len(self.sources)} sources>: {len(self)} records)"

    @property
    def fingerprint(self) -> str:
        """A hash of the fingerprints of the sources, in their order, and of `source_field`."""
        parts = [f"field:{self.source_field}", *(source.fingerprint for source in self.sources)]
        return f"concatenated:sha256:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """How many records each shard holds, int64 ``[shards]``; sources without shards count in runs of 1,024.

        Raises:
            AttributeError: If no source lies in shards.
        """
        if not any(hasattr(source, "shard_sizes") for source in self.sources):
            raise AttributeError(f"No source of {self!r} lies in shards.")
        return np.concatenate([_shard_sizes(source) for source in self.sources])

    def source_of(self, index: int) -> tuple[int, int]:
        """The number of the source that holds record `index`, and the number of the record there."""
        (index,) = checked_indices([index], len(self))
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, index - self.starts[number]

    def locate(self, index: int) -> str:
        """Where the record lies, as its source says."""
        number, inner = self.source_of(index)
        return locate(self.sources[number], inner)

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read records, with one call to each source. See `Source.fetch`."""
        return self._fetch(indices, lent=False)

    def lend(self, indices: Sequence[int]) -> list[Record]:
        """The same with images as the sources lend them. See `Source`."""
        return self._fetch(indices, lent=True)

    def _fetch(self, indices: Sequence[int], *, lent: bool) -> list[Record]:
        checked = np.array(checked_indices(indices, len(self)), np.int64)
        numbers = np.searchsorted(self.starts, checked, side="right") - 1
        records: list[Record] = [{}] * len(checked)
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number).tolist()
            inner = (checked[rows] - self.starts[number]).tolist()
            for row, record in zip(rows, self._fetch_from(number, inner, lent), strict=True):
                records[row] = record
        return records

    def prepare(self, indices: Sequence[int], counts: Sequence[int]) -> bool:
        """Pass on to each source what comes next of it. See `Source`."""
        ids, of = np.asarray(indices, np.int64), np.asarray(counts, np.int64)
        numbers = np.searchsorted(self.starts, ids, side="right") - 1
        wanted = False
        for number, source in enumerate(self.sources):
            if (prepare := getattr(source, "prepare", None)) is not None:
                here = numbers == number
                wanted |= prepare(ids[here] - self.starts[number], of[here])
        return wanted

    def _fetch_from(self, number: int, indices: list[int], lent: bool) -> list[Record]:
        source = self.sources[number]
        try:
            records = lend(source, indices) if lent else source.fetch(indices)
        except SampleError as error:
            raise SampleError(
                f"{error} (by the numbers of source {number}, whose sample 0 is sample {self.starts[number]} of all)"
            ) from error
        labels = self._labels[number]
        if labels is not None:
            records = [{**record, "label": labels[record["label"]]} for record in records]
        if self.source_field is not None:
            records = [{**record, self.source_field: number} for record in records]
        return records


def _common_schema(sources: Sequence[Source], source_field: str | None) -> Schema:
    first = dict(sources[0].schema)
    for number, source in enumerate(sources):
        if dict(source.schema) != first:
            raise FormatError(
                f"Sources must have the same fields to be one: source {number} ({source!r}) has {dict(source.schema)}, "
                f"source 0 ({sources[0]!r}) has {first}."
            )
    if source_field is None:
        return first
    if source_field in first:
        raise ValueError(
            f"The sources have a field {source_field!r} of their own; pass another name as source_field=, or None."
        )
    return {**first, source_field: "int"}


def _merge_classes(sources: Sequence[Source]) -> tuple[list[str], list[list[int] | None]]:
    """The classes of the whole, and for each source its labels in them; None where they are the same."""
    listed = [list(getattr(source, "classes", [])) for source in sources]
    known = [classes for classes in listed if classes]
    if all(classes == known[0] for classes in known):
        return (known[0] if known else []), [None] * len(sources)
    unnamed = [number for number, classes in enumerate(listed) if not classes]
    if unnamed and "label" in sources[0].schema:
        raise FormatError(
            f"The sources name different classes, but source {unnamed[0]} ({sources[unnamed[0]]!r}) names none, so it "
            "is not clear what its labels mean. Mix sources that all name their classes, or that name the same ones."
        )
    merged = sorted({name for classes in known for name in classes})
    numbers = {name: number for number, name in enumerate(merged)}
    return merged, [[numbers[name] for name in classes] if classes != merged else None for classes in listed]


def _shard_sizes(source: Source) -> npt.NDArray[np.int64]:
    sizes = getattr(source, "shard_sizes", None)
    if sizes is not None:
        return np.asarray(sizes, np.int64)
    return np.diff(np.append(np.arange(0, len(source), _BLOCK), len(source)))
