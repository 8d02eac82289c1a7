"""What is stored: records with random access."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

__all__ = ["FieldKind", "Record", "Schema", "Source", "checked_indices", "image_fields", "lend", "locate"]

FieldKind = Literal["image", "int", "float", "str", "bytes", "json", "array"]
Schema = Mapping[str, FieldKind]
Record = dict[str, Any]
"""Field name to value: `bytes` for ``image`` (still encoded) and ``bytes``, else the Python or numpy value."""

FIELD_KINDS: tuple[str, ...] = get_args(FieldKind)


@runtime_checkable
class Source(Protocol):
    """Records that can be read by number, in any order, from any process. A source is read-only and pickles.

    Besides these four, a source may have

    * ``locate(index) -> str``: the path or URL of a record, for error messages;
    * ``classes: list[str]``: the names of the values of ``label``;
    * ``index(name)``: the value of a field to the ids of the samples that have it;
    * ``shard_sizes``: how many records each shard holds, where the data lies in shards;
    * ``sizes``: the bytes of each record, int64 ``[len]``, known without reading them, or a little more than that; it
      lets loaders plan batches by bytes, and -1 says that a record cannot be read;
    * ``prepare(indices, counts) -> bool``: takes note of the records that come next, in this order, each of which
      stands for as many as `counts` says, so that it can fetch them ahead; False if that makes no difference;
    * ``lend(indices) -> list[Record]``: as ``fetch``, but images may be views of memory that is the source's (read-only
      `memoryview`, valid as long as it is held), which saves a copy;
    * ``fetch_into(indices, field, buffers) -> list[Record]``: as ``fetch``, but the bytes of `field` are written into
      the buffers, one per record, and the record has their number instead. It saves loaders a copy.
    """

    def __len__(self) -> int: ...

    @property
    def schema(self) -> Schema:
        """Field name to kind: image, int, float, str, bytes, json or array."""

    @property
    def fingerprint(self) -> str:
        """Identifies the records: equal for equal data at two places, different when the data has changed."""

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read records, images as the bytes that are stored.

        Raises:
            IndexError: If an index does not lie in ``[0, len)``.
            SampleError: If a record cannot be read; nothing is returned then.
        """


def locate(source: Source, index: int) -> str:
    """Where record `index` of `source` lies, in words for an error message."""
    find = getattr(source, "locate", None)
    return str(find(index)) if find is not None else f"{source!r}[{index}]"


def lend(source: Source, indices: Sequence[int]) -> list[Record]:
    """What ``source.lend`` gives, or ``source.fetch`` where there is none."""
    records: list[Record] = getattr(source, "lend", source.fetch)(indices)
    return records


def image_fields(schema: Schema) -> list[str]:
    """The names of the image fields, in the order of the schema."""
    return [name for name, kind in schema.items() if kind == "image"]


def checked_indices(indices: Sequence[int], length: int) -> list[int]:
    """`indices` as Python integers.

    Raises:
        IndexError: If one does not lie in ``[0, length)``.
    """
    checked = [operator.index(index) for index in indices]
    for index in checked:
        if not 0 <= index < length:
            raise IndexError(f"There is no record {index}: the source has {length}, numbered from 0.")
    return checked
