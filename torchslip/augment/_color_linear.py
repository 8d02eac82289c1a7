"""Colour changes that are an affine map of RGB, and the fusion of neighbouring ones into a single map."""

from __future__ import annotations

import numpy as np
import torch

from torchslip.augment._philox import constant
from torchslip.augment._transform import Params, Transform, per_image, spread

__all__ = [
    "GRAY",
    "Brightness",
    "ColorJitterYIQ",
    "ColorLinear",
    "Contrast",
    "Grayscale",
    "Invert",
    "RandomGrayscale",
    "Saturation",
    "blend",
    "check_rgb",
    "fused_color_map",
    "gray_of",
    "hue_range",
    "map_colors",
    "positive_range",
]

GRAY = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in a gray value: ITU-R BT.601, as torchvision rounds them."""

_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))
_RGB_FROM_YIQ = tuple(map(tuple, np.linalg.inv(np.array(_YIQ)).tolist()))


class ColorLinear(Transform):
    """A transform that maps the colour of every pixel by one affine map per image."""

    needs_mean = False
    """Whether `color_map` looks at the mean colour."""

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The map of RGB, applied to every image.

        Args:
            params: From `draw`.
            mean: float ``[B, 3]``, the mean colour of each image as it comes to this transform; if `needs_mean`.
            bound: The value of white.

        Returns:
            ``[B, 3, 3]`` and ``[B, 3]``: ``matrix @ rgb + offset``.
        """
        raise NotImplementedError

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        matrix, offset = fused_color_map(images, [(self, params)], bound)
        return map_colors(images, matrix, offset).clamp_(0, bound)


