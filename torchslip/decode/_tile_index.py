"""JPEG files with a restart marker after every tile: ordinary files, of which a decoder can read single tiles.

A restart marker (``FF D0`` to ``FF D7``, ITU-T T.81, F.1.2.3) ends on a whole byte, and what follows depends on nothing
before it. Where the markers lie is found by looking for them, so nothing has to be stored beside the file.
"""

from __future__ import annotations

import ctypes
from functools import cache

from torchslip.errors import MissingDependencyError, SampleError

__all__ = ["index_jpeg", "index_version", "why_no_index"]

# The turbo decoder keeps its lookup tables while pictures have the same Huffman tables. Making them for each picture
# takes it as long as decoding 4 kB (2026-11). Of photographs of 256 pixels, a crop took 0.23 ms with the standard
# tables and 0.24 with tables of their own (41.4 and 39.6 kB), of those of 0.2 megapixels 0.58 ms with either (118 and
# 112 kB); with this choice 0.23 ms (41.1 kB) and 0.57 (113 kB).
_LEAST_SAVED_BYTES = 4096


def index_jpeg(data: bytes, *, optimize: bool | None = None) -> bytes:
    """Write a JPEG file again without loss, with a restart marker after every tile of at most 64 pixels in a row.

    The coefficients and quantisation tables are those of `data`, so every decoder gives the same pixels; progressive
    and arithmetic-coded files become sequential ones with Huffman codes, and all APPn and COM segments are kept, except
    the index of further pictures behind the first. The restart interval divides the MCUs of a row: the largest of 4, 3,
    2 and 1 that does, of up to 8 in a gray picture, whose MCUs are half as wide.

    Args:
        data: The file.
        optimize: Make Huffman tables for this picture, or take the standard ones, which make larger files. Default: the
            standard ones, unless that costs 4 kB or more: a decoder has to make tables of its own for tables that
            change from picture to picture.

    Raises:
        SampleError: If it is no JPEG file, not whole, or not 8 bits deep.
        MissingDependencyError: If the kernel is not there.
    """
    if reason := why_no_index():
        raise MissingDependencyError(reason)
    if optimize is not None:
        return _index(data, optimize)
    standard, optimized = _index(data, False), _index(data, True)
    return optimized if len(standard) - len(optimized) >= _LEAST_SAVED_BYTES else standard


def _index(data: bytes, optimize: bool) -> bytes:
    library = _library()
    size = ctypes.c_int64()
    message = ctypes.create_string_buffer(library.turbo_message_bytes())
    address = library.turbo_index_tiles(bytes(data), len(data), optimize, ctypes.byref(size), message)
    if not address:
        raise SampleError(f"it cannot be indexed by tile: {message.value.decode('latin-1')}")
    try:
        return ctypes.string_at(address, size.value)
    finally:
        library.turbo_free(address)


def why_no_index() -> str:
    """Why `index_jpeg` cannot be used here and what to do about it; empty if it can."""
    from torchslip.decode._turbo import why_no_kernel

    reason = why_no_kernel()
    return f"A tile index needs the compiled kernel. {reason}" if reason else ""


def index_version() -> str:
    """What decides the bytes that `index_jpeg` writes."""
    return f"libjpeg-turbo {_library().turbo_libjpeg_version()}"


@cache
def _library() -> ctypes.CDLL:
    from torchslip.decode._turbo import _kernel

    library = _kernel()
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.turbo_index_tiles.restype = pointer
    library.turbo_index_tiles.argtypes = [ctypes.c_char_p, number, ctypes.c_int, pointer, ctypes.c_char_p]
    library.turbo_free.restype = None
    library.turbo_free.argtypes = [pointer]
    return library
