"""Every transform of `torchslip.augment`, in forms that change images: what test_augment_laws.py goes through."""

from __future__ import annotations

import torch

from torchslip import augment as A

# name -> a function that makes the transform
TRANSFORMS = {
    "Affine": lambda: A.Affine(30, translate=(0.2, 0.1), scale=(0.7, 1.4), shear=10, shear_y=5),
    "Brightness": lambda: A.Brightness(0.4),
    "ColorJitter": lambda: A.ColorJitter(0.4, 0.4, 0.4, 0.2, p=0.8),
    "ColorJitter fixed": lambda: A.ColorJitter(0.4, 0.4, 0.4, 0.2, order="fixed"),
    "ColorJitterYIQ": lambda: A.ColorJitterYIQ(0.4, 0.4, 0.4, 0.2, p=0.8),
    "Compose": lambda: A.Compose([A.HorizontalFlip(), A.Rotate(20), A.Brightness(0.2), A.Contrast(0.2)]),
    "Contrast": lambda: A.Contrast(0.4),
    "GaussianBlur": lambda: A.GaussianBlur(9, p=0.5),
    "Grayscale": lambda: A.Grayscale(3),
    "HorizontalFlip": lambda: A.HorizontalFlip(),
    "Invert": lambda: A.Invert(),
    "Normalize": lambda: A.Normalize(),
    "OneOf": lambda: A.OneOf([A.GaussianBlur(5), A.Invert(p=1), A.Rotate(45)], weights=[1, 2, 1]),
    "RandomApply": lambda: A.RandomApply([A.Brightness(), A.GaussianBlur(5)], p=0.5),
    "RandomGrayscale": lambda: A.RandomGrayscale(0.5),
    "Rotate": lambda: A.Rotate(45, p=0.5),
    "Rotate angles": lambda: A.Rotate(angles=(0, 90, 180, 270)),
    "RotateObject": lambda: A.RotateObject(p=0.8),
    "Saturation": lambda: A.Saturation(0.4),
    "ToFloat": lambda: A.ToFloat(),
    "VerticalFlip": lambda: A.VerticalFlip(),
    "Zoom": lambda: A.Zoom((0.5, 1.5), p=0.8),
}

CHANGES_TYPE = {"Normalize", "ToFloat"}
CHANGES_SHAPE: set[str] = set()
LEAVES_RANGE = {"Normalize"}


def pictures(count: int = 6, height: int = 33, width: int = 46, *, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Smooth colours with noise: uint8 in the loader's memory format, or floating from 0 to 1."""
    generator = torch.Generator().manual_seed(count * height + width)
    coarse = torch.rand((count, 3, 5, 5), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noisy = (smooth + 0.1 * torch.rand((count, 3, height, width), generator=generator)).clamp(0, 1)
    bytes_ = (noisy * 255).to(torch.uint8).to(memory_format=torch.channels_last)
    return bytes_ if dtype == torch.uint8 else bytes_.to(dtype) / 255


def ids(count: int = 6) -> torch.Tensor:
    """Sample ids that are neither small nor in order."""
    return torch.arange(count) * 7919 + 2**33 - 5
