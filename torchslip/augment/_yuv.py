"""Y, Cb and Cr to RGB, where the pictures are."""

from __future__ import annotations

import torch

from torchslip.decode import interpolate_chroma, to_rgb

__all__ = ["yuv_to_rgb"]


def yuv_to_rgb(images: torch.Tensor, chroma: torch.Tensor | None = None) -> torch.Tensor:
    """What a dataset with ``output="yuv"`` or ``"planes"`` gives, as RGB, on the device where it is.

    ::

        batch["image"] = ts.augment.yuv_to_rgb(batch["image_y"].cuda(), batch["image_uv"].cuda())

    The colours are those of JFIF (ITU-R BT.601, all of 0 to 255), and chroma of half the size is interpolated, both in
    the integers of libjpeg: the bytes are the same on every device.

    ::

        R = Y + 1.402 (Cr - 128)
        G = Y - 0.344136 (Cb - 128) - 0.714136 (Cr - 128)
        B = Y + 1.772 (Cb - 128)

    Args:
        images: uint8 ``[..., 3, H, W]`` of Y, Cb and Cr; with `chroma`, ``[..., 1, H, W]`` of Y.
        chroma: uint8 ``[..., 2, ceil(H / 2), ceil(W / 2)]`` of Cb and Cr.

    Returns:
        uint8 ``[..., 3, H, W]``.

    Raises:
        ValueError: If the tensors are of other types or shapes.
    """
    height, width = images.shape[-2:] if images.dim() > 2 else (0, 0)
    channels = 3 if chroma is None else 1
    if images.dim() < 3 or images.shape[-3] != channels or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 [..., {channels}, H, W]{'' if chroma is None else ' where chroma is given'}; got "
            f"{images.dtype} {list(images.shape)}."
        )
    if chroma is None:
        return to_rgb(images)
    shape = (*images.shape[:-3], 2, -(-height // 2), -(-width // 2))
    if tuple(chroma.shape) != shape or chroma.dtype != torch.uint8:
        raise ValueError(f"chroma must be uint8 {list(shape)}; got {chroma.dtype} {list(chroma.shape)}.")
    return to_rgb(torch.cat((images, interpolate_chroma(chroma, height, width)), dim=-3))
