"""Whole pictures, outside of datasets: opened as Pillow does it, checked, and made into planes to be stored."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchslip.decode._color import halve_chroma, to_yuv
from torchslip.decode._header import Header
from torchslip.decode._planes import MAGIC, PlaneForm, decode_planes, dump_planes, parse_form

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["check_picture", "open_picture", "planes_of", "store_planes"]


def open_picture(data: bytes) -> Image.Image:
    """The picture, whatever it is stored as; stored planes become RGB, or L without chroma.

    Raises:
        OSError: If it is none that Pillow knows.
        SampleError: If its planes are damaged.
    """
    from PIL import Image

    if data[:4] != MAGIC:
        return Image.open(io.BytesIO(data))
    pixels = decode_planes(data)
    if parse_form(data).planes == 1:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def check_picture(data: bytes, header: Header) -> None:
    """Decode a picture and forget it.

    Raises:
        Exception: What a damaged file makes Pillow raise.
    """
    if header.format == "yuv420":
        # Every value is a valid one; only the length can be wrong.
        decode_planes(data)
        return
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        if picture.size != (header.width, header.height):
            raise ValueError(f"its size is {picture.size}, but its header says {(header.width, header.height)}")
        # All of the compressed data is read for a JPEG of an eighth of the size too, in a third of the time.
        picture.draft(None, (1, 1))
        picture.load()


def store_planes(data: bytes, header: Header) -> bytes:
    """A picture as planes of Y, Cb and Cr, to be stored; see `_planes`.

    The planes of a JPEG are taken as they are in it, by the compiled kernel. Without that, and for other pictures, they
    are made of the RGB pixels, see `planes_of`.

    Raises:
        Exception: What a damaged file makes Pillow or the kernel raise.
    """
    if header.format == "yuv420":
        check_picture(data, header)
        return data
    if header.format == "jpeg" and header.components in (1, 3):
        from torchslip.decode._turbo import read_planes, why_no_kernel

        if not why_no_kernel() and (planes := read_planes(data, header)) is not None:
            return planes
    with open_picture(data) as picture:
        if picture.size != (header.width, header.height):
            raise ValueError(f"its size is {picture.size}, but its header says {(header.width, header.height)}")
        return planes_of(picture)


def planes_of(picture: Image.Image) -> bytes:
    """Pixels as planes, to be stored: one for gray; else three, with chroma the mean of each 2 x 2 pixels."""
    picture.load()
    # Transparency is dropped, as when a dataset is decoded; with it, Pillow warns about palettes.
    picture.info.pop("transparency", None)
    height, width = picture.height, picture.width
    if picture.mode == "L":
        return dump_planes(PlaneForm(height, width, 1, 1, 1), picture.tobytes())
    yuv = to_yuv(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1))
    planes = (yuv[0], halve_chroma(yuv[1:]))
    return dump_planes(PlaneForm(height, width), b"".join(each.numpy().tobytes() for each in planes))
