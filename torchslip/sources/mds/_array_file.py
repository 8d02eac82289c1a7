"""A JSON text and arrays in one file, each checked against a hash before it is used.

::

    0        bytes   b"TSLIPARR"
    8        uint64  n
    16       bytes   SHA-256 of the JSON text, 32 bytes
    48       JSON    n bytes: an object; its last key "arrays" lists {"dtype", "name", "sha256", "shape"} of each array
    48 + n   bytes   the arrays, one after the other, in C order

Everything is little-endian. The same text and arrays give the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError

__all__ = ["ArrayFile", "dump_arrays"]

_MAGIC = b"TSLIPARR"
_HEAD_BYTES = 48
_DTYPES = ("<i4", "<i8")


def dump_arrays(head: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of a file.

    Args:
        head: What goes into the JSON text; without the key ``arrays``.
        arrays: Name to array, of int32 or int64.
    """
    parts, entries = [], []
    for name, array in arrays.items():
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        data = stored.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"dtype": stored.dtype.str, "name": name, "sha256": digest, "shape": list(array.shape)})
        parts.append(data)
    text = json.dumps({**head, "arrays": entries}, indent=1).encode() + b"\n"
    return b"".join((_MAGIC, len(text).to_bytes(8, "little"), hashlib.sha256(text).digest(), text, *parts))


class ArrayFile:
    """A file of a JSON text and arrays; the arrays are read when they are asked for.

    Args:
        open_: Opens the file for reading, each time from the start. Must pickle if this shall.
        name: What it is called in errors.

    Raises:
        OSError: If it cannot be read.
        FormatError: If it is not such a file, cut short, or changed.
    """

    def __init__(self, open_: Callable[[], BinaryIO], name: str) -> None:
        self._open = open_
        self._name = name
        with open_() as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            start = file.read(_HEAD_BYTES)
            length = int.from_bytes(start[8:16], "little")
            if start[:8] != _MAGIC or length > size - _HEAD_BYTES:
                raise FormatError(f"It does not begin as a file of arrays does, or is cut short: {name}")
            text = file.read(length)
        if hashlib.sha256(text).digest() != start[16:]:
            raise FormatError(f"Its head is damaged: {name}")
        self.head: dict[str, Any] = json.loads(text)
        """What is in the JSON text."""
        self._places: dict[str, tuple[int, dict[str, Any]]] = {}
        at = _HEAD_BYTES + length
        for entry in self.head.pop("arrays"):
            shape = entry["shape"]
            if entry["dtype"] not in _DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
                raise FormatError(f"An array cannot have the type {entry['dtype']!r} and the shape {shape}: {name}")
            self._places[entry["name"]] = at, entry
            at += _size(entry)
        if at != size:
            raise FormatError(f"It has {size} bytes, but must have {at}: {name}")

    @classmethod
    def read(cls, path: Path) -> ArrayFile:
        """The file at a path; see the class for the errors."""
        return cls(functools.partial(_open_file, path), str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> ArrayFile:
        """A file in memory; see the class for the errors."""
        return cls(functools.partial(io.BytesIO, data), name)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array, which belongs to the caller.

        Raises:
            KeyError: If there is none of that name.
            FormatError: If it is damaged, or the file has changed.
        """
        at, entry = self._places[name]
        with self._open() as file:
            file.seek(at)
            data = bytearray(file.read(_size(entry)))
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise FormatError(f"The array {name} is damaged, or the file was replaced: {self._name}")
        return np.frombuffer(data, entry["dtype"]).reshape(entry["shape"])


def _open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def _size(entry: Mapping[str, Any]) -> int:
    return int(math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize)
