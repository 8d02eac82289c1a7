"""Arrays in MDS columns: ``ndarray``, ``ndarray:<dtype>`` and ``ndarray:<dtype>:<d0>,<d1>,...``.

What the name does not fix stands before the values::

    uint8   dtype code                  only if the name has no dtype
    uint8   (ndim << 2) | w             only if the name has no shape; ndim 1 to 63
    uintX   dim[ndim]                   X = 8 << w bits, the least that holds the largest dimension
    bytes   values                      C order

Everything is little-endian. With dtype and shape the column has a fixed size. An ``int16`` array of shape (2, 3) in an
``ndarray`` column begins with ``11 08 02 03``: code 17, two dimensions of one byte each, 2, 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayCodec"]

_CODES = {
    "uint8": 8,
    "int8": 9,
    "uint16": 16,
    "int16": 17,
    "float16": 18,
    "uint32": 32,
    "int32": 33,
    "float32": 34,
    "uint64": 64,
    "int64": 65,
    "float64": 66,
}
_NAMES = {code: name for name, code in _CODES.items()}
_DIM_FORMATS = "BHIQ"


@dataclass(frozen=True, slots=True)
class ArrayCodec:
    """Arrays to bytes and back.

    Attributes:
        dtype: Its name, or None where each value brings its own.
        shape: Or None where each value brings its own; never known without `dtype`.
    """

    dtype: str | None = None
    shape: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, parameters: str) -> ArrayCodec:
        """The codec for what follows ``ndarray:``.

        Raises:
            ValueError: If that is not a dtype, or not a dtype and a shape.
        """
        dtype, _, dims = parameters.partition(":")
        if dtype not in _CODES:
            raise ValueError(f"an ndarray column has one of the dtypes {', '.join(_CODES)}; got {dtype!r}")
        if not _:
            return cls(dtype)
        if not all(dim.isascii() and dim.isdigit() and dim.strip("0") and len(dim) < 20 for dim in dims.split(",")):
            raise ValueError(f"the shape of an ndarray column is written like 3,224,224; got {dims!r}")
        return cls(dtype, tuple(map(int, dims.split(","))))

    @property
    def size(self) -> int | None:
        """Bytes of every value, or None where they differ."""
        if self.dtype is None or self.shape is None:
            return None
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def encode(self, value: Any) -> bytes:
        """The bytes of an array.

        Raises:
            TypeError: If `value` is not an array.
            ValueError: If its dtype, byte order or shape cannot be stored in this column.
        """
        if not isinstance(value, np.ndarray):
            raise TypeError(f"an ndarray column takes numpy arrays, not {type(value).__name__}")
        if value.dtype.name not in _CODES:
            raise ValueError(f"dtype {value.dtype.name} cannot be stored; convert to one of {', '.join(_CODES)}")
        if value.dtype.newbyteorder("<") != value.dtype:
            raise ValueError(
                f"the array is big-endian ({value.dtype.str}) and MDS has no mark for that; convert it with "
                f"array.astype({value.dtype.newbyteorder('<').str!r})"
            )
        if self.dtype not in (None, value.dtype.name):
            raise ValueError(f"the column holds {self.dtype}; the array is {value.dtype.name}")
        if self.shape not in (None, value.shape):
            raise ValueError(f"the column holds shape {self.shape}; the array has {value.shape}")
        if not value.size or not value.ndim or value.ndim > 63:
            raise ValueError(f"an array must have 1 to 63 dimensions, none of them 0; got shape {value.shape}")
        head = b"" if self.dtype else bytes([_CODES[value.dtype.name]])
        if self.shape is None:
            width = sum(max(value.shape) >= 1 << bits for bits in (8, 16, 32))
            head += struct.pack(f"<B{value.ndim}{_DIM_FORMATS[width]}", value.ndim << 2 | width, *value.shape)
        return head + value.tobytes()

    def decode(self, data: bytes) -> npt.NDArray[Any]:
        """The array, in memory of its own.

        Raises:
            ValueError: If `data` is damaged.
        """
        at = 0
        dtype, shape = self.dtype, self.shape
        try:
            if dtype is None:
                dtype, at = _NAMES[data[0]], 1
            if shape is None:
                ndim, width = data[at] >> 2, data[at] & 3
                shape = struct.unpack_from(f"<{ndim}{_DIM_FORMATS[width]}", data, at + 1)
                at += 1 + (ndim << width)
        except (IndexError, KeyError, struct.error) as error:
            raise ValueError("the array's header is damaged") from error
        kind = np.dtype(dtype).newbyteorder("<")
        if not shape or math.prod(shape) * kind.itemsize != len(data) - at:
            raise ValueError(f"an array {dtype} of shape {shape} cannot have {len(data) - at} bytes of values")
        values = np.frombuffer(data, kind, offset=at).reshape(shape)
        return values.astype(kind.newbyteorder("="))
