"""Geometry that is not affine: the distortion of lenses, and a circular window."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torchslip.augment._transform import Params, Transform, spread

__all__ = ["CircularMask", "OpticalDistortion", "disc"]


class OpticalDistortion(Transform):
    """Barrel (below 0) or cushion (above 0) distortion.

    The radial model of cameras, as in OpenCV's ``initUndistortRectifyMap`` with k1 = k2 = k: a pixel at distance r from
    the middle, in widths and heights of the image, is taken from the distance r (1 + k r^2 + k r^4). Black outside.

    Args:
        distortion: k, or the range that it is drawn from.
        shift: Where the optical axis is, as fractions (x, y) of width and height away from the middle.
        p: The probability for each image.
        seed: See `Transform`.
    """

    numbers = 1

    def __init__(
        self,
        distortion: float | tuple[float, float] = -0.5,
        *,
        shift: tuple[float, float] = (0.0, 0.0),
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        self.distortion = (distortion, distortion) if isinstance(distortion, int | float) else distortion
        self.shift = shift

    def draw(self, numbers: torch.Tensor) -> Params:
        return {"distortion": spread(numbers[:, 0], self.distortion)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        if not images.numel():
            return images
        x, y = (_fractions(size, images) - own for size, own in zip(images.shape[:1:-1], self.shift, strict=True))
        square = x**2 + y[:, None] ** 2
        strength = params["distortion"].to(images.dtype)[:, None, None]
        stretch = 1 + strength * (square + square**2)
        places = torch.stack((x * stretch + self.shift[0], y[:, None] * stretch + self.shift[1]), -1)
        return F.grid_sample(images, 2 * places, align_corners=False)

    def extra_repr(self) -> str:
        return f"distortion={self.distortion}, p={self.p}"


class CircularMask(Transform):
    """Shows a disc, with a soft edge, on a plain background.

    Args:
        radius: Of the disc up to the outer end of its edge, as a fraction of the shorter side.
        edge: Width of the edge, in which the image fades by a cosine, as a fraction of the shorter side.
        fill: The background, as a fraction of white.
    """

    def __init__(self, radius: float = 0.5, *, edge: float = 0.05, fill: float = 0.0) -> None:
        super().__init__()
        if radius <= 0 or edge < 0:
            raise ValueError(f"radius must be above 0 and edge not below it; got {radius} and {edge}.")
        self.radius, self.edge, self.fill = radius, edge, fill

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        shown = disc(images, self.radius, self.edge)
        return images * shown + (1 - shown) * (self.fill * bound)

    def extra_repr(self) -> str:
        return f"radius={self.radius}, edge={self.edge}"


def disc(images: torch.Tensor, radius: float, edge: float) -> torch.Tensor:
    """1 inside of a disc in the middle, 0 outside, a cosine between: ``[H, W]``, measured in the shorter side."""
    height, width = images.shape[2:]
    shorter = max(1, min(height, width))
    x, y = _fractions(width, images) * (width / shorter), _fractions(height, images) * (height / shorter)
    distance = (x**2 + y[:, None] ** 2).sqrt()
    if edge == 0:
        return (distance <= radius).to(images.dtype)
    return 0.5 + 0.5 * (((distance - radius) / edge + 1).clamp(0, 1) * torch.pi).cos()


def _fractions(size: int, images: torch.Tensor) -> torch.Tensor:
    """The places of pixels from the middle, in sizes of the image: ``[size]`` from about -0.5 to 0.5."""
    dtype = images.dtype if images.is_floating_point() else torch.float32
    return (torch.arange(size, device=images.device, dtype=dtype) - (size - 1) / 2) / max(1, size)
