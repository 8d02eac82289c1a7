"""The fast decoder: JPEG by a small C kernel over libjpeg-turbo, a whole batch in one call without the GIL.

The kernel decodes only the rows and columns that the views of a picture need, once for all views, and resamples them
straight into the batch. What lies between the restart markers of a file is skipped where no view needs it. Whatever it
does not take (other formats, four colour components, damaged files) goes through `TorchvisionDecoder`, so that both
decoders accept the same files.

Its sources lie in the folder ``turbo``; they are compiled when torchslip is installed, and never at import.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from torchslip.decode._decoder import Output, Outputs
from torchslip.decode._header import Encoded, Header
from torchslip.decode._planes import PlaneForm, dump_planes
from torchslip.decode._torchvision import TorchvisionDecoder
from torchslip.decode._view import Placement

__all__ = ["LIBRARY", "WHY_NOT_BUILT", "TurboDecoder", "read_planes", "why_no_kernel"]

_FOLDER = Path(__file__).with_name("turbo")
LIBRARY = _FOLDER / "libtorchslip_turbo.so"
WHY_NOT_BUILT = _FOLDER / "not_built.txt"
"""What the build leaves where it could make no library: the reason and the remedy."""

_INTERFACE_VERSION = 4
_OUTPUTS: dict[Output, int] = {"rgb": 0, "yuv": 1, "planes": 2}
_VARIANTS = {
    "TORCHSLIP_TURBO_PASSES": {"best": 0, "avx2": 4, "portable": 1},
    "TORCHSLIP_TURBO_ENTROPY": {"own": 0, "libjpeg": 2},
}
"""Environment variables, their values, and the flags of these: all give the same bytes, the first ones the fastest."""

# Crops of photographs of 0.2 megapixels, 974 to 96 and 48 pixels: mean and largest difference from the full decode of
# crops of 2 to 2.2 times the output 1.9 and 76 levels (hardest crop: mean 9.0), from 2.5 on 1.3 and 48 (6.6), from 3 on
# 0.9 and 39 (4.4), from 4 on 0.5 and 18 (2.3). Of 3 megapixels, 150 to 224, 96 and 48 pixels: 0.3 and 22, 0.3 and 15,
# 0.2 and 15, 0.2 and 11. Random crops of 3 megapixels to 224 took 4.1 ms at full scale, 2.6 with a least ratio of 2,
# 2.7 of 2.5, 2.9 of 3, 3.1 of 4; with eight of 96 pixels besides 8.0, and 4.1, 4.8, 5.1, 5.3 (2026-11).
_LEAST_RATIO = 2.5
_SMALLEST_RATIO = 2.0

# libjpeg decodes the last 3 kB of a file by a slower path. Bytes behind the end would keep it on the fast one; with
# 4 kB of them no difference showed (2,550 against 2,560 images/s, 43 kB each, 2026-11): files are read where they lie.

_REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary torchslip torchslip"


class TurboDecoder:
    """Decodes the regions that the views need, by the compiled kernel. See `Decoder`.

    Same bytes for any number of threads and any processor. A file that is damaged where no view needs it can go
    unnoticed, but not one that is cut off.

    Args:
        threads: Threads within one call. Default: one in worker processes of a DataLoader, else as many as torch uses.
        scaled_decode: Decode at 1/2, 1/4 or 1/8 where the crop is at least 2.5, 5 or 10 times as large as the output in
            both directions. Faster; on photographs the mean difference from the full decode is 1 to 2 levels there,
            at most 8 for a crop and 64 for a pixel. A number instead of True: the least ratio for 1/2, of at least 2
            (2: about 2 levels, 10 and 96; 4: half a level, 3 and 32); False: never. Views of a picture share the
            largest of their scales where one decode is less work than several, so that what a view shows can depend
            on the others, within these differences.
    """

    name = "turbo"

    def __init__(self, *, threads: int | None = None, scaled_decode: bool | float = True) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for a choice by the process; got {threads}.")
        if not isinstance(scaled_decode, bool) and not scaled_decode >= _SMALLEST_RATIO:
            raise ValueError(f"scaled_decode must be True, False or a ratio of at least 2; got {scaled_decode}.")
        reason = why_no_kernel()
        if reason:
            raise RuntimeError(reason)
        self._threads = threads
        self._least_ratio = _LEAST_RATIO if scaled_decode is True else float(scaled_decode)

    def decode(
        self,
        images: Sequence[Encoded],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Outputs],
        *,
        output: Output = "rgb",
    ) -> dict[int, Exception]:
        """See `Decoder.decode`."""
        formats = ("jpeg", "yuv420")
        taken = [row for row, each in enumerate(headers) if each.format in formats and each.components in (1, 3)]
        refused = set(range(len(images))) - set(taken)
        if taken:
            sizes = np.array([(headers[row].height, headers[row].width) for row in taken], np.int64)
            geometry = np.stack([_geometry(place)[taken] for place in placements])
            tensors = outputs if len(taken) == len(images) else [[view[row] for row in taken] for view in outputs]
            refused |= {
                taken[index] for index in self._run([images[row] for row in taken], sizes, geometry, tensors, output)
            }
        if not refused:
            return {}
        rows = sorted(refused)
        failures = TorchvisionDecoder().decode(
            [images[row] for row in rows],
            [headers[row] for row in rows],
            [place.rows(rows) for place in placements],
            [[view[row] for row in rows] for view in outputs],
            output=output,
        )
        return {rows[index]: error for index, error in failures.items()}

    def _run(
        self,
        images: Sequence[Encoded],
        sizes: npt.NDArray[np.int64],
        geometry: npt.NDArray[np.int64],
        outputs: Sequence[Outputs],
        output: Output,
    ) -> dict[int, str]:
        """Decode pictures; the index of each that the kernel refuses, and why.

        Args:
            images: B pictures.
            sizes: int64 ``[B, 2]``: height and width.
            geometry: int64 ``[V, B, 10]``: box, resized, window, size.
            outputs: Those of V views, or 2 V of them for ``planes``.
            output: The colours.
        """
        kernel = _kernel()
        count, views = len(images), len(geometry)
        data = _pointers(images)
        lengths = np.array([len(image) for image in images], np.int64)
        places = np.concatenate([_places_of(view) for view in outputs])
        strides = np.concatenate([_strides_of(view) for view in outputs])
        geometry = np.ascontiguousarray(geometry)
        messages = np.zeros((count, kernel.turbo_message_bytes()), np.uint8)
        failed = kernel.turbo_decode(
            count,
            views,
            data,
            lengths.ctypes.data,
            sizes.ctypes.data,
            geometry.ctypes.data,
            places.ctypes.data,
            strides.ctypes.data,
            _OUTPUTS[output],
            self._thread_count(),
            self._least_ratio,
            _variant(),
            messages.ctypes.data,
        )
        if not failed:
            return {}
        rows = messages[:, 0].nonzero()[0].tolist()
        return {row: messages[row].tobytes().split(b"\0")[0].decode("latin-1") for row in rows}

    def _thread_count(self) -> int:
        if self._threads is not None:
            return self._threads
        return 1 if get_worker_info() is not None else torch.get_num_threads()


def _pointers(images: Sequence[Encoded]) -> ctypes.Array[Any]:
    """Where the bytes of each picture begin; whoever calls keeps the pictures alive."""
    files = [image for image in images if isinstance(image, bytes)]
    if len(files) == len(images):
        return (ctypes.c_char_p * len(files))(*files)
    # 1.4 µs for each; bytes take 0.2, and to copy 130 kB to bytes 10 (2026-11).
    addresses = (np.frombuffer(image, np.uint8).ctypes.data for image in images)
    return (ctypes.c_void_p * len(images))(*addresses)


def _places_of(view: Outputs) -> npt.NDArray[np.int64]:
    """The address of each picture, int64 ``[B]``."""
    if isinstance(view, torch.Tensor):
        return view.data_ptr() + np.arange(len(view)) * view.stride(0)
    return np.array([each.data_ptr() for each in view], np.int64)


def _strides_of(view: Outputs) -> npt.NDArray[np.int64]:
    """Those of channel, row and column of each picture in bytes, int64 ``[B, 3]``."""
    if isinstance(view, torch.Tensor):
        return np.tile(np.array(view.stride()[1:], np.int64), (len(view), 1))
    return np.array([each.stride() for each in view], np.int64)


def _geometry(place: Placement) -> npt.NDArray[np.int64]:
    return np.concatenate((place.box, place.resized, place.window, place.size), axis=1, dtype=np.int64)


def _variant() -> int:
    flags = 0
    for variable, values in _VARIANTS.items():
        name = os.environ.get(variable)
        if name is None:
            continue
        if name not in values:
            raise ValueError(f"{variable} must be one of {', '.join(values)}; got {name!r}.")
        flags |= values[name]
    return flags


def why_no_kernel() -> str:
    """Why the kernel cannot be used here and what to do about it; empty if it can."""
    if not LIBRARY.is_file():
        if WHY_NOT_BUILT.is_file():
            return WHY_NOT_BUILT.read_text(encoding="utf-8").strip()
        return "The kernel was never built: torchslip runs from a checkout. Install it: pip install -e ."
    try:
        kernel = _kernel()
    except OSError as error:
        return f"The kernel cannot be loaded ({error}). Build it again: {_REINSTALL}"
    if kernel.turbo_interface_version() != _INTERFACE_VERSION:
        return f"The kernel was built from other sources than these. Build it again: {_REINSTALL}"
    message = ctypes.create_string_buffer(kernel.turbo_message_bytes())
    if kernel.turbo_check(message):
        return f"libjpeg refuses the kernel ({message.value.decode('latin-1')}). Build it again: {_REINSTALL}"
    return ""


def read_planes(data: bytes, header: Header) -> bytes | None:
    """The planes of a JPEG picture as they are in it, to be stored; None if they are of another form (CMYK, 4:1:1).

    Raises:
        ValueError: If it cannot be decoded.
    """
    kernel = _kernel()
    planes = np.empty(3 * header.height * header.width, np.uint8)
    form = np.zeros(6, np.int64)
    message = ctypes.create_string_buffer(kernel.turbo_message_bytes())
    status = kernel.turbo_read_planes(data, len(data), planes.ctypes.data, planes.nbytes, form.ctypes.data, message)
    if status == 1:
        raise ValueError(message.value.decode("latin-1"))
    *sizes, size = form.tolist()
    return None if status else dump_planes(PlaneForm(*sizes), planes[:size].tobytes())


@cache
def _kernel() -> ctypes.CDLL:
    """The library. Raises OSError if it, or libjpeg, cannot be loaded."""
    kernel = ctypes.CDLL(os.fspath(LIBRARY))
    number, pointer, small = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    kernel.turbo_decode.restype = number
    kernel.turbo_decode.argtypes = [number, number, *[pointer] * 6, small, small, ctypes.c_double, small, pointer]
    kernel.turbo_read_planes.argtypes = [ctypes.c_char_p, number, pointer, number, pointer, ctypes.c_char_p]
    kernel.turbo_check.argtypes = [ctypes.c_char_p]
    return kernel
