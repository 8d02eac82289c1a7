"""Y, Cb and Cr, RGB, and the size of chroma, in the integers of libjpeg: the same bytes on every device.

The colours are those of JFIF 1.02 (ITU-R BT.601, all of 0 to 255)::

    Y  =  0.299 R    + 0.587 G    + 0.114 B            R = Y                      + 1.402 (Cr - 128)
    Cb = -0.168736 R - 0.331264 G + 0.5 B + 128        G = Y - 0.344136 (Cb - 128) - 0.714136 (Cr - 128)
    Cr =  0.5 R - 0.418688 G - 0.081312 B + 128        B = Y + 1.772 (Cb - 128)
"""

from __future__ import annotations

import torch

__all__ = ["halve_chroma", "interpolate_chroma", "to_rgb", "to_yuv"]

_BITS = 16
_HALF = 1 << (_BITS - 1)


def _fixed(value: float) -> int:
    return int(value * (1 << _BITS) + 0.5)


def to_rgb(yuv: torch.Tensor) -> torch.Tensor:
    """Y, Cb and Cr to red, green and blue, uint8 ``[..., 3, H, W]``."""
    y, blue, red = yuv.to(torch.int32).unbind(-3)
    blue, red = blue - 128, red - 128
    rgb = (
        y + ((_fixed(1.402) * red + _HALF) >> _BITS),
        y + ((-_fixed(0.34414) * blue - _fixed(0.71414) * red + _HALF) >> _BITS),
        y + ((_fixed(1.772) * blue + _HALF) >> _BITS),
    )
    return torch.stack(rgb, dim=-3).clamp_(0, 255).to(torch.uint8)


def to_yuv(rgb: torch.Tensor) -> torch.Tensor:
    """Red, green and blue to Y, Cb and Cr, uint8 ``[..., 3, H, W]``."""
    red, green, blue = rgb.to(torch.int32).unbind(-3)
    middle = (128 << _BITS) + _HALF - 1
    yuv = (
        _fixed(0.299) * red + _fixed(0.587) * green + _fixed(0.114) * blue + _HALF,
        -_fixed(0.168735892) * red - _fixed(0.331264108) * green + _HALF * blue + middle,
        _HALF * red - _fixed(0.418687589) * green - _fixed(0.081312411) * blue + middle,
    )
    return (torch.stack(yuv, dim=-3) >> _BITS).to(torch.uint8)


def interpolate_chroma(
    chroma: torch.Tensor, height: int, width: int, *, down_rows: int = 2, down_columns: int = 2
) -> torch.Tensor:
    """Chroma at the size of luma, as libjpeg's "fancy upsampling" does it: 3/4 of the nearer sample, 1/4 of the other.

    Args:
        chroma: uint8 ``[..., h, w]``.
        height: Of luma; `h` is that over `down_rows`, rounded up.
        width: Of luma.
        down_rows: 1 or 2.
        down_columns: 1 or 2.

    Returns:
        uint8 ``[..., height, width]``.
    """
    values = chroma.to(torch.int32)
    if down_columns == 2 and chroma.shape[-1] <= 2:
        # libjpeg interpolates in neither direction there.
        values = values.repeat_interleave(2, dim=-1)
        values = values.repeat_interleave(2, dim=-2) if down_rows == 2 else values
        return values[..., :height, :width].to(torch.uint8)
    shift = 0
    if down_rows == 2:
        values = _interpolate(values.mT).mT
        shift += 2
    if down_columns == 2:
        values = _interpolate(values)
        shift += 2
    values = values[..., :height, :width]
    if shift:
        # Halves are rounded down and up in turn, along rows if there is a choice.
        turn = torch.arange(width if down_columns == 2 else height, device=values.device, dtype=torch.int32) & 1
        turn = turn if down_columns == 2 else turn[:, None]
        first = {2: 1, 4: 8}[shift]
        values = (values + (first - turn if shift == 4 else first + turn)) >> shift
    return values.to(torch.uint8)


def _interpolate(values: torch.Tensor) -> torch.Tensor:
    """Twice as long in the last dimension, and 4 times as large."""
    before = torch.cat((values[..., :1], values[..., :-1]), dim=-1)
    after = torch.cat((values[..., 1:], values[..., -1:]), dim=-1)
    both = torch.stack((3 * values + before, 3 * values + after), dim=-1)
    return both.flatten(-2)


def halve_chroma(chroma: torch.Tensor) -> torch.Tensor:
    """Chroma of half the size: the mean of each 2 x 2 pixels, of those that there are where a side is odd.

    Args:
        chroma: uint8 ``[..., H, W]``.

    Returns:
        uint8 ``[..., ceil(H / 2), ceil(W / 2)]``.
    """
    values = chroma.to(torch.int32)
    for dim in (-1, -2):
        if values.shape[dim] % 2:
            values = torch.cat((values, values.narrow(dim, values.shape[dim] - 1, 1)), dim=dim)
    return (
        (values[..., ::2, ::2] + values[..., 1::2, ::2] + values[..., ::2, 1::2] + values[..., 1::2, 1::2] + 2) >> 2
    ).to(torch.uint8)
