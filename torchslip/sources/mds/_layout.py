"""What the shards of one dataset have in common, as their index entries say it, checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchslip.sources.mds._compression import parse_compression
from torchslip.sources.mds._encodings import parse_encoding

__all__ = ["FILE_KEYS", "FORMAT_NAMES", "FileInfo", "Layout", "parse_file", "parse_layout"]

FILE_KEYS = ("raw_data", "raw_meta", "zip_data", "zip_meta")
FORMAT_NAMES = ("mds", "json", "xsv", "csv", "tsv")
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_TEXT_ENCODINGS = ("str", "int", "float")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file of a shard.

    Attributes:
        basename: Its path below the folder of the index, with ``/``.
        bytes: Its size.
        hashes: Algorithm to hex digest.
    """

    basename: str
    bytes: int
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Layout:
    """How shards are stored.

    Attributes:
        format: One of `FORMAT_NAMES`.
        columns: Name and encoding of each, in the order of storage.
        compression: Of the files, or None.
        separator: Between the values of a line; empty for the formats mds and json.
        newline: After each line; empty for the format mds.
        files: Keys of the files that each shard has, and the hashes of each.
    """

    format: str
    columns: tuple[tuple[str, str], ...]
    compression: str | None
    separator: str
    newline: str
    files: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(name for name, _ in self.columns)


def parse_layout(shard: Mapping[str, Any]) -> Layout:
    """The layout in an index entry.

    Raises:
        ValueError: If something is missing, unknown or contradicts itself.
    """
    form = shard.get("format")
    if form not in FORMAT_NAMES:
        raise ValueError(f"the format of a shard must be one of {', '.join(FORMAT_NAMES)}; got {form!r}")
    if shard.get("version") != 2 or isinstance(shard["version"], bool):
        raise ValueError(f"the version of a shard must be 2; got {shard.get('version')!r}")
    compression = shard.get("compression")
    if compression is not None:
        parse_compression(_text(compression, "compression"))
    files = tuple(
        (key, tuple(sorted(_mapping(_mapping(shard[key], key).get("hashes", {}), "hashes"))))
        for key in FILE_KEYS
        if shard.get(key) is not None
    )
    keys = [key for key, _ in files]
    wanted = {"raw_data"} if form == "mds" else {"raw_data", "raw_meta"}
    if not wanted <= set(keys) or (form == "mds" and "zip_meta" in keys):
        raise ValueError(f"a shard of format {form} needs {' and '.join(sorted(wanted))}; it has {', '.join(keys)}")
    if compression is None and any(key.startswith("zip") for key in keys):
        raise ValueError("a shard without compression cannot have zip_data")
    separator = _SEPARATORS.get(form) or (_text(shard.get("separator"), "separator") if form == "xsv" else "")
    newline = "" if form == "mds" else _text(shard.get("newline"), "newline")
    if form == "xsv" and not separator:
        raise ValueError("the separator must not be empty")
    return Layout(form, _columns(form, shard), compression, separator, newline, files)


def _columns(form: str, shard: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    if form == "json":
        # mosaicml-streaming keeps the order in which the user named the columns; the index sorts them.
        columns = tuple(sorted(_mapping(shard.get("columns"), "columns").items()))
    else:
        names, encodings = _list(shard, "column_names"), _list(shard, "column_encodings")
        if len(names) != len(encodings):
            raise ValueError(f"{len(names)} column_names and {len(encodings)} column_encodings")
        columns = tuple(zip(names, encodings, strict=True))
    for name, encoding in columns:
        _text(name, "column name").encode()
        _text(encoding, "column encoding")
        if form != "mds" and encoding not in _TEXT_ENCODINGS:
            raise ValueError(f"the encoding of a {form} column must be str, int or float; got {encoding!r}")
    if len(dict(columns)) < len(columns):
        raise ValueError("two columns have the same name")
    if form == "mds":
        sizes = [parse_encoding(encoding).size for _, encoding in columns]
        if (found := _list(shard, "column_sizes")) != sizes or any(isinstance(size, bool) for size in found):
            raise ValueError(f"the column_sizes must be {sizes}, from the encodings; got {found}")
    return columns


def parse_file(entry: Mapping[str, Any]) -> FileInfo:
    """A file in an index entry.

    Raises:
        ValueError: If it leads out of the dataset's folder, or something is missing.
    """
    name = _text(entry.get("basename"), "basename")
    name.encode()
    parts = PurePosixPath(name).parts
    if "\0" in name or "\\" in name or name.startswith("/") or not parts or ".." in parts:
        raise ValueError(f"a basename must be a relative path inside the dataset's folder; got {name!r}")
    size = entry.get("bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise ValueError(f"the bytes of {name!r} must be a size; got {size!r}")
    hashes = _mapping(entry.get("hashes", {}), "hashes")
    for algorithm, digest in hashes.items():
        if not (_text(digest, "digest").isalnum() and digest.isascii()):
            raise ValueError(f"the {algorithm} of {name!r} is not a digest: {digest!r}")
    return FileInfo(name, size, {algorithm: hashes[algorithm] for algorithm in sorted(hashes)})


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the {what} must be a string; got {value!r}")  # noqa: TRY004 (a damaged file, no wrong call)
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object; got {value!r}")  # noqa: TRY004
    return value


def _list(shard: Mapping[str, Any], key: str) -> list[Any]:
    value = shard.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list; got {value!r}")  # noqa: TRY004
    return value
