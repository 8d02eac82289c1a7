"""Transforms of the scale of gray values, and sharpness."""

from __future__ import annotations

import torch

from torchslip.augment._color_linear import positive_range
from torchslip.augment._transform import Params, Transform, per_image, spread

__all__ = [
    "AutoContrast",
    "Equalize",
    "Posterize",
    "Sharpness",
    "Solarize",
    "equalizing_table",
    "from_bytes",
    "histogram",
    "look_up",
    "sharpened",
    "to_bytes",
]


class Solarize(Transform):
    """Inverts what is as bright as a threshold, or brighter: torchvision's ``solarize``.

    Args:
        threshold: As a fraction of white, or a range that it is drawn from; 0.5 is 128 of 255.
        p: The probability for each image.
        seed: See `Transform`.
    """

    numbers = 1
    keeps_bytes = True

    def __init__(
        self, threshold: float | tuple[float, float] = 0.5, *, p: float = 0.2, seed: int | None = None
    ) -> None:
        super().__init__(p=p, seed=seed)
        low, high = (threshold, threshold) if isinstance(threshold, int | float) else threshold
        if not low <= high:
            raise ValueError(f"threshold must be a fraction of white or a range (low, high); got {threshold!r}.")
        self.threshold = (float(low), float(high))

    def draw(self, numbers: torch.Tensor) -> Params:
        return {"threshold": spread(numbers[:, 0], self.threshold)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        inverted = images.bitwise_not() if images.dtype == torch.uint8 else bound - images
        return torch.where(images >= per_image(params["threshold"] * bound, images), inverted, images)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, p={self.p}"


class Posterize(Transform):
    """Keeps the uppermost bits of every value: torchvision's ``posterize``.

    Args:
        bits: How many, or an inclusive range that they are drawn from.
        p: The probability for each image.
        seed: See `Transform`.
    """

    numbers = 1
    keeps_bytes = True

    def __init__(self, bits: int | tuple[int, int] = 4, *, p: float = 0.5, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)
        low, high = (bits, bits) if isinstance(bits, int) else bits
        if not 0 <= low <= high <= 8:
            raise ValueError(f"bits must be a number from 0 to 8 or a range (low, high) of them; got {bits!r}.")
        self.bits = (low, high)

    def draw(self, numbers: torch.Tensor) -> Params:
        low, high = self.bits
        return {"bits": low + (numbers[:, 0] * (high - low + 1)).to(torch.int64)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        if images.dtype == torch.uint8:
            mask = 0xFF ^ (0xFF >> params["bits"])
            return images & per_image(mask.to(torch.uint8), images)
        levels = per_image(2.0 ** params["bits"], images).to(images.dtype)
        # 255 belongs to the uppermost level of bytes, whose width is 256 / levels; 1.0 to that of floats.
        white = 256.0 if bound == 255 else 1.0
        return (images * (levels / white)).floor().minimum(levels - 1) * (white / levels)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, p={self.p}"


class AutoContrast(Transform):
    """Stretches every channel from black to white: torchvision's ``autocontrast``.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    rounds = False

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        if not images.numel():
            return images
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        flat = low == high
        width = torch.where(flat, torch.ones_like(low), (high - low) * (1 / bound))
        return ((images - torch.where(flat, torch.zeros_like(low), low)) / width).clamp_(0, bound)


class Equalize(Transform):
    """Makes the histogram of every channel even: torchvision's ``equalize``. Floats are taken as 256 levels.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    keeps_bytes = True

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        if not images.numel():
            return images
        levels = to_bytes(images, bound)
        equalized = look_up(levels, equalizing_table(histogram(levels)))
        return from_bytes(equalized, images, bound)


class Sharpness(Transform):
    """Blends with a smoothed image, or away from it: torchvision's ``adjust_sharpness``.

    Args:
        factor: The range of the factors: 0 smooths, 1 changes nothing, 2 sharpens; a number s stands for
            (max(0, 1 - s), 1 + s).
        p: The probability for each image.
        seed: See `Transform`.
    """

    numbers = 1
    rounds = False

    def __init__(self, factor: float | tuple[float, float] = 1.0, *, p: float = 0.5, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)
        self.factor = positive_range(factor, "factor")

    def draw(self, numbers: torch.Tensor) -> Params:
        return {"factor": spread(numbers[:, 0], self.factor)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return sharpened(images, params["factor"], bound)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, p={self.p}"


def sharpened(images: torch.Tensor, factor: torch.Tensor, bound: float) -> torch.Tensor:
    """Torchvision's ``adjust_sharpness`` of float images; the outermost pixels stay."""
    if min(images.shape[2:]) <= 2:
        return images
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    center = images[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * center) * (1 / 13)
    if bound == 255:
        smooth = smooth.round()
    change = (smooth - center) * (1 - per_image(factor, images).to(images.dtype))
    return (images + torch.nn.functional.pad(change, (1, 1, 1, 1))).clamp_(0, bound)


def to_bytes(images: torch.Tensor, bound: float) -> torch.Tensor:
    """Images as uint8; floats from 0 to 1 in 256 levels of equal width, as torchvision converts them."""
    if images.dtype == torch.uint8:
        return images
    levels = images.round() if bound == 255 else images * (256 - 1e-3)
    return levels.clamp(0, 255).to(torch.uint8)


def from_bytes(levels: torch.Tensor, images: torch.Tensor, bound: float) -> torch.Tensor:
    """uint8 results in the type of the `images` that they were made from; gradients go straight through."""
    if images.dtype == torch.uint8:
        return levels
    results = levels.to(images.dtype) * (bound / 255)
    return images + (results - images).detach() if images.requires_grad else results


def histogram(levels: torch.Tensor) -> torch.Tensor:
    """How often each value is there: int32 ``[B, C, 256]`` of uint8 ``[B, C, H, W]``."""
    index = levels.flatten(2).to(torch.int64)
    counts = torch.zeros((*index.shape[:2], 256), dtype=torch.int32, device=index.device)
    return counts.scatter_add_(2, index, torch.ones_like(counts[:1, :1, :1]).expand(index.shape))


def equalizing_table(counts: torch.Tensor) -> torch.Tensor:
    """The table of Pillow's ``ImageOps.equalize`` for each histogram: uint8 ``[B, C, 256]``."""
    up_to = counts.cumsum(2)
    total = up_to[..., -1:]
    # The brightest value that is there does not count.
    of_brightest = counts.gather(2, up_to.argmax(2, keepdim=True))
    step = (total - of_brightest).div(255, rounding_mode="floor")
    below = up_to - counts
    table = (below + step // 2).div(step.clamp_min(1), rounding_mode="floor").clamp(0, 255)
    identity = torch.arange(256, device=counts.device).expand_as(table)
    return torch.where(step == 0, identity, table).to(torch.uint8)


def look_up(levels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """``table[image, channel, value]`` for every value: uint8 ``[B, C, H, W]``."""
    return table.gather(2, levels.flatten(2).to(torch.int64)).view(levels.shape)
