"""Which pixels of a picture, and at what size."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from torchslip.decode._draws import Draws

__all__ = ["Placement", "Size", "View", "as_size"]

Size = int | tuple[int, int]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the output pictures of a view lie in their sources; one row per picture.

    `box` is cut out of the source and resized to `resized` with antialiasing; the output shows `size` pixels of the
    result from `window` on, black where these lie outside. Crops have ``resized == size`` and ``window == 0``.

    Attributes:
        box: int64 ``[B, 4]``: top, left, height and width in source pixels.
        resized: int64 ``[B, 2]``: height and width.
        window: int64 ``[B, 2]``: top and left, negative for a border.
        size: int64 ``[B, 2]``: height and width of the output.
    """

    box: _Ints
    resized: _Ints
    window: _Ints
    size: _Ints

    @classmethod
    def of_crops(cls, box: _Ints, size: _Ints) -> Placement:
        """Boxes that are resized to `size` (``[B, 2]``) and shown whole."""
        return cls(box, size, np.zeros_like(size), size)

    def rows(self, rows: Sequence[int]) -> Placement:
        """The placement of these pictures alone."""
        chosen = np.asarray(rows, np.intp)
        return Placement(self.box[chosen], self.resized[chosen], self.window[chosen], self.size[chosen])

    @property
    def shown(self) -> npt.NDArray[np.float32]:
        """The part of the source that each output shows: float32 ``[B, 4]``: top, left, height and width in pixels."""
        scale = self.box[:, 2:] / np.maximum(self.resized, 1)
        corner = self.box[:, :2] + self.window * scale
        return np.concatenate((corner, self.size * scale), axis=1).astype(np.float32)


@runtime_checkable
class View(Protocol):
    """How one output picture is taken from each source picture.

    A view only computes geometry; decoders do the pixels. It is a value: frozen, comparable, picklable.
    """

    @property
    def seed(self) -> int | None:
        """Two views with the same seed share their draws ("yoked"); None draws by the view's name."""

    def output_size(self, draws: Draws) -> tuple[int, int] | None:
        """Height and width of all outputs of the batch, or None where each picture has its own."""

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """Choose the pixels.

        Args:
            sizes: int64 ``[B, 2]``: height and width of each source picture.
            draws: The random numbers of these samples.
        """


def as_size(size: Size | Sequence[int], name: str = "size") -> tuple[int, int]:
    """``size`` as (height, width).

    Raises:
        ValueError: If it is not one or two positive integers.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(operator.index(side) < 1 for side in pair):
        raise ValueError(f"{name} must be a positive number of pixels or (height, width), got {size!r}.")
    return pair[0], pair[1]


def rows_of(size: tuple[int, int], count: int) -> _Ints:
    """`size` once per picture: int64 ``[count, 2]``."""
    return np.broadcast_to(np.array(size, np.int64), (count, 2))