class Brightness(ColorLinear):
    """Multiplies by a factor: torchvision's ``adjust_brightness``.

    Args:
        factor: The range of the factors; a number b stands for (max(0, 1 - b), 1 + b).
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 1
    rounds = False

    def __init__(self, factor: float | tuple[float, float] = 0.4, *, p: float = 1.0, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)
        self.factor = positive_range(factor, "factor")

    def draw(self, numbers: torch.Tensor) -> Params:
        return {"factor": spread(numbers[:, 0], self.factor)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return (images * per_image(params["factor"], images).to(images.dtype)).clamp_(0, bound)

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        return per_image(params["factor"], mean[..., None]) * _identity(mean), torch.zeros_like(mean)

    def extra_repr(self) -> str:
        return _with_p(f"factor={self.factor}", self)


class Contrast(Brightness):
    """Blends with the mean gray value of each image: torchvision's ``adjust_contrast``.

    Args:
        factor: The range of the factors, 0 for gray, 1 for no change; a number c stands for (max(0, 1 - c), 1 + c).
        p: See `Transform`.
        seed: See `Transform`.
    """

    needs_mean = True

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return blend(images, gray_of(images, bound).mean((1, 2, 3), keepdim=True), params["factor"], bound)

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        factor = params["factor"][:, None]
        gray = (mean * _weights(mean)).sum(1, keepdim=True)
        return factor[..., None] * _identity(mean), ((1 - factor) * gray).expand_as(mean)


class Saturation(Brightness):
    """Blends each pixel with its gray value: torchvision's ``adjust_saturation``.

    Args:
        factor: The range of the factors, 0 for gray, 1 for no change; a number s stands for (max(0, 1 - s), 1 + s).
        p: See `Transform`.
        seed: See `Transform`.
    """

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return blend(images, gray_of(images, bound), params["factor"], bound)

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        factor = params["factor"][:, None, None]
        gray = _weights(mean).expand(3, 3)
        return factor * _identity(mean) + (1 - factor) * gray, torch.zeros_like(mean)


class Grayscale(Transform):
    """Gray values, with torchvision's weights.

    Args:
        channels: 1 or 3.
    """

    rounds = False

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3; got {channels}.")
        self.channels = channels

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return gray_of(images, bound).expand(-1, self.channels, -1, -1)


class RandomGrayscale(ColorLinear):
    """Makes some images gray; they keep their three channels.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    rounds = False

    def __init__(self, p: float = 0.2, *, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return gray_of(images, bound).expand_as(images)

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        return _weights(mean).expand(len(mean), 3, 3), torch.zeros_like(mean)


class Invert(ColorLinear):
    """White minus the image: torchvision's ``invert``.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    keeps_bytes = True

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return images.bitwise_not() if images.dtype == torch.uint8 else bound - images

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        return -_identity(mean).expand(len(mean), 3, 3), torch.full_like(mean, bound)


class ColorJitterYIQ(ColorLinear):
    """Brightness, contrast, saturation and hue as one matrix: the hue is a rotation in the plane of I and Q.

    Much less work than `ColorJitter`, whose hue goes through HSV, and not equal to it: turning colours in YIQ keeps
    their luma, turning them in HSV keeps their largest channel. All four are applied in this order and clipped once.

    Args:
        brightness: A number b for factors from max(0, 1 - b) to 1 + b, or the range.
        contrast: Likewise, about the mean gray value of the image.
        saturation: Likewise.
        hue: A number h for turns from -h to h, or the range; 0.5 is half of the circle.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 4

    def __init__(
        self,
        brightness: float | tuple[float, float] = 0.0,
        contrast: float | tuple[float, float] = 0.0,
        saturation: float | tuple[float, float] = 0.0,
        hue: float | tuple[float, float] = 0.0,
        *,
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        self.brightness = positive_range(brightness, "brightness")
        self.contrast = positive_range(contrast, "contrast")
        self.saturation = positive_range(saturation, "saturation")
        self.hue = hue_range(hue)
        self.needs_mean = self.contrast != (1.0, 1.0)

    def draw(self, numbers: torch.Tensor) -> Params:
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        drawn = [spread(numbers[:, column], each) for column, each in enumerate(ranges)]
        return dict(zip(("brightness", "contrast", "saturation", "hue"), drawn, strict=True))

    def color_map(self, params: Params, mean: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        contrast, angle = params["contrast"][:, None], params["hue"] * (2 * torch.pi)
        cosine, sine = angle.cos() * params["saturation"], angle.sin() * params["saturation"]
        zero, one = torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack((one, zero, zero, zero, cosine, -sine, zero, sine, cosine), 1).view(-1, 3, 3)
        yiq = constant(_YIQ, mean.device).to(mean.dtype)
        from_yiq = constant(_RGB_FROM_YIQ, mean.device).to(mean.dtype)
        scale = (params["brightness"][:, None] * contrast)[..., None]
        gray = (mean * _weights(mean)).sum(1, keepdim=True) * params["brightness"][:, None]
        return scale * (from_yiq @ turn.to(mean.dtype) @ yiq), ((1 - contrast) * gray).expand_as(mean)

    def extra_repr(self) -> str:
        names = ("brightness", "contrast", "saturation", "hue")
        return _with_p(", ".join(f"{name}={getattr(self, name)}" for name in names), self)


def blend(images: torch.Tensor, other: torch.Tensor, ratio: torch.Tensor, bound: float) -> torch.Tensor:
    """``ratio * images + (1 - ratio) * other``, clipped; `ratio` is ``[B]``."""
    ratio = per_image(ratio, images).to(images.dtype)
    # Not addcmul, which is not vectorised where it broadcasts (torch 2.15, CPU).
    return (images * ratio).add_(other * (1 - ratio)).clamp_(0, bound)


def gray_of(images: torch.Tensor, bound: float) -> torch.Tensor:
    """Float ``[B, 1, H, W]``; whole levels where white is 255, as in torchvision."""
    if images.shape[1] == 1:
        return images
    check_rgb(images)
    red, green, blue = images.unbind(1)
    gray = red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])[:, None]
    return gray.floor_() if bound == 255 else gray


def map_colors(images: torch.Tensor, matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """``matrix @ pixel + offset`` for every pixel; ``[B, K, C]`` and ``[B, K]``."""
    flat = images.flatten(2)
    mapped = torch.baddbmm(offset[..., None].to(flat.dtype), matrix.to(flat.dtype), flat)
    return mapped.view(len(images), matrix.shape[1], *images.shape[2:])


def fused_color_map(
    images: torch.Tensor, members: list[tuple[ColorLinear, Params]], bound: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The maps of neighbouring transforms as one; the mean colour that contrast needs is mapped along."""
    needs_mean = any(member.needs_mean for member, _ in members)
    mean = images.mean((2, 3)) if needs_mean else images.new_zeros(len(images), 3)
    matrix = _identity(mean).expand(len(images), 3, 3)
    offset = torch.zeros_like(mean)
    for member, params in members:
        own_matrix, own_offset = member.color_map(params, mean, bound)
        applied = params.get("applied")
        if applied is not None:
            own_matrix = torch.where(applied[:, None, None], own_matrix, _identity(mean))
            own_offset = torch.where(applied[:, None], own_offset, torch.zeros_like(own_offset))
        matrix, offset, mean = (
            own_matrix @ matrix,
            (own_matrix @ offset[..., None])[..., 0] + own_offset,
            (own_matrix @ mean[..., None])[..., 0] + own_offset,
        )
    return matrix, offset


def positive_range(value: float | tuple[float, float], name: str) -> tuple[float, float]:
    """``0.4`` as ``(0.6, 1.4)``; a range as it is.

    Raises:
        ValueError: If it is negative or not ordered.
    """
    low, high = (max(0.0, 1 - value), 1 + value) if isinstance(value, int | float) else value
    if not 0 <= low <= high:
        raise ValueError(f"{name} must be a number from 0 or a range (low, high) of factors from 0; got {value!r}.")
    return float(low), float(high)


def hue_range(value: float | tuple[float, float]) -> tuple[float, float]:
    """``0.1`` as ``(-0.1, 0.1)``; a range as it is.

    Raises:
        ValueError: If it is not within -0.5 to 0.5.
    """
    low, high = (-value, value) if isinstance(value, int | float) else value
    if not -0.5 <= low <= high <= 0.5:
        raise ValueError(f"hue must be a number from 0 to 0.5 or a range within (-0.5, 0.5); got {value!r}.")
    return float(low), float(high)


def check_rgb(images: torch.Tensor, transform: Transform | None = None) -> None:
    """Refuse images that have not three channels.

    Raises:
        ValueError: With how many there are.
    """
    if images.shape[1] != 3:
        name = "This transform" if transform is None else type(transform).__name__
        raise ValueError(f"{name} works on RGB images [B, 3, H, W]; got {list(images.shape)}.")


def _identity(like: torch.Tensor) -> torch.Tensor:
    return constant(((1, 0, 0), (0, 1, 0), (0, 0, 1)), like.device).to(like.dtype)


def _weights(like: torch.Tensor) -> torch.Tensor:
    return constant(GRAY, like.device).to(like.dtype)


def _with_p(text: str, transform: Transform) -> str:
    return text if transform.p == 1 else f"{text}, p={transform.p}"
