"""A shard of the format mds, mapped into memory.

::

    0           uint32  n                   samples
    4           uint32  offset[n + 1]       where each sample begins; the last is the size of the file
    8 + 4 n     JSON    configuration       up to offset[0]; the index says the same, and this is not read
    offset[i]   sample i:
                uint32  size[v]             of the columns without a fixed size, in the order of the columns
                bytes   column after column

Everything is little-endian. No magic number, no checksum: the index has the size, and hashes if the writer was told so.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Collection
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.sources._source import Record
from torchslip.sources.mds._encodings import Encoding
from torchslip.sources.mds._files import Bytes

__all__ = ["FieldPlan", "ShardReader", "checked_offsets", "open_shard", "read_sizes", "sample_reader"]

_SIZES_DIFFER = "The sizes of the sample's columns do not give its size"


class _Field(NamedTuple):
    name: str
    before: int  # how many columns without a fixed size stand before it
    skip: int  # bytes of the sample's head and of the columns of fixed size before it
    size: int | None
    unpack: Callable[..., tuple[Any, ...]] | None
    is_lent: bool
    convert: Callable[[bytes], Any] | None


class ShardReader(NamedTuple):
    """Random access to the samples of one shard, from a sample's row, which must be there.

    Attributes:
        read: The record of a sample.
        lend: The same, with views of the mapped file for the values that the plan lends.
    """

    read: Callable[[int], Record]
    lend: Callable[[int], Record]


class FieldPlan:
    """Where the wanted columns of a sample are; worked out once for all shards of a layout.

    Args:
        columns: Name and encoding of each column, in the order of storage.
        wanted: The names to read.
        convert: What to do with the bytes of a column instead of `Encoding.field`.
        lent: The names of columns whose bytes can be lent.
    """

    def __init__(
        self,
        columns: list[tuple[str, Encoding]],
        wanted: Collection[str],
        convert: dict[str, Callable[[bytes], Any]],
        lent: Collection[str] = (),
    ) -> None:
        self.variable = sum(encoding.size is None for _, encoding in columns)
        self.fields: list[_Field] = []
        self.leaves_out = False
        """Whether a column without a fixed size, which may be large, is not wanted."""
        before, skip = 0, 4 * self.variable
        for name, encoding in columns:
            size = encoding.size
            if name in wanted:
                scalar = encoding.scalar if name not in convert else None
                unpack = struct.Struct(scalar).unpack_from if scalar else None
                make = convert.get(name, encoding.field)
                is_lent = name in lent and make is None
                self.fields.append(_Field(name, before, skip, size, unpack, is_lent, make))
            elif size is None:
                self.leaves_out = True
            before, skip = (before + 1, skip) if size is None else (before, skip + size)
        self.fixed_bytes = skip


def read_sizes(path: Path, samples: int) -> npt.NDArray[np.int64]:
    """The size of each sample of a shard by its table, int64 ``[samples]``; -1 where the table makes no sense."""
    unknown = np.full(samples, -1, np.int64)
    try:
        table = np.fromfile(path, "<u4", samples + 2).astype(np.int64)
        whole = path.stat().st_size
    except OSError:
        return unknown
    if len(table) != samples + 2 or table[0] != samples or table[-1] > whole:
        return unknown
    sizes = np.diff(table[1:])
    return sizes if (sizes >= 0).all() else unknown


def open_shard(data: Bytes, samples: int, plan: FieldPlan) -> ShardReader:
    """Random access to the samples of one shard.

    Args:
        data: The whole file.
        samples: How many samples the index says it has.
        plan: What to read of each.

    Raises:
        FormatError: If number and offsets of the samples contradict the index or the size of the file; from the
            functions, if the sizes of a sample's columns do not give its size.
    """
    return sample_reader(data, checked_offsets(data, samples, first=8 + 4 * samples, last=len(data)), plan)


def sample_reader(data: Bytes, offsets: memoryview, plan: FieldPlan) -> ShardReader:
    """The same, for samples that lie at `offsets` in `data`, the last of which says where they end."""
    read = (_reader if plan.variable == 1 else _general_reader)(data, offsets, plan)
    return ShardReader(read, functools.partial(read, lent=memoryview(data)))


def _reader(data: Bytes, offsets: memoryview, plan: FieldPlan) -> Callable[..., Record]:
    """For samples with one column without a fixed size, such as an image and its label.

    A record of 43 kB is copied in 3.2 µs; this takes 0.5 µs on top of it, the general way 0.8 µs (2026-11).
    """
    fixed, fields = plan.fixed_bytes, plan.fields
    unpack_size = struct.Struct("<I").unpack_from

    def read(row: int, lent: Bytes | memoryview = data) -> Record:
        begin = offsets[row]
        (length,) = unpack_size(data, begin)
        if begin + fixed + length != offsets[row + 1]:
            raise FormatError(_SIZES_DIFFER)
        record: Record = {}
        for name, before, skip, size, unpack, is_lent, convert in fields:
            at = begin + skip + length if before else begin + skip
            if unpack is not None:
                (record[name],) = unpack(data, at)
                continue
            end = at + (length if size is None else size)
            if convert is None:
                record[name] = (lent if is_lent else data)[at:end]
            else:
                record[name] = convert(data[at:end])
        return record

    return read


def _general_reader(data: Bytes, offsets: memoryview, plan: FieldPlan) -> Callable[..., Record]:
    fixed, fields = plan.fixed_bytes, plan.fields
    unpack_sizes = struct.Struct(f"<{plan.variable}I").unpack_from

    def read(row: int, lent: Bytes | memoryview = data) -> Record:
        begin = offsets[row]
        sizes = unpack_sizes(data, begin)
        ends = tuple(accumulate(sizes, initial=0))
        if begin + fixed + ends[-1] != offsets[row + 1]:
            raise FormatError(_SIZES_DIFFER)
        record: Record = {}
        for name, before, skip, size, unpack, is_lent, convert in fields:
            at = begin + skip + ends[before]
            if unpack is not None:
                (record[name],) = unpack(data, at)
                continue
            end = at + (sizes[before] if size is None else size)
            if convert is None:
                record[name] = (lent if is_lent else data)[at:end]
            else:
                record[name] = convert(data[at:end])
        return record

    return read


def checked_offsets(data: Bytes, samples: int, *, first: int, last: int) -> memoryview:
    """The offsets in the head of a shard, or of the meta file of one.

    Raises:
        FormatError: If they are not rising from `first`, or from somewhere behind it, to `last`.
    """
    if len(data) < 8 + 4 * samples or int.from_bytes(data[:4], "little") != samples:
        raise FormatError(f"The shard does not have the {samples} samples that the index says")
    offsets = np.frombuffer(data, "<u4", samples + 1, 4)
    if offsets[0] < first or offsets[-1] != last or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"The offsets of the samples do not rise from at least {first} to {last}")
    return offsets.astype(np.uint32, copy=False).data
