"""Pictures stored as planes of Y, Cb and Cr: what a JPEG file has inside, without its entropy coding.

::

    0    4 bytes   "TSPL"
    4    uint8     version: 1
    5    uint8     how many rows of luma there are for one of chroma: 1 or 2
    6    uint8     the same for columns
    7    uint8     planes: 3, or 1 for gray, which has no chroma
    8    uint32    height
    12   uint32    width
    16   uint8     Y [height, width], Cb [ceil(height / rows), ceil(width / columns)], Cr as Cb

Integers are little-endian. The colours are those of JFIF: ITU-R BT.601 in the full range, chroma in the middle of the
luma pixels that it is for. Nothing is padded, so the length follows from the header, and is checked against it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import torch

from torchslip.decode._color import interpolate_chroma, to_rgb
from torchslip.errors import SampleError

__all__ = ["MAGIC", "PlaneForm", "decode_planes", "dump_planes", "parse_form", "parse_size"]

MAGIC = b"TSPL"
_HEADER = struct.Struct("<4s4B2I")
_VERSION = 1
_MAX_SIDE = 65535


@dataclass(frozen=True, slots=True)
class PlaneForm:
    """The sizes of the planes of a picture.

    Attributes:
        height: Of luma, in pixels.
        width: Of luma, in pixels.
        down_rows: Rows of luma for one of chroma, 1 or 2.
        down_columns: Columns of luma for one of chroma, 1 or 2.
        planes: 3, or 1 for gray.
    """

    height: int
    width: int
    down_rows: int = 2
    down_columns: int = 2
    planes: int = 3

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each plane."""
        chroma = (-(-self.height // self.down_rows), -(-self.width // self.down_columns))
        return [(self.height, self.width), chroma, chroma][: self.planes]

    @property
    def stored_bytes(self) -> int:
        """Of the picture with its header."""
        return _HEADER.size + sum(height * width for height, width in self.sizes)


def parse_form(data: bytes | memoryview) -> PlaneForm:
    """The header of a stored picture; its length is not checked.

    Raises:
        SampleError: If it is none.
    """
    return PlaneForm(*_parse(data))


def parse_size(data: bytes | memoryview) -> tuple[int, int, int]:
    """Of it height, width and the number of planes."""
    height, width, _, _, planes = _parse(data)
    return height, width, planes


def _parse(data: bytes | memoryview) -> tuple[int, int, int, int, int]:
    if len(data) < _HEADER.size:
        raise SampleError(f"its header is cut off: {len(data)} bytes")
    magic, version, down_rows, down_columns, planes, height, width = _HEADER.unpack_from(data)
    if magic != MAGIC or version != _VERSION:
        raise SampleError(f"its planes are of version {version}; this torchslip reads {_VERSION}")
    if planes not in (1, 3) or not {down_rows, down_columns} <= {1, 2} or min(height, width) < 1:
        raise SampleError(f"its header is damaged: {planes} planes of {width}x{height} pixels")
    if max(height, width) > _MAX_SIDE:
        raise SampleError(f"its header says {width}x{height} pixels; no side can be longer than {_MAX_SIDE}")
    return height, width, down_rows, down_columns, planes


def dump_planes(form: PlaneForm, planes: bytes) -> bytes:
    """A stored picture.

    Args:
        form: The sizes.
        planes: The planes, one behind the other.
    """
    header = _HEADER.pack(MAGIC, _VERSION, form.down_rows, form.down_columns, form.planes, form.height, form.width)
    return header + planes


def decode_planes(data: bytes | memoryview, *, rgb: bool = True) -> torch.Tensor:
    """The whole picture as libjpeg makes it of these planes.

    Args:
        data: A stored picture.
        rgb: Red, green and blue; else Y, Cb and Cr.

    Returns:
        uint8 ``[3, height, width]``.

    Raises:
        SampleError: If it is damaged.
    """
    form = parse_form(data)
    if len(data) != form.stored_bytes:
        raise SampleError(
            f"it has {len(data)} bytes, but planes of {form.width}x{form.height} pixels have {form.stored_bytes}: "
            "the sample is truncated or damaged"
        )
    # A copy, because torch warns about memory that it could write to.
    values = torch.frombuffer(bytearray(data), dtype=torch.uint8)[_HEADER.size :]
    parts = torch.split(values, [height * width for height, width in form.sizes])
    planes = [part.view(size) for part, size in zip(parts, form.sizes, strict=True)]
    if form.planes == 1:
        if rgb:
            return planes[0].expand(3, -1, -1).contiguous()
        return torch.cat((planes[0][None], torch.full((2, form.height, form.width), 128, dtype=torch.uint8)))
    chroma = interpolate_chroma(
        torch.stack(planes[1:]), form.height, form.width, down_rows=form.down_rows, down_columns=form.down_columns
    )
    whole = torch.cat((planes[0][None], chroma))
    return to_rgb(whole) if rgb else whole
