"""Pictures on a background: placed on a canvas, cut out by alpha, before natural noise."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from torchslip.augment._distortion import disc
from torchslip.augment._patches import noise_key, normal
from torchslip.augment._philox import constant
from torchslip.augment._transform import Params, Transform, per_image, spread

__all__ = ["BackgroundBlend", "Embed", "power_law_noise"]

Background = Literal["constant", "noise"]
_Interval = tuple[float, float]


class Embed(Transform):
    """Places the image on a larger or smaller canvas.

    Args:
        size: Of the canvas, in pixels: a number or (height, width).
        x: The range of the place along the width: 0 is at the left border, 1 at the right.
        y: Likewise along the height.
        places: Draw one of these places (x, y) instead.
        fill: The canvas, as a fraction of white, or one for each channel.
        alpha: Add a fourth channel, white where the picture is, for `BackgroundBlend`.
        seed: See `Transform`.
    """

    numbers = 2
    keeps_bytes = True

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        x: _Interval = (0.5, 0.5),
        y: _Interval = (0.5, 0.5),
        places: tuple[tuple[float, float], ...] | None = None,
        fill: float | tuple[float, ...] = 0.0,
        alpha: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        if min(self.size) < 1:
            raise ValueError(f"size must be a positive number of pixels or (height, width); got {size!r}.")
        self.x, self.y, self.places, self.alpha = x, y, places, alpha
        self.fill = (float(fill),) if isinstance(fill, int | float) else tuple(map(float, fill))

    def draw(self, numbers: torch.Tensor) -> Params:
        if self.places is not None:
            index = (numbers[:, 0] * len(self.places)).to(torch.int64)
            return {"place": constant(self.places, numbers.device)[index]}
        return {"place": torch.stack((spread(numbers[:, 0], self.x), spread(numbers[:, 1], self.y)), 1)}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        count, _, height, width = images.shape
        rows, shows_row = _source(params["place"][:, 1], height, self.size[0])
        columns, shows_column = _source(params["place"][:, 0], width, self.size[1])
        first = torch.arange(count, device=images.device)[:, None, None]
        moved = images[first, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        shown = (shows_row[:, :, None] & shows_column[:, None, :])[:, None]
        white = (constant(self.fill, images.device) * bound).view(1, -1, 1, 1)
        white = white.round() if images.dtype == torch.uint8 else white
        canvas = torch.where(shown, moved, white.to(images.dtype))
        return torch.cat((canvas, shown.to(images.dtype) * int(bound)), 1) if self.alpha else canvas

    def extra_repr(self) -> str:
        where = f"x={self.x}, y={self.y}" if self.places is None else f"places={self.places}"
        return f"size={self.size}, {where}"


class BackgroundBlend(Transform):
    """Blends the picture into a background by its alpha channel, or by a disc, or both.

    RGBA pictures give RGB ones; RGB pictures are opaque but for `fade`.

    Args:
        background: ``constant`` is `fill`; ``noise`` has the spectrum of natural images, 1 / f ** exponent in power.
        fill: The constant background, as a fraction of white, or one for each channel.
        exponent: The range of the exponent: 0 is white noise, 2 that of natural images.
        color: Noise of three independent channels; else gray.
        mean: Of the noise, as a fraction of white.
        std: Its standard deviation.
        fade: Show the picture within a disc of this radius only, as a fraction of the shorter side; None: everywhere.
        edge: Width of the disc's edge, in which the picture fades by a cosine; as large as `fade`, it fades from the
            middle on.
        p: See `Transform`; needs RGB pictures below 1.
        seed: See `Transform`.
    """

    def __init__(
        self,
        background: Background = "noise",
        *,
        fill: float | tuple[float, ...] = 0.5,
        exponent: float | _Interval = 2.0,
        color: bool = True,
        mean: float = 0.5,
        std: float = 0.2,
        fade: float | None = None,
        edge: float = 0.1,
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(p=p, seed=seed)
        if background not in get_args(Background):
            raise ValueError(f"background must be one of {', '.join(get_args(Background))}; got {background!r}.")
        if fade is not None and (fade <= 0 or edge < 0):
            raise ValueError(f"fade must be above 0 and edge not below it; got {fade} and {edge}.")
        self.background, self.color, self.mean, self.std = background, color, mean, std
        self.numbers = 3 if background == "noise" else 0
        self.exponent = (exponent, exponent) if isinstance(exponent, int | float) else exponent
        self.fill = (float(fill),) if isinstance(fill, int | float) else tuple(map(float, fill))
        self.fade, self.edge = fade, edge

    def draw(self, numbers: torch.Tensor) -> Params:
        if self.background == "constant":
            return {}
        return {"exponent": spread(numbers[:, 0], self.exponent), "noise": noise_key(numbers[:, 1:3])}

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        picture, shown = images[:, :3], images.new_ones(())
        if images.shape[1] == 4:
            shown = images[:, 3:] / bound
        if self.fade is not None:
            shown = shown * disc(images, self.fade, self.edge)
        return picture * shown + self._background(images, params) * bound * (1 - shown)

    def _background(self, images: torch.Tensor, params: Params) -> torch.Tensor:
        if self.background == "constant":
            return constant(self.fill, images.device).to(images.dtype).view(1, -1, 1, 1)
        height, width = images.shape[2:]
        field = power_law_noise(params["noise"], params["exponent"], 3 if self.color else 1, height, width)
        return (field * self.std + self.mean).clamp(0, 1).to(images.dtype)

    def extra_repr(self) -> str:
        return f"background={self.background!r}, fade={self.fade}"


def power_law_noise(keys: torch.Tensor, exponent: torch.Tensor, channels: int, height: int, width: int) -> torch.Tensor:
    """Normal noise whose power falls as 1 / f ** exponent, with mean 0 and standard deviation 1 in every channel.

    Args:
        keys: int64 ``[B, 2]``, words of 32 bits: the same key gives the same field.
        exponent: ``[B]``.
        channels: How many independent ones.
        height: In pixels.
        width: In pixels.

    Returns:
        float32 ``[B, channels, height, width]``.
    """
    white = normal(keys, channels * height * width).view(len(keys), channels, height, width)
    if not white.numel():
        return white
    rows = torch.fft.fftfreq(height, device=keys.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=keys.device)
    frequency = (rows**2 + columns**2).sqrt()
    # The mean, of frequency 0, is taken out.
    amplitude = frequency.clamp_min(1 / max(height, width)) ** (-per_image(exponent, white) / 2) * (frequency > 0)
    field: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    return field / field.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def _source(place: torch.Tensor, size: int, canvas: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which line of the picture each line of the canvas shows, and whether it shows one: ``[B, canvas]``."""
    start = (place * (canvas - size)).round().to(torch.int64)
    lines = torch.arange(canvas, device=place.device) - start[:, None]
    return lines.clamp(0, max(0, size - 1)), (lines >= 0) & (lines < size)
