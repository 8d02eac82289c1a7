"""Which of the objects that are listed belong to a snapshot, in which order, and whether they have labels."""

from __future__ import annotations

import heapq
import itertools
import json
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import IO, Literal, get_args

from torchslip.errors import FormatError
from torchslip.storage._listing import Entry
from torchslip.storage._manifest import content_version, pin_of

__all__ = ["LabelMode", "Row", "Selection", "UnsortedError", "select"]

LabelMode = Literal["auto", "imagefolder", "none"]

Row = tuple[bytes, int, bytes, int]
"""Key, size, version and pin of an object."""

_RUN_ROWS = 100_000
_PACKED = struct.Struct("<IQ16sQ")


@dataclass(frozen=True, slots=True)
class Selection:
    """What a user asked for; two selections of one folder are two datasets.

    Attributes:
        recursive: Whether to take objects in sub-folders.
        label_mode: ``imagefolder`` takes the first part of the key as the class, and leaves out objects that lie
            directly in the base; ``none`` takes everything, without labels; ``auto`` decides by what is there, and
            refuses a base that has both.
        require_labels: Whether an object without a class is an error.
        extensions: Endings of the keys to take, lower case with the dot; None for all.
    """

    recursive: bool = True
    label_mode: LabelMode = "auto"
    require_labels: bool = False
    extensions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.label_mode not in get_args(LabelMode):
            raise ValueError(f"label_mode must be one of {', '.join(get_args(LabelMode))}; got {self.label_mode!r}.")
        if self.require_labels and (self.label_mode == "none" or not self.recursive):
            raise ValueError(
                "require_labels needs the class of each object, which is the sub-folder it lies in; "
                f"label_mode={self.label_mode!r} and recursive={self.recursive} leave none."
            )
        if self.label_mode == "imagefolder" and not self.recursive:
            raise ValueError("label_mode='imagefolder' reads sub-folders, and recursive=False does not; drop one.")

    def text(self) -> str:
        """All of it, in one canonical text."""
        return json.dumps(asdict(self), sort_keys=True)


def select(
    entries: Iterable[Entry], selection: Selection, base: str, *, sort: bool = False
) -> tuple[bool, Iterator[Row]]:
    """The rows of a manifest, in the order of their keys, and whether they have labels.

    Args:
        entries: What is there.
        selection: What of it is wanted.
        base: Where it lies, for errors.
        sort: Whether `entries` may come in any order.

    Raises:
        UnsortedError: When the rows are taken: if they do not come in order, and `sort` is False.
        FileNotFoundError: If there is no object.
        FormatError: When the rows are taken: if there are objects with and without a class, and `selection` does not
            say what that means.
    """
    suffixes = selection.extensions
    rows = (
        (key.encode("utf-8", "surrogateescape"), stat.bytes, content_version(stat), pin_of(stat))
        for key, stat in entries
        if suffixes is None or key.lower().endswith(suffixes)
    )
    ordered = _checked(_sorted(rows) if sort else rows)
    first = next(ordered, None)
    if first is None:
        what = "object" if suffixes is None else f"object whose name ends in {' or '.join(suffixes)}"
        raise FileNotFoundError(2, f"There is no {what} in", base)
    everything = itertools.chain([first], ordered)
    if selection.label_mode == "none":
        return False, everything
    if selection.label_mode == "auto" and not selection.require_labels:
        return b"/" in first[0], _alike(everything, b"/" in first[0], base)
    return True, _with_class(everything, selection.require_labels, base)


def _alike(rows: Iterator[Row], labels: bool, base: str) -> Iterator[Row]:
    one = None
    for row in rows:
        if (b"/" in row[0]) != labels:
            raise FormatError(
                f"{base} has objects of its own and objects in sub-folders ({_name(one)} and {_name(row[0])}), so it "
                "is not clear whether the sub-folders are classes. Pass label_mode='imagefolder' to take only what is "
                "in the sub-folders, with labels, or label_mode='none' to take everything, without."
            )
        one = one or row[0]
        yield row


def _with_class(rows: Iterator[Row], required: bool, base: str) -> Iterator[Row]:
    some = False
    for row in rows:
        if b"/" in row[0]:
            some = True
            yield row
        elif required:
            raise FormatError(
                f"{base}/{_name(row[0])} lies in no sub-folder, so it has no class, and require_labels=True asks for "
                "one. Move it into the folder of its class, or drop require_labels."
            )
    if not some:
        raise FileNotFoundError(2, "There is no class folder with an object in", base)


def _name(key: bytes | None) -> str:
    return (key or b"").decode("utf-8", "replace")


class UnsortedError(Exception):
    """The rows do not come in the order of their keys."""


def _checked(rows: Iterator[Row]) -> Iterator[Row]:
    last = None
    for row in rows:
        if last is not None and row[0] <= last:
            raise UnsortedError
        last = row[0]
        yield row


def _sorted(rows: Iterator[Row]) -> Iterator[Row]:
    """Sort on disk: 100,000 rows are in memory at a time."""
    runs: list[IO[bytes]] = []
    try:
        while run := sorted(itertools.islice(rows, _RUN_ROWS)):
            file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed below)
            runs.append(file)
            for key, size, version, pin in run:
                file.write(_PACKED.pack(len(key), size, version, pin) + key)
            file.seek(0)
        yield from heapq.merge(*map(_unpacked, runs))
    finally:
        for file in runs:
            file.close()


def _unpacked(file: IO[bytes]) -> Iterator[Row]:
    while head := file.read(_PACKED.size):
        length, size, version, pin = _PACKED.unpack(head)
        yield file.read(length), size, version, pin
