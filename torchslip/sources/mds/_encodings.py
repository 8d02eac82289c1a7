"""The column encodings of MDS: how one value becomes bytes.

===============================  =====  ========================================================================
name                             bytes  stored as (everything little-endian)
===============================  =====  ========================================================================
``bytes``                               as it is
``str``                                 UTF-8
``int``                          8      int64
``uint8`` to ``float64``         1-8    the scalar of that type
``str_int`` ``str_float``               the number in ASCII, of any size
``str_decimal``                         the same, for `decimal.Decimal`
``json``                                JSON, ASCII
``pkl``                                 a pickle
``ndarray[:dtype[:shape]]``      *      see `_ndarray`; fixed size if dtype and shape are given
``jpeg`` ``png`` ``pil`` lists          see `_images`
===============================  =====  ========================================================================

A value that is `bytes` already is stored unchanged in any column, so an encoded JPEG file is never decoded.
"""

from __future__ import annotations

import functools
import json
import operator
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from torchslip.sources._source import FieldKind
from torchslip.sources.mds import _images
from torchslip.sources.mds._ndarray import ArrayCodec

__all__ = ["ENCODINGS", "Encoding", "parse_encoding"]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the values of a column are stored.

    Attributes:
        name: With parameters, as the index has it.
        kind: What a record's field is: images stay encoded.
        size: Bytes of every value, or None where they differ.
        decode: Bytes to the value that was written: PIL images, numpy scalars for the types of numpy, `Decimal`. Raises
            `ValueError` for damaged bytes. For ``pkl`` this runs whatever code the bytes say.
        field: Bytes to what a record holds; None if that is the bytes.
        scalar: The `struct` format of a fixed-size number, else None.
    """

    name: str
    kind: FieldKind
    size: int | None
    _to_bytes: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    field: Callable[[bytes], Any] | None
    scalar: str | None = None

    def encode(self, value: Any) -> bytes:
        """The bytes of a value; bytes pass as they are.

        Raises:
            TypeError: If the column does not hold such values.
            ValueError: If the value does not fit, or the bytes have not the column's fixed size.
        """
        data = value if isinstance(value, bytes) else self._to_bytes(value)
        if self.size is not None and len(data) != self.size:
            raise ValueError(f"a value of encoding {self.name} has {self.size} bytes; got {len(data)}")
        return data


@functools.lru_cache(maxsize=1024)
def parse_encoding(name: str) -> Encoding:
    """The encoding of a column by its name in the index, such as ``jpeg`` or ``ndarray:float32:3,4``.

    Raises:
        ValueError: If there is none of that name.
    """
    if name in _TABLE:
        return _TABLE[name]
    base, colon, parameters = name.partition(":")
    if base == "ndarray" and colon:
        return _array(name, ArrayCodec.parse(parameters))
    raise ValueError(f"There is no MDS encoding {name!r}; choose from {', '.join(ENCODINGS)}, ndarray:dtype:shape.")


def _array(name: str, codec: ArrayCodec) -> Encoding:
    return Encoding(name, "array", codec.size, codec.encode, codec.decode, codec.decode)


def _scalar(name: str) -> Encoding:
    dtype = np.dtype(name)
    letter = {"i": "bhiq", "u": "BHIQ", "f": " efd"}[dtype.kind][dtype.itemsize.bit_length() - 1]

    def encode(value: Any) -> bytes:
        # numpy checks the range of Python's integers, but wraps its own.
        number = int(value) if isinstance(value, np.integer) else value
        try:
            scalar = dtype.type(number)
        except OverflowError as error:
            raise ValueError(f"{number} does not fit into {name}") from error
        return np.asarray(scalar).astype(dtype.newbyteorder("<")).tobytes()

    kind: FieldKind = "float" if dtype.kind == "f" else "int"
    return Encoding(
        name,
        kind,
        dtype.itemsize,
        encode,
        lambda data: dtype.type(_unpack(f"<{letter}", data)),
        lambda data: _unpack(f"<{letter}", data),
        f"<{letter}",
    )


def _encode_int(value: Any) -> bytes:
    try:
        return operator.index(value).to_bytes(8, "little", signed=True)
    except OverflowError as error:
        raise ValueError(f"{value} does not fit into int64; use the encoding str_int") from error


def _encode_str(value: Any) -> bytes:
    return str(_checked(value, str)).encode()


def _encode_str_float(value: Any) -> bytes:
    return str(float(_checked(value, float))).encode()


def _encode_json(value: Any) -> bytes:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value).encode()


def _decode_json(data: bytes) -> Any:
    return json.loads(data.decode())


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"the column takes {kind.__name__}, not {type(value).__name__}")
    return value


def _encode_bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytearray | memoryview) else bytes(_checked(value, bytes))


def _unpack(form: str, data: bytes) -> Any:
    try:
        return struct.unpack(form, data)[0]
    except struct.error as error:
        raise ValueError(f"{len(data)} bytes are not a number of this column") from error


def _decode_int(data: bytes) -> Any:
    return _unpack("<q", data)


def _decode_decimal(data: bytes) -> Decimal:
    try:
        return Decimal(data.decode())
    except ArithmeticError as error:
        raise ValueError(f"{data!r} is not a number") from error


_lists = {
    "list[pil]": (_images.encode_pil, _images.decode_pil),
    "list[jpeg]": (_images.encode_jpeg, _images.decode_jpeg),
    "list[png]": (_images.encode_png, _images.decode_file),
}
_TABLE = {
    each.name: each
    for each in (
        Encoding("bytes", "bytes", None, _encode_bytes, bytes, None),
        Encoding("str", "str", None, _encode_str, bytes.decode, bytes.decode),
        Encoding("int", "int", 8, _encode_int, _decode_int, _decode_int, "<q"),
        _array("ndarray", ArrayCodec()),
        *(_scalar(f"{kind}int{bits}") for kind in ("u", "") for bits in (8, 16, 32, 64)),
        *(_scalar(f"float{bits}") for bits in (16, 32, 64)),
        Encoding("str_int", "int", None, lambda v: str(operator.index(v)).encode(), int, int),
        Encoding("str_float", "float", None, _encode_str_float, float, float),
        Encoding(
            "str_decimal",
            "str",
            None,
            lambda v: str(_checked(v, Decimal)).encode(),
            _decode_decimal,
            lambda d: str(_decode_decimal(d)),
        ),
        Encoding("pil", "image", None, _images.encode_pil, _images.decode_pil, _images.pil_to_file),
        Encoding("jpeg", "image", None, _images.encode_jpeg, _images.decode_jpeg, None),
        *(
            Encoding(name, "bytes", None, _images.encode_jpeg_array, _images.decode_jpeg_array, None)
            for name in ("jpeg_array", "jpegarray")
        ),
        Encoding("png", "image", None, _images.encode_png, _images.decode_file, None),
        *(
            Encoding(name, "bytes", None, _images.encode_list(to), _images.decode_list(of), None)
            for name, (to, of) in _lists.items()
        ),
        Encoding("pkl", "bytes", None, pickle.dumps, pickle.loads, None),
        Encoding("json", "json", None, _encode_json, _decode_json, _decode_json),
    )
}
ENCODINGS: tuple[str, ...] = tuple(_TABLE)
"""The 28 names; ``ndarray`` takes parameters."""
