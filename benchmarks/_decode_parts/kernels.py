"""What is timed: passes of libjpeg by a small C program, compiled for the run, and calls of the package's decoder."""

from __future__ import annotations

import ctypes
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from os import environ
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchslip.decode import Draws, Placement, View, make_decoder, read_header

__all__ = ["Files", "Libjpeg", "crop_of", "place", "run_decoder"]

_SOURCE = Path(__file__).with_name("libjpeg_parts.c")
_PASSES = ("header", "coefficients", "planes", "rgb")


class Files:
    """Encoded pictures in memory, as C takes them."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = list(images)
        self.headers = [read_header(image) for image in images]
        self.pointers = (ctypes.c_char_p * len(images))(*images)
        self.sizes = np.array([len(image) for image in images], np.int64)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def mean_bytes(self) -> float:
        """Of a file."""
        return float(self.sizes.mean())


class Libjpeg:
    """The system's libjpeg, one pass after the other."""

    def __init__(self) -> None:
        command = shlex.split(environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "clang"]
        # It stays loaded after its file is gone.
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "parts.so"
            options = ["-std=gnu11", "-O3", "-fPIC", "-shared", _SOURCE, "-o", library, "-ljpeg"]
            subprocess.run([*command, *map(str, options)], check=True)
            self._library = ctypes.CDLL(str(library))
        for name in ("parts_decode", "parts_scan"):
            getattr(self._library, name).restype = ctypes.c_int64

    def decode(self, files: Files, name: str) -> None:
        """One pass over all files.

        Raises:
            RuntimeError: If libjpeg refuses one.
        """
        count = ctypes.c_int64(len(files))
        failed = self._library.parts_decode(
            _PASSES.index(name), count, files.pointers, files.sizes.ctypes.data_as(ctypes.c_void_p)
        )
        if failed:
            raise RuntimeError(f"libjpeg refuses {failed} of {len(files)} files.")

    def scan(self, files: Files) -> int:
        """How many restart markers there are in all files."""
        sizes = files.sizes.ctypes.data_as(ctypes.c_void_p)
        return int(self._library.parts_scan(ctypes.c_int64(len(files)), files.pointers, sizes))

    def copy(self, arrays: Sequence[Any], target: np.ndarray[Any, Any]) -> None:
        """Copy each array, one after the other, to the same place."""
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        sizes = np.array([array.nbytes for array in arrays], np.int64)
        self._library.parts_copy(
            ctypes.c_int64(len(arrays)),
            pointers,
            sizes.ctypes.data_as(ctypes.c_void_p),
            target.ctypes.data_as(_POINTER),
        )


_POINTER = ctypes.c_void_p


def place(files: Files, view: View, *, epoch: int) -> Placement:
    """Where the view lies on each picture in that epoch."""
    sizes = np.array([(header.height, header.width) for header in files.headers])
    return view.place(sizes, Draws(np.arange(len(files)), seed=17, view="image", epoch=epoch))


def crop_of(placement: Placement) -> Placement:
    """The same part of each picture, in its own size."""
    return Placement.of_crops(placement.box, placement.box[:, 2:])


def run_decoder(files: Files, placements: Sequence[Placement], *, name: str = "turbo") -> Callable[[], None]:
    """A call that decodes all files on one thread, all views of each at once."""
    torch.set_num_threads(1)
    decoder = make_decoder(name)
    outputs = [
        [torch.empty(height, width, 3, dtype=torch.uint8).permute(2, 0, 1) for height, width in each.size.tolist()]
        for each in placements
    ]

    def run() -> None:
        if decoder.decode(files.images, files.headers, placements, outputs):
            raise RuntimeError("The decoder refuses a file.")

    return run
