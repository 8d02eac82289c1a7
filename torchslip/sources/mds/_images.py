"""Images in MDS columns.

::

    jpeg, png            the file
    pil                  uint32 width, uint32 height, uint32 m, mode[m] in ASCII, pixels row by row
    jpeg_array           uint32 n, uint32 size[n], n files              also spelt jpegarray
    list[pil|jpeg|png]   uint32 0, uint32 n, uint32 size[n], n images as above

Everything is little-endian. ``pil`` keeps the mode but not the palette of a ``P`` image.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Pillow is imported where it is used: most datasets are read without it.
if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "decode_file",
    "decode_jpeg",
    "decode_jpeg_array",
    "decode_list",
    "decode_pil",
    "encode_jpeg",
    "encode_jpeg_array",
    "encode_list",
    "encode_pil",
    "encode_png",
    "pil_to_file",
]

# Bits per pixel of `Image.tobytes`, whose rows are padded to whole bytes.
_PIXEL_BITS = {
    "1": 1,
    "L": 8,
    "P": 8,
    "LA": 16,
    "PA": 16,
    "La": 16,
    "I;16": 16,
    "I;16L": 16,
    "I;16B": 16,
    "I;16N": 16,
    "RGB": 24,
    "YCbCr": 24,
    "LAB": 24,
    "HSV": 24,
    "RGBA": 32,
    "RGBX": 32,
    "RGBa": 32,
    "CMYK": 32,
    "I": 32,
    "F": 32,
}
_PNG_MODES = ("1", "L", "LA", "I;16", "RGB", "RGBA")
_SOURCE_BYTES = "torchslip_jpeg_bytes"


def _image(value: Any) -> Image.Image:
    from PIL import Image

    if not isinstance(value, Image.Image):
        raise TypeError(f"an image column takes PIL images or encoded bytes, not {type(value).__name__}")
    return value


def encode_pil(value: Any) -> bytes:
    """The pixels of an image."""
    image = _image(value)
    mode = image.mode.encode()
    return struct.pack("<3I", *image.size, len(mode)) + mode + image.tobytes()


def decode_pil(data: bytes) -> Image.Image:
    """The image of pixels.

    Raises:
        ValueError: If width, height and mode do not give the length of `data`.
    """
    from PIL import Image

    mode, size, at = _pil_header(data)
    return Image.frombytes(mode, size, data[at:])


def _pil_header(data: bytes) -> tuple[str, tuple[int, int], int]:
    if len(data) < 12:
        raise ValueError("the image's header is cut off")
    width, height, length = struct.unpack_from("<3I", data)
    mode = data[12 : 12 + min(length, 8)].decode("ascii", "replace")
    if mode not in _PIXEL_BITS or length != len(mode):
        raise ValueError(f"there is no image mode {mode!r}")
    # Before PIL is asked for the memory.
    if not width or not height or (width * _PIXEL_BITS[mode] + 7) // 8 * height != len(data) - 12 - length:
        raise ValueError(f"{len(data) - 12 - length} bytes cannot be {width} x {height} pixels of mode {mode}")
    return mode, (width, height), 12 + length


def pil_to_file(data: bytes) -> bytes:
    """Pixels as an image file without compression: PNG, or TIFF for modes that PNG lacks. P becomes L.

    Raises:
        ValueError: If `data` is damaged, or its mode has no file format.
    """
    from PIL import Image

    image = decode_pil(data)
    if image.mode == "P":
        image = Image.frombytes("L", image.size, image.tobytes())
    out = io.BytesIO()
    try:
        if image.mode in _PNG_MODES:
            image.save(out, "PNG", compress_level=0)
        else:
            image.save(out, "TIFF")
    except OSError as error:
        raise ValueError(f"an image of mode {image.mode} has no file format: {error}") from error
    return out.getvalue()


def encode_jpeg(value: Any) -> bytes:
    """The JPEG file of an image: the one it was decoded from, if that is known and shows the same pixels."""
    image = _image(value)
    for data in _jpeg_origins(image):
        if _shows(data, image):
            return data
    out = io.BytesIO()
    image.save(out, format="JPEG")
    return out.getvalue()


def _jpeg_origins(image: Image.Image) -> list[bytes]:
    from PIL.JpegImagePlugin import JpegImageFile

    if not isinstance(image, JpegImageFile):
        return []
    origins = []
    if (data := getattr(image, _SOURCE_BYTES, None)) is not None:
        origins.append(data)
    if image.fp is not None and image.fp.seekable():  # not loaded yet
        position = image.fp.tell()
        image.fp.seek(0)
        origins.append(image.fp.read())
        image.fp.seek(position)
    elif image.filename and (path := Path(os.fsdecode(image.filename))).is_file():
        origins.append(path.read_bytes())
    return origins


def _shows(data: bytes, image: Image.Image) -> bool:
    """Whether the file `data` has the pixels of `image`, which may have been changed in place since it was decoded."""
    from PIL import Image
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with Image.open(io.BytesIO(data)) as other:
            if not isinstance(other, JpegImageFile) or other.size != image.size or other.mode != image.mode:
                return False
            return image.fp is not None or other.tobytes() == image.tobytes()  # type: ignore[attr-defined]
    except OSError:
        return False


def encode_png(value: Any) -> bytes:
    """The PNG file of an image."""
    out = io.BytesIO()
    _image(value).save(out, format="PNG")
    return out.getvalue()


def decode_file(data: bytes) -> Image.Image:
    """The image of a file; its pixels are decoded when they are first used."""
    from PIL import Image

    return Image.open(io.BytesIO(data))


def decode_jpeg(data: bytes) -> Image.Image:
    """As `decode_file`; the image remembers its file, so that writing it again keeps every byte."""
    image = decode_file(data)
    setattr(image, _SOURCE_BYTES, data)
    return image


def encode_jpeg_array(value: Any) -> bytes:
    """A sequence of JPEG files."""
    files = [bytes(file) for file in value if isinstance(file, bytes | bytearray | memoryview)]
    if len(files) != len(value):
        raise TypeError("a jpeg_array column takes a sequence of encoded JPEG files as bytes")
    return _join(files)


def decode_jpeg_array(data: bytes) -> list[Image.Image]:
    """The images of a sequence of JPEG files."""
    return [decode_jpeg(file) for file in _split(data)]


def encode_list(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """An encoder of lists, from that of one image."""

    def encode_all(value: Any) -> bytes:
        if not isinstance(value, list):
            raise TypeError(f"a list column takes a list of images, not {type(value).__name__}")
        return bytes(4) + _join([encode(image) for image in value])

    return encode_all


def decode_list(decode: Callable[[bytes], Image.Image]) -> Callable[[bytes], list[Image.Image]]:
    """A decoder of lists, from that of one image."""
    return lambda data: [decode(image) for image in _split(data[4:])]


def _join(parts: Sequence[bytes]) -> bytes:
    return struct.pack(f"<{len(parts) + 1}I", len(parts), *map(len, parts)) + b"".join(parts)


def _split(data: bytes) -> list[bytes]:
    count = int.from_bytes(data[:4], "little")
    at = 4 + 4 * count
    if len(data) < max(at, 4):
        raise ValueError(f"{len(data)} bytes cannot list {count} images")
    sizes = struct.unpack_from(f"<{count}I", data, 4)
    if at + sum(sizes) != len(data):
        raise ValueError(f"the list says {at + sum(sizes)} bytes, but has {len(data)}")
    parts = []
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return parts
