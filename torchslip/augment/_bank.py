"""The operations that augmentation policies choose from, each image with one of its own.

Where parameters cannot be looked at, every image goes through three stages, whatever its operation: one resampling for
shear, shift and turn; one table of 256 values per channel for everything that maps values; and one blend for colour and
sharpness. An operation changes its image in one of them and passes the others.
"""

from __future__ import annotations

import math

import torch

from torchslip.augment._color_linear import blend, check_rgb, gray_of
from torchslip.augment._geometry import Interpolation, resample
from torchslip.augment._tone import equalizing_table, histogram, look_up, sharpened
from torchslip.augment._transform import Tree, as_floating, by_rows, masked

__all__ = ["OPERATIONS", "apply_operations"]

OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Contrast", "Posterize", "Solarize", "AutoContrast", "Equalize"),
    *("Color", "Sharpness"),
)
"""The numbers of operations in parameters are places in this tuple."""

_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_FIRST_TONE, _FIRST_BLEND = _NUMBER["Brightness"], _NUMBER["Color"]


def apply_operations(
    levels: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor, *, interpolation: Interpolation
) -> torch.Tensor:
    """Apply to each image its operation.

    Args:
        levels: uint8 ``[B, 3, H, W]``.
        operation: int64 ``[B]``, places in `OPERATIONS`.
        magnitude: float32 ``[B]``: the slope of a shear, a shift in widths or heights, degrees, what is added to the
            factor 1 of a blend, bits, or a threshold as a fraction of white.
        interpolation: Of shear, shift and turn.
    """
    check_rgb(levels)
    if not levels.numel():
        return levels
    params = {"operation": operation, "magnitude": magnitude}

    def moved(images: torch.Tensor, own: Tree) -> torch.Tensor:
        matrix = _matrix(own["operation"], own["magnitude"], *images.shape[2:])
        return resample(as_floating(images), matrix, interpolation=interpolation).round().to(torch.uint8)

    def toned(images: torch.Tensor, own: Tree) -> torch.Tensor:
        return look_up(images, _table(images, own["operation"], own["magnitude"]))

    def blended(images: torch.Tensor, own: Tree) -> torch.Tensor:
        pictures, factor = as_floating(images), 1 + own["magnitude"]
        params = {"color": own["operation"] == _NUMBER["Color"], "factor": factor}

        def colored(x: torch.Tensor, each: Tree) -> torch.Tensor:
            return blend(x, gray_of(x, 255.0), each["factor"], 255.0)

        def sharp(x: torch.Tensor, each: Tree) -> torch.Tensor:
            return sharpened(x, each["factor"], 255.0)

        # Each image is one or the other, so the second does not see what the first has changed.
        result = masked(colored, pictures, params, params["color"])
        return masked(sharp, result, params, ~params["color"]).to(torch.uint8)

    levels = masked(moved, levels, params, (operation > 0) & (operation < _FIRST_TONE))
    levels = masked(toned, levels, params, (operation >= _FIRST_TONE) & (operation < _FIRST_BLEND))
    return masked(blended, levels, params, operation >= _FIRST_BLEND)


def _matrix(operation: torch.Tensor, magnitude: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """See `Geometric.matrix`. Shears keep the upper left corner; shifts are whole pixels."""

    def only(name: str, values: torch.Tensor) -> torch.Tensor:
        return torch.where(operation == _NUMBER[name], values, torch.zeros_like(values))

    angle = only("Rotate", magnitude * (math.pi / 180))
    along_x, along_y = only("ShearX", magnitude), only("ShearY", magnitude)
    right, down = only("TranslateX", (magnitude * width).trunc()), only("TranslateY", (magnitude * height).trunc())
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = (
        *(cosine, along_x - sine, along_x * (height / 2) - right),
        *(sine + along_y, cosine, along_y * (width / 2) - down),
        *(zero, zero, zero + 1),
    )
    return torch.stack(rows, 1).view(-1, 3, 3)


def _table(levels: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """The value that takes the place of each: uint8 ``[B, C, 256]``."""
    values = torch.arange(256, device=levels.device, dtype=torch.float32)
    factor = (1 + magnitude)[:, None, None]
    table = values.expand(*levels.shape[:2], 256)

    def chosen(name: str) -> torch.Tensor:
        return (operation == _NUMBER[name])[:, None, None]

    def may_be_there(*names: str) -> bool:
        return not by_rows(levels) or any(bool(chosen(name).any()) for name in names)

    if may_be_there("Contrast"):
        mean = gray_of(as_floating(levels), 255.0).mean((2, 3), keepdim=True)[..., 0]
        table = torch.where(chosen("Contrast"), values * factor + mean * (1 - factor), table)
    if may_be_there("AutoContrast", "Equalize"):
        counts = histogram(levels)
        table = torch.where(chosen("AutoContrast"), _stretching_table(counts, values), table)
        table = torch.where(chosen("Equalize"), equalizing_table(counts).to(torch.float32), table)
    step = 2.0 ** (8 - magnitude)[:, None, None]
    table = torch.where(chosen("Brightness"), values * factor, table)
    table = torch.where(chosen("Posterize"), (values / step).floor() * step, table)
    solarized = torch.where(values >= magnitude[:, None, None] * 255, 255 - values, values)
    return torch.where(chosen("Solarize"), solarized, table).clamp(0, 255).to(torch.uint8)


def _stretching_table(counts: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The table of `AutoContrast` for each histogram: float32 ``[B, C, 256]``."""
    low = torch.where(counts > 0, values, torch.full_like(values, 255.0)).amin(2, keepdim=True)
    high = torch.where(counts > 0, values, torch.zeros_like(values)).amax(2, keepdim=True)
    width = torch.where(low == high, torch.ones_like(low), (high - low) * (1 / 255))
    return (values - torch.where(low == high, torch.zeros_like(low), low)) / width
