"""Bytes to pixels: views, which say which pixels are wanted, and decoders, which make them."""

from typing import Any

from torchslip.decode._color import interpolate_chroma, to_rgb
from torchslip.decode._decoder import BACKENDS, Backend, Decoder, Output, backends, make_decoder
from torchslip.decode._device import DeviceDecoder, device_backend, make_device_decoder
from torchslip.decode._draws import Draws
from torchslip.decode._fixed_crops import CenterCrop, Decode, ResizeCrop, ResizeShortCropLong
from torchslip.decode._header import Encoded, Header, read_header, read_size
from torchslip.decode._picture import check_picture, open_picture, planes_of, store_planes
from torchslip.decode._random_crops import DirectRandomResizedCrop, RandomResizedCrop
from torchslip.decode._tile_index import index_jpeg, index_version, why_no_index
from torchslip.decode._view import Placement, View

__all__ = [
    "BACKENDS",
    "Backend",
    "CenterCrop",
    "Decode",
    "Decoder",
    "DeviceDecoder",
    "DirectRandomResizedCrop",
    "Draws",
    "Encoded",
    "Header",
    "Output",
    "Placement",
    "RandomResizedCrop",
    "ResizeCrop",
    "ResizeShortCropLong",
    "View",
    "backends",
    "check_picture",
    "device_backend",
    "index_jpeg",
    "index_version",
    "interpolate_chroma",
    "make_decoder",
    "make_device_decoder",
    "open_picture",
    "planes_of",
    "read_header",
    "read_size",
    "store_planes",
    "to_rgb",
    "why_no_index",
]


def __getattr__(name: str) -> Any:
    # Loads nothing compiled until it is asked for.
    if name == "TurboDecoder":
        from torchslip.decode._turbo import TurboDecoder

        return TurboDecoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
