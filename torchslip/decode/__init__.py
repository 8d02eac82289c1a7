"""Bytes to pixels: views, which say which pixels are wanted, and decoders, which make them."""

from torchslip.decode._decoder import BACKENDS, Backend, Decoder, backends, make_decoder
from torchslip.decode._device import DeviceDecoder, device_backend, make_device_decoder
from torchslip.decode._draws import Draws
from torchslip.decode._fixed_crops import CenterCrop, Decode, ResizeCrop, ResizeShortCropLong
from torchslip.decode._header import Header, read_header, read_size
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
    "Header",
    "Placement",
    "RandomResizedCrop",
    "ResizeCrop",
    "ResizeShortCropLong",
    "View",
    "backends",
    "device_backend",
    "index_jpeg",
    "index_version",
    "make_decoder",
    "make_device_decoder",
    "read_header",
    "read_size",
    "why_no_index",
]
