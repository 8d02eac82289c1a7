"""Transforms of rectangles: erasing one, shuffling a grid of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch

from torchslip.augment._philox import constant, noise
from torchslip.augment._transform import Params, Transform, masked, spread

__all__ = ["PatchShuffle", "RandomErasing", "noise_key", "normal"]

Fill = Literal["constant", "color", "noise"]
Distribution = Literal["uniform", "normal"]


class RandomErasing(Transform):
    """Overwrites a rectangle (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; parameters of timm).

    Args:
        area: The range of the rectangle's area, as a fraction of the image's.
        aspect: The range of its height divided by its width, drawn evenly on a logarithmic scale. Sides longer than
            the image are cut.
        fill: ``constant``: `value`; ``color``: one random colour; ``noise``: a random colour for every pixel.
        value: A fraction of white, or one for each channel.
        distribution: Of random colours: ``uniform`` from black to white, or ``normal``, for normalised images.
        p: The probability for each image.
        seed: See `Transform`.
    """

    numbers = 6

    def __init__(
        self,
        area: tuple[float, float] = (0.02, 1 / 3),
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
        *,
        fill: Fill = "constant",
        value: float | tuple[float, ...] = 0.0,
        distribution: Distribution = "uniform",
        p: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        for name, given, valid in (
            ("fill", fill, get_args(Fill)),
            ("distribution", distribution, get_args(Distribution)),
        ):
            if given not in valid:
                raise ValueError(f"{name} must be one of {', '.join(valid)}; got {given!r}.")
        if not 0 <= area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"area must be a range within (0, 1) and aspect one above 0; got {area} and {aspect}.")
        self.area, self.aspect, self.fill, self.distribution = area, aspect, fill, distribution
        self.value = (float(value),) if isinstance(value, int | float) else tuple(map(float, value))

    def draw(self, numbers: torch.Tensor) -> Params:
        low, high = self.aspect
        params = {
            "area": spread(numbers[:, 0], self.area),
            "aspect": spread(numbers[:, 1], (math.log(low), math.log(high))).exp(),
            "place": numbers[:, 2:4],
        }
        if self.fill != "constant":
            params["noise"] = noise_key(numbers[:, 4:6])
        return params

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        height, width = images.shape[2:]
        area = params["area"] * (height * width)
        tall = (area * params["aspect"]).sqrt().round().clamp(0, height)
        wide = (area / params["aspect"]).sqrt().round().clamp(0, width)
        top = (params["place"][:, 0] * (height - tall + 1)).floor()
        left = (params["place"][:, 1] * (width - wide + 1)).floor()
        rows = _between(top, tall, height, images.device)[:, None, :, None]
        columns = _between(left, wide, width, images.device)[:, None, None, :]
        return torch.where(rows & columns, self._filling(images, params, bound).to(images.dtype), images)

    def _filling(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        count, channels, height, width = images.shape
        if self.fill == "constant":
            return constant(self.value, images.device).view(1, -1, 1, 1) * bound
        shape = (count, channels, 1, 1) if self.fill == "color" else (count, channels, height, width)
        amount = math.prod(shape[1:])
        draw = noise if self.distribution == "uniform" else normal
        return draw(params["noise"], amount).view(shape) * bound

    def extra_repr(self) -> str:
        return f"area={self.area}, aspect={self.aspect}, fill={self.fill!r}, p={self.p}"


class PatchShuffle(Transform):
    """Divides the image into square cells and puts them into another order.

    What remains at the right and at the bottom where the cells do not fill the image stays as it is.

    Args:
        cells: Cells along a side, or several numbers of which one is drawn for each image.
        p: The probability for each image.
        seed: See `Transform`.
    """

    keeps_bytes = True

    def __init__(self, cells: int | tuple[int, ...] = 4, *, p: float = 0.5, seed: int | None = None) -> None:
        super().__init__(p=p, seed=seed)
        self.cells = (cells,) if isinstance(cells, int) else tuple(cells)
        if not self.cells or min(self.cells) < 1:
            raise ValueError(f"cells must be a number from 1 or several; got {cells!r}.")
        self.numbers = 1 + max(self.cells) ** 2

    def draw(self, numbers: torch.Tensor) -> Params:
        choice = (numbers[:, 0] * len(self.cells)).to(torch.int64)
        return {"choice": choice, "rank": numbers[:, 1:]}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        for number, cells in enumerate(self.cells):
            images = masked(_shuffler(cells), images, params, params["choice"] == number)
        return images

    def extra_repr(self) -> str:
        return f"cells={self.cells}, p={self.p}"


def _shuffler(cells: int) -> Callable[[torch.Tensor, Params], torch.Tensor]:
    def shuffled(images: torch.Tensor, params: Params) -> torch.Tensor:
        count, channels, height, width = images.shape
        tall, wide = height // cells, width // cells
        if not tall or not wide:
            return images
        body = images[:, :, : cells * tall, : cells * wide].reshape(count, channels, cells, tall, cells, wide)
        patches = body.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        order = params["rank"][:, : cells**2].argsort(dim=1, stable=True)
        moved = patches.gather(1, order[:, :, None, None, None].expand_as(patches))
        moved = moved.view(count, cells, cells, channels, tall, wide).permute(0, 3, 1, 4, 2, 5)
        output = images.clone()
        output[:, :, : cells * tall, : cells * wide] = moved.reshape(count, channels, cells * tall, cells * wide)
        return output

    return shuffled


def noise_key(numbers: torch.Tensor) -> torch.Tensor:
    """Two numbers in [0, 1) per image as the key of a field of noise: int64 ``[B, 2]``."""
    return (numbers * 2.0**24).to(torch.int64)


def normal(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Like `noise`, but normally distributed: the transform of Box and Muller."""
    half = -(-count // 2)
    radius, angle = torch.split(noise(keys, 2 * half), half, 1)
    radius = (-2 * radius.log()).sqrt()
    angle = angle * (2 * math.pi)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)[:, :count]


def _between(start: torch.Tensor, length: torch.Tensor, size: int, device: torch.device) -> torch.Tensor:
    """Bool ``[B, size]``: start <= place < start + length."""
    places = torch.arange(size, device=device)
    return (places >= start[:, None]) & (places < (start + length)[:, None])
