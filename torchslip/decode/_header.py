"""What an encoded picture says of itself, read from its first bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from torchslip.decode._planes import MAGIC, parse_size
from torchslip.errors import SampleError

__all__ = ["Encoded", "Header", "read_header", "read_size"]

_PNG = b"\x89PNG\r\n\x1a\n"
# SOF0 to SOF15 carry the size; C4, C8 and CC are the DHT, JPG and DAC markers (ITU-T T.81, table B.1).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))


Encoded = bytes | memoryview
"""An encoded picture: bytes, or a read-only view of memory that holds them."""


@dataclass(frozen=True, slots=True)
class Header:
    """The format and size of an encoded picture.

    Attributes:
        format: Lower case: ``jpeg``, ``png``, ``webp``, ...; ``yuv420`` for stored planes, whatever their chroma.
        height: In pixels.
        width: In pixels.
        components: Colour components of a JPEG, 1, 3 or 4, and of stored planes, 1 or 3; 0 for other formats.
    """

    format: str
    height: int
    width: int
    components: int = 0


def read_header(data: Encoded) -> Header:
    """Read the size without decoding.

    Raises:
        SampleError: If `data` is empty or no picture that Pillow knows.
    """
    if data[:2] == b"\xff\xd8":
        header = _read_jpeg(data)
        if header is not None:
            return header
    elif data[:8] == _PNG and data[12:16] == b"IHDR" and len(data) >= 24:
        return Header("png", int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
    elif data[:4] == MAGIC:
        return Header("yuv420", *parse_size(data))
    return _read_with_pillow(data)


def read_size(data: Encoded) -> tuple[int, int]:
    """Height and width of an encoded picture, in pixels. See `read_header`."""
    header = read_header(data)
    return header.height, header.width


def _read_jpeg(data: Encoded) -> Header | None:
    position, end = 2, len(data)
    while position + 9 < end:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _STANDALONE:
            position += 2
        elif marker in _START_OF_FRAME:
            height = int.from_bytes(data[position + 5 : position + 7], "big")
            width = int.from_bytes(data[position + 7 : position + 9], "big")
            return Header("jpeg", height, width, data[position + 9]) if height and width else None
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _read_with_pillow(data: Encoded) -> Header:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise SampleError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            return Header((image.format or "unknown").lower(), height, width)
    except UnidentifiedImageError:
        start = bytes(data[:8]).hex(" ")
        raise SampleError(f"no picture format begins with the bytes {start} ({len(data)} bytes in all)") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"Pillow refuses it: {error} Raise PIL.Image.MAX_IMAGE_PIXELS to read it.") from error
    except Exception as error:  # plug-ins raise whatever a damaged header makes them stumble over
        raise SampleError(f"its header is damaged: {error}") from error
