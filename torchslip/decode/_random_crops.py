"""Random-resized crops: a random part of the area, at a random aspect ratio, at a random place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchslip.decode._draws import Draws
from torchslip.decode._view import Placement, Size, as_size, rows_of

__all__ = ["DirectRandomResizedCrop", "RandomResizedCrop"]

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
_Range = tuple[float, float]

_TRIES = 10  # as torchvision


@dataclass(frozen=True, slots=True)
class _RandomCrop:
    """What the two random-resized crops have in common."""

    size: Size
    scale: _Range = (0.08, 1.0)
    ratio: _Range = (3 / 4, 4 / 3)
    seed: int | None = None

    def __post_init__(self) -> None:
        as_size(self.size)
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {(low, high)}.")
        if self.scale[1] > 1:
            raise ValueError(f"scale is a share of the picture's area, at most 1; got {self.scale}.")

    def output_size(self, draws: Draws) -> tuple[int, int]:
        """See `View.output_size`."""
        return as_size(self.size)

    def _placed(self, corner: _Ints, crops: _Ints) -> Placement:
        return Placement.of_crops(np.concatenate((corner, crops), axis=1), rows_of(as_size(self.size), len(crops)))


@dataclass(frozen=True, slots=True)
class RandomResizedCrop(_RandomCrop):
    """The crop of `torchvision.transforms.v2.RandomResizedCrop`, with the same distribution.

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio`; what does not fit is drawn again, up to 10
    times, and then the largest central crop within `ratio` is taken. (Szegedy et al., "Going Deeper with
    Convolutions", CVPR 2015, section 6.)

    Two views with the same `seed` are yoked: they draw the same position within the room that each has, and the same
    quantiles of `scale` and `ratio`.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).
        scale: Smallest and largest share of the picture's area.
        ratio: Smallest and largest width / height.
        seed: Shared by views that are to be yoked; None: the view draws by its own name.
    """

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        # Numbers 0 and 1 of a sample are the position, 2 and 3 the first try, 4 and 5 the second, ...
        numbers = draws.block(0)
        position, left = numbers[:, :2], numbers[:, 2:]
        crops = np.empty_like(sizes)
        todo = np.arange(len(sizes))
        for _ in range(_TRIES):
            if not left.shape[1]:
                left = draws.blocks(1, 1 + _TRIES // 2, todo)
            drawn = self._draw(sizes[todo], left[:, :2])
            fits = ((drawn > 0) & (drawn <= sizes[todo])).all(axis=1)
            crops[todo[fits]] = drawn[fits]
            todo, left = todo[~fits], left[~fits, 2:]
            if not todo.size:
                break
        crops[todo] = self._central(sizes[todo])
        corner = np.floor(position * (sizes - crops + 1)).astype(np.int64)
        corner[todo] = (sizes - crops)[todo] // 2
        return self._placed(corner, crops)

    def _draw(self, sizes: _Ints, numbers: _Floats) -> _Ints:
        area = sizes.prod(axis=1) * (self.scale[0] + numbers[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = np.log(self.ratio)
        ratio = np.exp(low + numbers[:, 1] * (high - low))
        sides: _Ints = np.rint(np.sqrt(np.stack((area / ratio, area * ratio), axis=1))).astype(np.int64)
        return sides

    def _central(self, sizes: _Ints) -> _Ints:
        """The size of the fallback: as much of the picture as the aspect ratio allows."""
        height, width = sizes[:, 0], sizes[:, 1]
        tall = np.maximum(np.rint(width / self.ratio[0]), 1)
        wide = np.maximum(np.rint(height * self.ratio[1]), 1)
        return np.stack((np.minimum(height, tall), np.minimum(width, wide)), axis=1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class DirectRandomResizedCrop(_RandomCrop):
    """A random-resized crop without rejection: first a ratio that can fit, then an area among those that do.

    Every picture gets a crop within `scale` and `ratio`, if one exists at all, from a fixed number of draws. On
    pictures near square it is the distribution of `RandomResizedCrop`; on long ones, where that one rejects often,
    it favours ratios along the picture, and has no fallback.

    Args:
        size: Output size in pixels: one number for a square, or (height, width).
        scale: Smallest and largest share of the picture's area.
        ratio: Smallest and largest width / height.
        seed: Shared by views that are to be yoked; None: the view draws by its own name.
    """

    def place(self, sizes: _Ints, draws: Draws) -> Placement:
        """See `View.place`."""
        numbers = draws.block(0)
        height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
        # A crop of the smallest area with ratio r fits if scale * W/H <= r <= W/H / scale.
        shape = width / height
        low = np.clip(shape * self.scale[0], *self.ratio)
        high = np.clip(shape / self.scale[0], *self.ratio)
        ratio = np.exp(np.log(low) + numbers[:, 3] * (np.log(high) - np.log(low)))
        most = np.minimum(self.scale[1], np.minimum(ratio / shape, shape / ratio))
        least = np.minimum(self.scale[0], most)
        area = height * width * (least + numbers[:, 2] * (most - least))
        crops = np.rint(np.sqrt(np.stack((area / ratio, area * ratio), axis=1))).astype(np.int64)
        crops = np.clip(crops, 1, sizes)
        corner = np.floor(numbers[:, :2] * (sizes - crops + 1)).astype(np.int64)
        return self._placed(corner, crops)
