"""Geometric transforms that are an affine map of the plane, and the fusion of neighbouring ones."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from torchslip.augment._philox import constant
from torchslip.augment._transform import Params, Transform, spread

__all__ = [
    "Affine",
    "Geometric",
    "HorizontalFlip",
    "PaddingMode",
    "Rotate",
    "RotateObject",
    "VerticalFlip",
    "Zoom",
    "affine_matrix",
    "fused_matrix",
    "resample",
]

PaddingMode = Literal["zeros", "border", "reflection"]
Interpolation = Literal["bilinear", "nearest"]


class Geometric(Transform):
    """A transform that takes every pixel from an affine function of its place.

    Args:
        padding: What lies outside of the picture: ``zeros`` is black, ``border`` repeats the outermost pixels,
            ``reflection`` mirrors.
        interpolation: ``bilinear`` or ``nearest``.
        p: See `Transform`.
        seed: See `Transform`.
    """

    resamples = True
    """False for flips, which only move pixels."""

    def __init__(
        self,
        *,
        padding: PaddingMode = "zeros",
        interpolation: Interpolation = "bilinear",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        for name, value, valid in (
            ("padding", padding, get_args(PaddingMode)),
            ("interpolation", interpolation, get_args(Interpolation)),
        ):
            if value not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}; got {value!r}.")
        self.padding, self.interpolation = padding, interpolation

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        """Where each output pixel is taken from.

        Args:
            params: From `draw`.
            images: For their size and device.

        Returns:
            float32 ``[B, 3, 3]``: maps (x, y, 1) of the output to the source, both in pixels from the centre of the
            picture, x to the right and y down.
        """
        raise NotImplementedError

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return resample(images, self.matrix(params, images), padding=self.padding, interpolation=self.interpolation)


class HorizontalFlip(Geometric):
    """Mirrors left and right.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    keeps_bytes = True
    resamples = False
    _axis, _signs = 3, (-1.0, 1.0)

    def __init__(self, p: float = 0.5, *, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return images.flip(self._axis)

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        x, y = self._signs
        mirror = constant(((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, 1.0)), images.device)
        return mirror.expand(len(images), 3, 3)


class VerticalFlip(HorizontalFlip):
    """Mirrors top and bottom.

    Args:
        p: The probability for each image.
        seed: See `Transform`.
    """

    _axis, _signs = 2, (1.0, -1.0)


class Rotate(Geometric):
    """Turns about a point of the picture: torchvision's ``rotate``.

    Args:
        degrees: The range of the angles, counter-clockwise; a number d stands for (-d, d).
        angles: Draw one of these angles instead.
        center: The point, as fractions (x, y) of width and height.
        padding: See `Geometric`.
        interpolation: See `Geometric`.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 1

    def __init__(
        self,
        degrees: float | tuple[float, float] = 45.0,
        *,
        angles: tuple[float, ...] | None = None,
        center: tuple[float, float] = (0.5, 0.5),
        padding: PaddingMode = "zeros",
        interpolation: Interpolation = "bilinear",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(padding=padding, interpolation=interpolation, p=p, seed=seed)
        self.degrees = (-abs(degrees), abs(degrees)) if isinstance(degrees, int | float) else degrees
        self.angles, self.center = None if angles is None else tuple(map(float, angles)), center

    def draw(self, numbers: torch.Tensor) -> Params:
        if self.angles is None:
            return {"degrees": spread(numbers[:, 0], self.degrees)}
        return {"degrees": choose(self.angles, numbers[:, 0])}

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        return affine_matrix(images, degrees=params["degrees"], center=self.center)

    def extra_repr(self) -> str:
        what = f"degrees={self.degrees}" if self.angles is None else f"angles={self.angles}"
        return f"{what}, padding={self.padding!r}, p={self.p}"


class Zoom(Geometric):
    """Shows a part of the picture larger, or the whole smaller.

    Args:
        zoom: The range of the part that is shown, as a fraction of the side: below 1 enlarges, above 1 reduces.
        center: The point that stays where it is, as fractions (x, y) of width and height.
        padding: See `Geometric`.
        interpolation: See `Geometric`.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 1

    def __init__(
        self,
        zoom: tuple[float, float] = (0.5, 1.0),
        *,
        center: tuple[float, float] = (0.5, 0.5),
        padding: PaddingMode = "zeros",
        interpolation: Interpolation = "bilinear",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(padding=padding, interpolation=interpolation, p=p, seed=seed)
        if not 0 < zoom[0] <= zoom[1]:
            raise ValueError(f"zoom must be a range (low, high) above 0; got {zoom}.")
        self.zoom, self.center = zoom, center

    def draw(self, numbers: torch.Tensor) -> Params:
        return {"zoom": spread(numbers[:, 0], self.zoom)}

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        return affine_matrix(images, scale=1 / params["zoom"], center=self.center)

    def extra_repr(self) -> str:
        return f"zoom={self.zoom}, padding={self.padding!r}, p={self.p}"


class Affine(Geometric):
    """Turns, shifts, scales and shears: torchvision's ``RandomAffine``.

    Args:
        degrees: The range of the angles, clockwise as in torchvision's ``affine``; a number d stands for (-d, d).
        translate: The largest shift, as fractions (x, y) of width and height.
        scale: The range of the scale; above 1 enlarges.
        shear: The range of the shear along x, in degrees; a number s stands for (-s, s).
        shear_y: Likewise along y.
        padding: See `Geometric`.
        interpolation: See `Geometric`.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 6

    def __init__(
        self,
        degrees: float | tuple[float, float] = 0.0,
        *,
        translate: tuple[float, float] = (0.0, 0.0),
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float | tuple[float, float] = 0.0,
        shear_y: float | tuple[float, float] = 0.0,
        padding: PaddingMode = "zeros",
        interpolation: Interpolation = "bilinear",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(padding=padding, interpolation=interpolation, p=p, seed=seed)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range (low, high) above 0; got {scale}.")
        self.degrees, self.shear, self.shear_y = _symmetric(degrees), _symmetric(shear), _symmetric(shear_y)
        self.translate, self.scale = translate, scale

    def draw(self, numbers: torch.Tensor) -> Params:
        shifts = [spread(numbers[:, 1 + axis], (-most, most)) for axis, most in enumerate(self.translate)]
        shears = [spread(numbers[:, 4 + axis], each) for axis, each in enumerate((self.shear, self.shear_y))]
        return {
            "degrees": spread(numbers[:, 0], self.degrees),
            "shift": torch.stack(shifts, 1),
            "scale": spread(numbers[:, 3], self.scale),
            "shear": torch.stack(shears, 1),
        }

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        return affine_matrix(
            images,
            degrees=-params["degrees"],
            shift=params["shift"],
            scale=params["scale"],
            shear=params["shear"],
        )


class RotateObject(Geometric):
    """Turns and scales about an object's centre and moves that to a drawn place.

    Args:
        degrees: The range of the angles, counter-clockwise; a number d stands for (-d, d).
        scale: The range of the scale; above 1 enlarges.
        center: Where the object is, as fractions (x, y) of width and height.
        target_x: The range of where its centre is put, as fractions of the width.
        target_y: Likewise, of the height.
        padding: See `Geometric`.
        interpolation: See `Geometric`.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 4

    def __init__(
        self,
        degrees: float | tuple[float, float] = 45.0,
        *,
        scale: tuple[float, float] = (1.0, 2.0),
        center: tuple[float, float] = (0.5, 0.5),
        target_x: tuple[float, float] = (0.25, 0.75),
        target_y: tuple[float, float] = (0.25, 0.75),
        padding: PaddingMode = "border",
        interpolation: Interpolation = "bilinear",
        p: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(padding=padding, interpolation=interpolation, p=p, seed=seed)
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range (low, high) above 0; got {scale}.")
        self.degrees, self.scale, self.center = _symmetric(degrees), scale, center
        self.target_x, self.target_y = target_x, target_y

    def draw(self, numbers: torch.Tensor) -> Params:
        targets = [spread(numbers[:, 2 + axis], each) for axis, each in enumerate((self.target_x, self.target_y))]
        return {
            "degrees": spread(numbers[:, 0], self.degrees),
            "scale": spread(numbers[:, 1], self.scale),
            "target": torch.stack(targets, 1),
        }

    def matrix(self, params: Params, images: torch.Tensor) -> torch.Tensor:
        shift = torch.stack([params["target"][:, axis] - self.center[axis] for axis in range(2)], 1)
        return affine_matrix(images, degrees=params["degrees"], scale=params["scale"], shift=shift, center=self.center)


def affine_matrix(
    images: torch.Tensor,
    *,
    degrees: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    shear: torch.Tensor | None = None,
    center: tuple[float, float] = (0.5, 0.5),
) -> torch.Tensor:
    """The map from output to source of: shear, turn and scale about `center`, then shift.

    Args:
        images: For their size.
        degrees: ``[B]``, counter-clockwise.
        scale: ``[B]``.
        shift: ``[B, 2]``, fractions of width and height.
        shear: ``[B, 2]``, degrees along x and y.
        center: Fractions of width and height.

    Returns:
        float32 ``[B, 3, 3]``, see `Geometric.matrix`.
    """
    like = next(each for each in (degrees, scale, shift, shear) if each is not None)
    zero, one = torch.zeros(len(like), device=like.device), torch.ones(len(like), device=like.device)
    angle = zero if degrees is None else degrees * (math.pi / 180)
    # Clockwise on the screen, where y points down: the inverse of the turn.
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.stack((cosine, -sine, sine, cosine), 1).view(-1, 2, 2)
    if shear is not None:
        slope = (shear * (math.pi / 180)).tan()
        along_x = torch.stack((one, slope[:, 0], zero, one), 1).view(-1, 2, 2)
        along_y = torch.stack((one, zero, slope[:, 1], one), 1).view(-1, 2, 2)
        turn = along_x @ along_y @ turn
    if scale is not None:
        turn = turn / scale[:, None, None]
    height, width = images.shape[2:]
    x, y = (center[0] - 0.5) * width, (center[1] - 0.5) * height
    middle = torch.stack((zero + x, zero + y), 1)
    moved = middle if shift is None else middle + torch.stack((shift[:, 0] * width, shift[:, 1] * height), 1)
    offset = middle - (turn @ moved[..., None])[..., 0]
    last = torch.stack((zero, zero, one), 1)[:, None]
    return torch.cat((torch.cat((turn, offset[..., None]), 2), last), 1)


def fused_matrix(members: list[tuple[Geometric, Params]], images: torch.Tensor) -> torch.Tensor:
    """The map of transforms one after the other, ``[B, 3, 3]``; where one is not applied it is the identity."""
    identity = torch.eye(3, device=images.device)
    total = identity.expand(len(images), 3, 3)
    for member, params in members:
        own = member.matrix(params, images)
        applied = params.get("applied")
        total = total @ (own if applied is None else torch.where(applied[:, None, None], own, identity))
    return total


def resample(
    images: torch.Tensor,
    matrix: torch.Tensor,
    *,
    padding: PaddingMode = "zeros",
    interpolation: Interpolation = "bilinear",
) -> torch.Tensor:
    """Take every pixel from where `matrix` (see `Geometric.matrix`) says; float images."""
    height, width = images.shape[2:]
    if not images.numel():
        return images
    columns = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    rows = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
    grid = []
    for axis, size in enumerate((width, height)):
        by_x, by_y, offset = (matrix[:, axis] * (2 / size)).unbind(1)
        grid.append((by_x[:, None] * columns)[:, None] + (by_y[:, None] * rows + offset[:, None])[..., None])
    places = torch.stack(grid, -1).to(images.dtype)
    return F.grid_sample(images, places, mode=interpolation, padding_mode=padding, align_corners=False)


def choose(values: tuple[float, ...], numbers: torch.Tensor) -> torch.Tensor:
    """One of `values` for each number in [0, 1)."""
    return constant(values, numbers.device)[(numbers * len(values)).to(torch.int64)]


def _symmetric(value: float | tuple[float, float]) -> tuple[float, float]:
    return (-abs(float(value)), abs(float(value))) if isinstance(value, int | float) else value
