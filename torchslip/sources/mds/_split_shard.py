r"""A shard of the formats json, xsv, csv and tsv: lines of text, and a second file that says where each begins.

::

    data    json: one object per line; the others: a line of column names, then one line of values per sample
    meta    uint32 n, uint32 offset[n + 1] into the data, JSON configuration

Values are separated by ``,`` in csv, by a tab in tsv, by what the index says in xsv; nothing is quoted. Text is UTF-8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from torchslip.errors import FormatError
from torchslip.sources._source import Record
from torchslip.sources.mds._files import Bytes
from torchslip.sources.mds._layout import Layout
from torchslip.sources.mds._shard import ShardReader, checked_offsets

__all__ = ["open_split_shard"]

_TYPES: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
_JSON_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


def open_split_shard(data: Bytes, meta: Bytes, samples: int, layout: Layout, wanted: Collection[str]) -> ShardReader:
    """Random access to the samples of one shard.

    Args:
        data: The file of lines.
        meta: The file of offsets.
        samples: How many samples the index says it has.
        layout: The columns and what separates them.
        wanted: The names to read.

    Raises:
        FormatError: If number and offsets of the samples contradict the index or the size of the files; from the
            functions, if a line does not have the columns.
    """
    offsets = checked_offsets(meta, samples, first=0, last=len(data))
    parse = _parse_json if layout.format == "json" else _split
    fields = [(name, _TYPES[kind]) for name, kind in layout.columns if name in wanted]

    def read(row: int) -> Record:
        values = parse(data[offsets[row] : offsets[row + 1]].decode(), layout)
        return {name: convert(values[name]) for name, convert in fields}

    return ShardReader(read, read)


def _parse_json(line: str, layout: Layout) -> dict[str, Any]:
    values = json.loads(line)
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name), _JSON_TYPES[kind]) for name, kind in layout.columns
    ):
        raise FormatError("The line is not an object with the columns that the index says")
    return values


def _split(line: str, layout: Layout) -> dict[str, Any]:
    if not line.endswith(layout.newline):
        raise FormatError("The line has no end")
    parts = line[: len(line) - len(layout.newline)].split(layout.separator)
    if len(parts) != len(layout.columns):
        raise FormatError(f"The line has {len(parts)} values for {len(layout.columns)} columns")
    return dict(zip(layout.names, parts, strict=True))
