"""Looking at every byte of a shard: sizes, hashes, offsets, values."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from torchslip.errors import FormatError, MissingDependencyError
from torchslip.sources._source import Record
from torchslip.sources.mds._compression import parse_compression
from torchslip.sources.mds._encodings import parse_encoding
from torchslip.sources.mds._files import Bytes
from torchslip.sources.mds._hashing import hash_bytes
from torchslip.sources.mds._index import ShardInfo
from torchslip.sources.mds._layout import FileInfo
from torchslip.sources.mds._shard import FieldPlan, open_shard
from torchslip.sources.mds._split_shard import open_split_shard

__all__ = ["check_shard"]

_IMAGE_LISTS = ("jpeg_array", "jpegarray", "list[jpeg]", "list[pil]", "list[png]")


def check_shard(
    root: Path, info: ShardInfo, images: Collection[str], check_image: Callable[[int, str, bytes], None]
) -> Iterator[tuple[int | None, str]]:
    """What is wrong with a shard; nothing if it is whole.

    Pickles are not loaded. A compressed shard is decompressed in memory.

    Args:
        root: The folder of the index.
        info: The shard.
        images: The columns that hold images.
        check_image: Gets the row, the column and the bytes of each image; raises what is wrong with it.

    Yields:
        The row of a sample and what is wrong with it, or None and what is wrong with the shard.
    """
    differences: list[str] = []
    try:
        names = ("data",) if info.layout.format == "mds" else ("data", "meta")
        read = _reader(info, {part: _read_part(root, info, part, differences) for part in names})
    except MissingDependencyError:
        raise
    except (FormatError, OSError) as error:
        differences.append(error.strerror or str(error) if isinstance(error, OSError) else str(error))
        read = None
    # With a wrong hash, the samples say what is damaged.
    yield from ((None, difference) for difference in differences)
    if read is None:
        return
    lists = [(name, parse_encoding(encoding)) for name, encoding in info.layout.columns if encoding in _IMAGE_LISTS]
    for row in range(info.samples):
        try:
            record = read(row)
            for name in images:
                check_image(row, name, record[name])
            for name, encoding in lists:
                for picture in encoding.decode(record[name]):
                    picture.load()
        except (MissingDependencyError, MemoryError):
            raise
        except Exception as error:  # whatever damaged bytes make a decoder stumble over
            yield row, str(error) or type(error).__name__


def _reader(info: ShardInfo, parts: dict[str, Bytes]) -> Callable[[int], Record]:
    if info.layout.format != "mds":
        schema: dict[str, Any] = dict(info.layout.columns)
        return open_split_shard(parts["data"], parts["meta"], info.samples, info.layout, schema).read
    columns = [(name, parse_encoding(encoding)) for name, encoding in info.layout.columns]
    return open_shard(parts["data"], info.samples, FieldPlan(columns, info.layout.names, {})).read


def _read_part(root: Path, info: ShardInfo, part: str, differences: list[str]) -> Bytes:
    """The file as it is read; both of them are checked where the compressed one was decompressed beside it."""
    raw, packed = info.files[f"raw_{part}"], info.files.get(f"zip_{part}")
    has_raw = (root / raw.basename).exists()
    data: Bytes = b""
    if packed is not None and ((root / packed.basename).exists() or not has_raw):
        stored = _read(root, packed, differences)
        data = parse_compression(info.layout.compression or "").decompress(bytes(stored), raw.bytes)
        _compare_hashes(raw, data, differences)
    return _read(root, raw, differences) if has_raw or packed is None else data


def _read(root: Path, file: FileInfo, differences: list[str]) -> Bytes:
    with (root / file.basename).open("rb") as opened:
        found = os.fstat(opened.fileno()).st_size
        if found != file.bytes:
            raise FormatError(f"The file has {found} bytes; the index says {file.bytes}")
        data: Bytes = mmap.mmap(opened.fileno(), found, access=mmap.ACCESS_READ) if found else b""
    _compare_hashes(file, data, differences)
    return data


def _compare_hashes(file: FileInfo, data: Bytes, differences: list[str]) -> None:
    for algorithm, digest in file.hashes.items():
        found = hash_bytes(algorithm, memoryview(data))
        if found != digest:
            differences.append(f"The {algorithm} is {found}; the index says {digest}")
