"""What becomes of a picture when it is packed: kept as it is, or decoded once and encoded again."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torchslip.decode import (
    Header,
    backends,
    check_picture,
    index_jpeg,
    open_picture,
    planes_of,
    read_header,
    store_planes,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ImageRule", "Pixels", "Resize", "StoredImage", "encoder_version", "store_image"]

_CONVERSION_QUALITY = 95
_ORIENTATION = 0x0112
_SUBSAMPLING_420 = 2


@dataclass(frozen=True, slots=True)
class Resize:
    """Makes pictures smaller, as `torchvision.transforms.v2.Resize(shorter, max_size=longer_max)` does, never larger.

    A picture that is small enough is kept byte for byte, whatever its format; the others become JPEG, with 4:2:0
    chroma. Gray pictures stay gray.

    Args:
        shorter: The shorter side in pixels, or None to limit the longer one only.
        longer_max: If the longer side would still be longer than this, it is made so long instead.
        quality: Of the JPEG, 1 to 100. At 90, a photograph of 256 pixels has about 20 kB.

    Raises:
        ValueError: If a side or the quality is not in range, or there is nothing to do.
    """

    shorter: int | None = None
    longer_max: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        for name, side in (("shorter", self.shorter), ("longer_max", self.longer_max)):
            if side is not None and side < 1:
                raise ValueError(f"{name} must be at least 1 pixel, or None; got {side}.")
        if self.shorter is None and self.longer_max is None:
            raise ValueError("Resize needs shorter=, longer_max= or both.")
        if self.shorter is not None and self.longer_max is not None and self.longer_max < self.shorter:
            raise ValueError(f"longer_max must not be less than shorter; got {self.longer_max} and {self.shorter}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must lie from 1 to 100; got {self.quality}.")

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a picture of this size gets, in pixels."""
        short, long = sorted((height, width))
        new_short, new_long = short, long
        if self.shorter is not None and self.shorter < short:
            new_short, new_long = self.shorter, self.shorter * long // short
        if self.longer_max is not None and self.longer_max < new_long:
            # From the sides that are wanted so far, as torchvision does it.
            new_short, new_long = max(1, self.longer_max * new_short // new_long), self.longer_max
        return (new_short, new_long) if height <= width else (new_long, new_short)


ImageRule = Literal["keep", "jpeg"] | Resize

Pixels = Literal["jpeg", "jpeg-indexed", "yuv420"]
"""How the pixels of an image are stored: ``jpeg`` means as an image file, ``jpeg-indexed`` JPEG files with markers,
``yuv420`` planes of Y, Cb and Cr."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture as it will be stored.

    Attributes:
        data: The file.
        height: In pixels.
        width: In pixels.
    """

    data: bytes
    height: int
    width: int


def store_image(data: bytes, rule: ImageRule, *, pixels: Pixels = "jpeg", verify: bool) -> StoredImage:
    """Apply the rule to an encoded picture, and store its pixels as they shall be.

    Args:
        data: The file.
        rule: What shall become of it.
        pixels: How it is stored.
        verify: Decode it even if it is kept.

    Raises:
        Exception: What a damaged file makes Pillow raise.
        SampleError: If a file cannot be indexed.
    """
    header = read_header(data)
    height, width = rule.size_of(header.height, header.width) if isinstance(rule, Resize) else header_size(header)
    resized = (height, width) != header_size(header)
    if pixels == "yuv420":
        planes = _resize_planes(data, height, width) if resized else store_planes(data, header)
        return StoredImage(planes, height, width)
    if resized or header.format == "yuv420" or (rule == "jpeg" and header.format != "jpeg"):
        quality = rule.quality if isinstance(rule, Resize) else _CONVERSION_QUALITY
        data = _encode(data, height, width, quality)
    elif verify:
        check_picture(data, header)
    if pixels == "jpeg-indexed" and read_header(data).format == "jpeg":
        data = index_jpeg(data)
    return StoredImage(data, height, width)


def header_size(header: Header) -> tuple[int, int]:
    """Height and width."""
    return header.height, header.width


def _resize_planes(data: bytes, height: int, width: int) -> bytes:
    from PIL import Image

    with open_picture(data) as picture:
        picture.load()
        # With it, Pillow warns about palettes.
        picture.info.pop("transparency", None)
        pixels = picture.convert("L" if picture.mode == "L" else "RGB")
    return planes_of(pixels.resize((width, height), Image.Resampling.BILINEAR))


def _encode(data: bytes, height: int, width: int, quality: int) -> bytes:
    from PIL import Image

    with open_picture(data) as picture:
        picture.load()
        mode = "L" if picture.mode == "L" else "RGB"
        options: dict[str, object] = {}
        # Profiles describe the colours of their own mode only.
        if picture.mode == mode and (profile := picture.info.get("icc_profile")):
            options["icc_profile"] = profile
        # Decoding does not turn pictures, before or after; the tag stays for programs that do.
        if (orientation := _orientation(picture)) != 1:
            exif = Image.Exif()
            exif[_ORIENTATION] = orientation
            options["exif"] = exif
        # Transparency is dropped, as when the dataset is decoded; with it, Pillow warns about palettes.
        picture.info.pop("transparency", None)
        pixels: Image.Image = picture.convert(mode)
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    pixels.save(out, "JPEG", quality=quality, subsampling=_SUBSAMPLING_420, **options)
    return out.getvalue()


def _orientation(picture: Image.Image) -> int:
    try:
        found = picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata does not make a bad picture
        return 1
    return found if found in range(1, 9) else 1


def encoder_version(pixels: Pixels = "jpeg") -> str:
    """What else decides the bytes of a picture that is encoded here."""
    import PIL
    from PIL import features

    version = f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}, turbo {features.version('libjpeg_turbo')}"
    if pixels != "yuv420":
        return version
    turbo = next(each for each in backends() if each.name == "turbo")
    return f"planes by {'the kernel' if turbo.available else 'Pillow'}, {version}"
