"""Bytes to floating point, and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchslip.augment._philox import constant
from torchslip.augment._transform import Pictures, Transform, Tree

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Normalize", "NormalizeLGN", "ToFloat"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of red, green and blue over ImageNet's training set, from 0 to 1."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation, as `IMAGENET_MEAN`."""


class ToFloat(Transform):
    """uint8 from 0 to 255 to floating point from 0 to 1; floating images only change their type.

    Args:
        dtype: The type of the result.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def _step(self, pictures: Pictures, params: Tree) -> Pictures:
        floating = pictures.floating()
        images = floating.images * (1 / floating.bound) if floating.bound != 1 else floating.images
        return Pictures(images.to(self.dtype), 1.0, self.dtype)

    def extra_repr(self) -> str:
        return f"{self.dtype}"


class Normalize(Transform):
    """``(image - mean) / std`` for each channel, in floating point.

    Args:
        mean: One number per channel, from 0 to 1, also for uint8 images.
        std: Likewise.
        dtype: The type of the result; default: that of floating images, float32 for uint8.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mean, self.std, self.dtype = tuple(map(float, mean)), tuple(map(float, std)), dtype
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ValueError(f"mean and std must have one number per channel, std above 0; got {mean} and {std}.")

    def _step(self, pictures: Pictures, params: Tree) -> Pictures:
        images, bound, dtype = pictures.floating()
        if images.shape[1] != len(self.mean):
            raise ValueError(f"{self} is for {len(self.mean)} channels; got images of shape {list(images.shape)}.")
        scale, offset = self.scale_and_offset(images, bound)
        normal = (images * scale.view(-1, 1, 1)).add_(offset.view(-1, 1, 1))
        dtype = self.dtype_for(dtype)
        return Pictures(normal.to(dtype), 1.0, dtype)

    def dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        """The type of the result for images of `dtype`."""
        return self.dtype or (dtype if dtype.is_floating_point else torch.float32)

    def scale_and_offset(self, like: torch.Tensor, bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """``[C]`` each: the normalised image is ``image * scale + offset``."""
        scale = constant(tuple(1 / (bound * each) for each in self.std), like.device)
        offset = constant(tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True)), like.device)
        return scale.to(like.dtype), offset.to(like.dtype)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"


class NormalizeLGN(Normalize):
    """`Normalize` for the five channels of `RGBToLGN`.

    Args:
        mean: Five numbers.
        std: Five numbers.
        dtype: See `Normalize`.
    """

    def __init__(self, mean: Sequence[float] = (0.2,) * 5, std: Sequence[float] = (0.2,) * 5, **options: Any) -> None:
        super().__init__(mean, std, **options)
