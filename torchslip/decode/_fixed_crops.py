"""Views that take the same part of every picture, and whole pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from torchslip.decode._draws import Draws
from torchslip.decode._view import Placement, Size, as_size, rows_of

__all__ = ["CenterCrop", "Decode", "ResizeCrop", "ResizeShortCropLong"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Decode:
    """The whole picture as it is: a list of uint8 ``[3, H, W]`` tensors."""

    @property
    def seed(self) -> None:
        """Nothing is drawn."""

    def output_size(self, draws: Draws) -> None:
        """See `View.output_size`."""

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        return Placement.of_crops(np.concatenate((np.zeros_like(sizes), sizes), axis=1), sizes)


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle of the picture, not resized; a picture that is too small gets a black border.

    As `torchvision.transforms.v2.CenterCrop`, to the pixel.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).
    """

    size: Size

    def __post_init__(self) -> None:
        as_size(self.size)

    @property
    def seed(self) -> None:
        """Nothing is drawn."""

    def output_size(self, draws: Draws) -> tuple[int, int]:
        """See `View.output_size`."""
        return as_size(self.size)

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        size = rows_of(as_size(self.size), len(sizes))
        start = _central_window(sizes, size)
        crop = np.minimum(sizes, size)
        return Placement(np.concatenate((np.maximum(start, 0), crop), axis=1), crop, np.minimum(start, 0), size)


@dataclass(frozen=True, slots=True)
class ResizeCrop:
    """Resize the shorter side, then crop the middle: the usual view for evaluation, in one resampling.

    As torchvision's ``Compose([Resize(resize, antialias=True), CenterCrop(size)])``.

    Args:
        resize: The shorter side after resizing, in pixels; or (height, width), which ignores the aspect ratio.
        size: Output size in pixels: one number for a square, or (height, width).
    """

    resize: Size
    size: Size

    def __post_init__(self) -> None:
        as_size(self.resize, "resize")
        as_size(self.size)

    @property
    def seed(self) -> None:
        """Nothing is drawn."""

    def output_size(self, draws: Draws) -> tuple[int, int]:
        """See `View.output_size`."""
        return as_size(self.size)

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        size = rows_of(as_size(self.size), len(sizes))
        if isinstance(self.resize, int):
            short = sizes.min(axis=1, keepdims=True)
            # torchvision truncates the longer side
            resized = np.where(sizes == short, self.resize, self.resize * sizes // short)
        else:
            resized = rows_of(self.resize, len(sizes))
        whole = np.concatenate((np.zeros_like(sizes), sizes), axis=1)
        return Placement(whole, resized, _central_window(resized, size), size)


@dataclass(frozen=True, slots=True)
class ResizeShortCropLong:
    """A square of the picture's shorter side, at a random place along the longer one, resized.

    Args:
        size: The side of the square output in pixels, or (smallest, largest) to draw it.
        x_range: Where the square lies in a wide picture: 0 left, 1 right; drawn uniformly from this range.
        y_range: The same for a tall picture: 0 top, 1 bottom.
        per: With a range of sizes: ``batch`` draws one size for the global batch, which gives one tensor;
            ``image`` draws one for each picture, which gives a list.
        seed: Shared by views that are to be yoked; None: the view draws by its own name.
    """

    size: int | tuple[int, int]
    x_range: tuple[float, float] = (0.5, 0.5)
    y_range: tuple[float, float] = (0.5, 0.5)
    per: Literal["batch", "image"] = "batch"
    seed: int | None = None

    def __post_init__(self) -> None:
        low, high = self._sizes
        if not 1 <= low <= high:
            raise ValueError(f"size must be a positive number or (smallest, largest), got {self.size!r}.")
        for name, (begin, end) in (("x_range", self.x_range), ("y_range", self.y_range)):
            if not 0 <= begin <= end <= 1:
                raise ValueError(f"{name} must be (low, high) within [0, 1], got {(begin, end)}.")
        if self.per not in ("batch", "image"):
            raise ValueError(f"per must be 'batch' or 'image', got {self.per!r}.")

    @property
    def _sizes(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def output_size(self, draws: Draws) -> tuple[int, int] | None:
        """See `View.output_size`."""
        low, high = self._sizes
        if low == high:
            return low, low
        if self.per == "image":
            return None
        side = low + int(draws.of_batch()[0] * (high - low + 1))
        return side, side

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        numbers = draws.block(0)
        low, high = self._sizes
        common = self.output_size(draws)
        if common is None:
            sides = low + np.floor(numbers[:, 2] * (high - low + 1)).astype(np.int64)
            size = np.stack((sides, sides), axis=1)
        else:
            size = rows_of(common, len(sizes))
        ranges = np.array([self.y_range, self.x_range])
        share = ranges[:, 0] + numbers[:, :2] * (ranges[:, 1] - ranges[:, 0])
        square = np.repeat(sizes.min(axis=1, keepdims=True), 2, axis=1)
        corner = np.rint(share * (sizes - square)).astype(np.int64)
        return Placement.of_crops(np.concatenate((corner, square), axis=1), size)


def _central_window(sizes: _Ints, wanted: _Ints) -> _Ints:
    """The corner of a central window, rounded as torchvision rounds it; negative where a border is needed."""
    return np.where(wanted > sizes, -((wanted - sizes) // 2), np.rint((sizes - wanted) / 2)).astype(np.int64)
