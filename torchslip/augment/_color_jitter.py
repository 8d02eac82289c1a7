"""torchvision's colour jitter with parameters of each image's own."""

from __future__ import annotations

from typing import Literal

import torch

from torchslip.augment._color_linear import blend, check_rgb, gray_of, hue_range, positive_range
from torchslip.augment._philox import constant
from torchslip.augment._transform import Params, Transform, by_rows, masked, per_image, spread

__all__ = ["ColorJitter", "turn_hue"]

_ORDERS = ("random", "fixed")
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


class ColorJitter(Transform):
    """Brightness, contrast, saturation and hue, one after the other: torchvision's ``ColorJitter``.

    Args:
        brightness: A number b for factors from max(0, 1 - b) to 1 + b, or the range.
        contrast: Likewise.
        saturation: Likewise.
        hue: A number h for turns from -h to h, or the range; 0.5 is half of the circle.
        order: ``random`` draws the order of the four for each image, as torchvision does for each call; ``fixed`` takes
            them as they stand here, which is less work on a GPU.
        p: See `Transform`. The published recipes have 0.8.
        seed: See `Transform`.
    """

    def __init__(
        self,
        brightness: float | tuple[float, float] = 0.0,
        contrast: float | tuple[float, float] = 0.0,
        saturation: float | tuple[float, float] = 0.0,
        hue: float | tuple[float, float] = 0.0,
        *,
        order: Literal["random", "fixed"] = "random",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        if order not in _ORDERS:
            raise ValueError(f"order must be one of {', '.join(_ORDERS)}; got {order!r}.")
        self.brightness = positive_range(brightness, "brightness")
        self.contrast = positive_range(contrast, "contrast")
        self.saturation = positive_range(saturation, "saturation")
        self.hue = hue_range(hue)
        self.order = order
        self.numbers = 8 if order == "random" else 4

    def draw(self, numbers: torch.Tensor) -> Params:
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        drawn = [spread(numbers[:, column], each) for column, each in enumerate(ranges)]
        params = dict(zip(("brightness", "contrast", "saturation", "hue"), drawn, strict=True))
        if self.order == "random":
            params["order"] = numbers[:, 4:8].argsort(dim=1, stable=True)
        return params

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        if self.order == "fixed":
            params = {**params, "order": torch.arange(4, device=images.device).expand(len(images), 4)}
        if by_rows(images):
            return self._step_by_step(images, params, bound)
        return self._around_the_hue(images, params, bound)

    def _step_by_step(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        operations = {
            _BRIGHTNESS: lambda x, own: (x * per_image(own["brightness"], x).to(x.dtype)).clamp_(0, bound),
            _CONTRAST: lambda x, own: blend(x, gray_of(x, bound).mean((1, 2, 3), keepdim=True), own["contrast"], bound),
            _SATURATION: lambda x, own: blend(x, gray_of(x, bound), own["saturation"], bound),
            _HUE: lambda x, own: turn_hue(x, own["hue"]),
        }
        changes = self._changing()
        for step in params["order"].unbind(1):
            for number in changes:
                images = masked(operations[number], images, params, step == number)
        return images

    def _changing(self) -> list[int]:
        neutral = ((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 0.0))
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        return [number for number, (own, none) in enumerate(zip(ranges, neutral, strict=True)) if own != none]

    def _around_the_hue(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        """The same without looking at parameters: the three blends before the hue, the hue, and those after it.

        An image whose hue comes second has its first operation before it and two after it; in the other places it is
        blended with nothing. So the hue, the dearest of the four, is computed once instead of at each place.
        """
        order = params["order"]
        place_of_hue = (order == _HUE).to(torch.int64).argmax(1)
        factors = torch.stack((params["brightness"], params["contrast"], params["saturation"]), 1)
        fixed = self.order == "fixed"
        for place in range(3):
            images = self._blended(images, order[:, place], factors, place < place_of_hue, bound)
        if _HUE in self._changing():
            images = turn_hue(images, params["hue"])
        for place in range(1, 1 if fixed else 4):
            images = self._blended(images, order[:, place], factors, place > place_of_hue, bound)
        return images

    @staticmethod
    def _blended(
        images: torch.Tensor, operation: torch.Tensor, factors: torch.Tensor, active: torch.Tensor, bound: float
    ) -> torch.Tensor:
        ratio = factors.gather(1, operation.clamp_max(2)[:, None])[:, 0]
        ratio = torch.where(active, ratio, torch.ones_like(ratio))
        gray = gray_of(images, bound)
        by_mean = per_image(operation == _CONTRAST, gray)
        other = torch.where(by_mean, gray.mean((1, 2, 3), keepdim=True), gray)
        other = torch.where(per_image(operation == _BRIGHTNESS, gray), torch.zeros_like(other), other)
        return blend(images, other, ratio, bound)


def turn_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue in HSV: torchvision's ``adjust_hue``, without its intermediate picture.

    With m the smallest and c the largest minus the smallest channel, each channel is m + c * f(hue), f piecewise linear
    between 0 and 1, so hue and saturation need not be computed apart. Selections are made by arithmetic: `where` is
    five times as slow on the CPU (torch 2.15).

    Args:
        images: float ``[B, 3, H, W]``.
        turns: float ``[B]``, -0.5 to 0.5.
    """
    red, green, blue = images.unbind(1)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue) - smallest
    least_red, least_blue = smallest.eq(red).to(images.dtype), smallest.eq(blue).to(images.dtype)
    # The hue in sixths of the circle: 1 + (g - r) / c where blue is least, 3 + (b - g) / c where red is, else
    # 5 + (r - b) / c.
    hue = torch.lerp(torch.lerp(red - blue, blue - green, least_red), green - red, least_blue)
    hue.div_(chroma.clamp_min(1e-8))
    base = 5 - 2 * least_red
    hue.add_(torch.lerp(base, torch.ones_like(base), least_blue)).add_(per_image(turns, hue).to(hue.dtype) * 6)
    hue.sub_((hue * (1 / 6)).floor_().mul_(6))
    middle = constant((3.0, 2.0, 4.0), images.device).to(hue.dtype).view(3, 1, 1)
    sign = constant((1.0, -1.0, -1.0), images.device).to(hue.dtype).view(3, 1, 1)
    start = constant((-1.0, 2.0, 2.0), images.device).to(hue.dtype).view(3, 1, 1)
    factor = (hue[:, None] - middle).abs_().mul_(sign).add_(start).clamp_(0, 1)
    return factor.mul_(chroma[:, None]).add_(smallest[:, None])
