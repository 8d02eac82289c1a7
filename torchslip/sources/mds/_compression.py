"""How MDS shards are compressed: each file as a whole, named by ``algorithm`` or ``algorithm:level``.

==========  ==========  =======  =====================================================
algorithm   levels      default  stream
==========  ==========  =======  =====================================================
``br``      0 to 11     11       Brotli
``bz2``     1 to 9      9        bzip2
``gz``      0 to 9      9        gzip, its time stamp 0
``snappy``  none                 Snappy's raw block format, not the framed one
``zstd``    1 to 22     3        one Zstandard frame with content size, no checksum
==========  ==========  =======  =====================================================

The file's extension is the algorithm's name without the level.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchslip.errors import FormatError, MissingDependencyError

__all__ = ["COMPRESSIONS", "Compression", "parse_compression"]


@dataclass(frozen=True, slots=True)
class _Algorithm:
    levels: range
    default: int
    compress: Callable[[bytes, int], bytes]
    # Gets a limit on the output, so that a small file cannot fill the memory; stops soon after it.
    decompress: Callable[[bytes, int], bytes]


@dataclass(frozen=True, slots=True)
class Compression:
    """One algorithm at one level.

    Attributes:
        name: The algorithm, which is also the file extension.
        level: Its level; 0 for one that has none.
    """

    name: str
    level: int

    def compress(self, data: bytes) -> bytes:
        """The bytes that go into a compressed shard.

        Raises:
            MissingDependencyError: If the algorithm's package is not installed.
        """
        return _ALGORITHMS[self.name].compress(data, self.level)

    def decompress(self, data: bytes, size_bytes: int) -> bytes:
        """The original of `data`, which must be `size_bytes` long; no more than that is ever produced.

        Raises:
            FormatError: If `data` is damaged or of another length.
            MissingDependencyError: If the algorithm's package is not installed.
        """
        try:
            raw = _ALGORITHMS[self.name].decompress(data, size_bytes)
        except (FormatError, MissingDependencyError, MemoryError):
            raise
        except Exception as error:  # each library has an error class of its own, some of them RuntimeError
            raise FormatError(f"Damaged {self.name} data: {error}") from error
        if len(raw) != size_bytes:
            found = "more" if len(raw) > size_bytes else f"only {len(raw)}"
            raise FormatError(f"Damaged {self.name} data: it must hold {size_bytes} bytes; found {found}.")
        return raw


def parse_compression(text: str) -> Compression:
    """The compression that `text` names, such as ``zstd`` or ``zstd:7``.

    Raises:
        ValueError: If there is no such algorithm or level; the text has the valid ones.
    """
    if text not in COMPRESSIONS:
        valid = (f"{name}:{a.levels[0]} to {a.levels[-1]}" if a.levels else name for name, a in _ALGORITHMS.items())
        raise ValueError(f"There is no compression {text!r}; choose from {', '.join(valid)}, or leave out the level.")
    name, _, level = text.partition(":")
    return Compression(name, int(level) if level else _ALGORITHMS[name].default)


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"This compression needs the package {package}: pip install 'torchslip[mds]'"
        ) from error


def _compress_brotli(data: bytes, level: int) -> bytes:
    return bytes(_package("brotli", "brotli").compress(data, quality=level))


def _decompress_brotli(data: bytes, limit: int) -> bytes:
    decoder = _package("brotli", "brotli>=1.2").Decompressor()
    parts = [decoder.process(data, output_buffer_limit=limit + 1)]
    size = len(parts[0])
    while size <= limit and not decoder.is_finished():
        parts.append(decoder.process(b"", output_buffer_limit=limit + 1 - size))
        if not parts[-1]:
            raise FormatError("Damaged br data: it ends too early.")
        size += len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decompress_bz2(data: bytes, limit: int) -> bytes:
    with bz2.BZ2File(io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _compress_gzip(data: bytes, level: int) -> bytes:
    return gzip.compress(data, level, mtime=0)


def _decompress_gzip(data: bytes, limit: int) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(limit + 1)


def _compress_snappy(data: bytes, level: int) -> bytes:
    return bytes(_package("snappy", "python-snappy").compress(data))


def _decompress_snappy(data: bytes, limit: int) -> bytes:
    snappy = _package("snappy", "python-snappy")
    # The block begins with its length, little-endian in groups of 7 bits; the library would allocate it unseen.
    length = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(data[:5]))
    stops = [i for i, byte in enumerate(data[:5]) if byte < 0x80]
    if stops:
        length &= (1 << (7 * (stops[0] + 1))) - 1
    if not stops or length > limit:
        raise FormatError(f"Damaged snappy data: it must hold {limit} bytes.")
    return bytes(snappy.uncompress(data))


def _compress_zstd(data: bytes, level: int) -> bytes:
    import zstandard

    # One thread of its own, not none: the library then cuts its input into jobs, and the output for 3 MB and more
    # is that of mosaicml-streaming, whatever the number of threads there.
    return zstandard.ZstdCompressor(level=level, threads=1).compress(data)


def _decompress_zstd(data: bytes, limit: int) -> bytes:
    import zstandard

    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        parts, size = [], 0
        while size <= limit and (part := reader.read(limit + 1 - size)):
            parts.append(part)
            size += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


_ALGORITHMS = {
    "br": _Algorithm(range(12), 11, _compress_brotli, _decompress_brotli),
    "bz2": _Algorithm(range(1, 10), 9, bz2.compress, _decompress_bz2),
    "gz": _Algorithm(range(10), 9, _compress_gzip, _decompress_gzip),
    "snappy": _Algorithm(range(0), 0, _compress_snappy, _decompress_snappy),
    "zstd": _Algorithm(range(1, 23), 3, _compress_zstd, _decompress_zstd),
}

COMPRESSIONS: tuple[str, ...] = tuple(
    text for name, each in _ALGORITHMS.items() for text in (name, *(f"{name}:{level}" for level in each.levels))
)
"""Every name that a shard's ``compression`` may have: 58 of them."""
