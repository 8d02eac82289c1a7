"""Every transform of `torchslip.augment`, in forms that change images: what test_augment_laws.py goes through."""

from __future__ import annotations

import pytest
import torch

from torchslip import augment as A

# name -> a function that makes the transform
TRANSFORMS = {
    "Affine": lambda: A.Affine(30, translate=(0.2, 0.1), scale=(0.7, 1.4), shear=10, shear_y=5),
    "AugMix": lambda: A.AugMix(6),
    "AutoContrast": lambda: A.AutoContrast(),
    "BackgroundBlend": lambda: A.BackgroundBlend(fade=0.4),
    "BackgroundBlend constant": lambda: A.BackgroundBlend("constant", fill=(0.1, 0.2, 0.3), fade=0.5, edge=0.5),
    "BlockMask": lambda: A.BlockMask((5, 7), p=0.8),
    "Brightness": lambda: A.Brightness(0.4),
    "CircularMask": lambda: A.CircularMask(0.4, fill=0.5),
    "ColorJitter": lambda: A.ColorJitter(0.4, 0.4, 0.4, 0.2, p=0.8),
    "ColorJitter fixed": lambda: A.ColorJitter(0.4, 0.4, 0.4, 0.2, order="fixed"),
    "ColorJitterYIQ": lambda: A.ColorJitterYIQ(0.4, 0.4, 0.4, 0.2, p=0.8),
    "Compose": lambda: A.Compose([A.HorizontalFlip(), A.Rotate(20), A.Brightness(0.2), A.Contrast(0.2)]),
    "Contrast": lambda: A.Contrast(0.4),
    "CutMix": lambda: A.CutMix(p=0.8),
    "Embed": lambda: A.Embed((40, 60), x=(0, 1), y=(0, 1), fill=0.25),
    "Embed alpha": lambda: A.Embed(24, x=(0, 1), y=(0, 1), alpha=True),
    "Equalize": lambda: A.Equalize(),
    "GaussianBlur": lambda: A.GaussianBlur(9, p=0.5),
    "Grayscale": lambda: A.Grayscale(3),
    "HorizontalFlip": lambda: A.HorizontalFlip(),
    "Invert": lambda: A.Invert(),
    "JEPAMask": lambda: A.JEPAMask(14),
    "LMSToKonio": lambda: A.Compose([A.SRGBToLMS(), A.LMSToKonio()]),
    "LMSToMagno": lambda: A.Compose([A.SRGBToLMS(), A.LMSToMagno()]),
    "LMSToParvo": lambda: A.Compose([A.SRGBToLMS(), A.LMSToParvo()]),
    "Mixup": lambda: A.Mixup(p=0.8),
    "MixupOrCutMix": lambda: A.MixupOrCutMix(),
    "Normalize": lambda: A.Normalize(),
    "OneOf": lambda: A.OneOf([A.GaussianBlur(5), A.Invert(p=1), A.Rotate(45)], weights=[1, 2, 1]),
    "NormalizeLGN": lambda: A.Compose([A.RGBToLGN(), A.NormalizeLGN()]),
    "OpticalDistortion": lambda: A.OpticalDistortion((-0.5, 0.5)),
    "PatchMask": lambda: A.PatchMask((4, 6)),
    "PatchShuffle": lambda: A.PatchShuffle((2, 3, 4), p=0.8),
    "Posterize": lambda: A.Posterize((2, 6)),
    "RGBToLGN": lambda: A.RGBToLGN(),
    "RGBToMagno": lambda: A.RGBToMagno(),
    "RandAugment": lambda: A.RandAugment(),
    "RandomApply": lambda: A.RandomApply([A.Brightness(), A.GaussianBlur(5)], p=0.5),
    "RandomErasing": lambda: A.RandomErasing(value=(0.2, 0.4, 0.6)),
    "RandomErasing color": lambda: A.RandomErasing(fill="color"),
    "RandomErasing noise": lambda: A.RandomErasing((0.3, 0.6), fill="noise", p=0.9),
    "RandomGrayscale": lambda: A.RandomGrayscale(0.5),
    "Rotate": lambda: A.Rotate(45, p=0.5),
    "Rotate angles": lambda: A.Rotate(angles=(0, 90, 180, 270)),
    "RotateObject": lambda: A.RotateObject(p=0.8),
    "SRGBToLMS": lambda: A.SRGBToLMS(),
    "Saturation": lambda: A.Saturation(0.4),
    "Sharpness": lambda: A.Sharpness(0.9),
    "Solarize": lambda: A.Solarize((0.3, 0.7), p=0.5),
    "ToFloat": lambda: A.ToFloat(),
    "TrivialAugment": lambda: A.TrivialAugment(),
    "VerticalFlip": lambda: A.VerticalFlip(),
    "Zoom": lambda: A.Zoom((0.5, 1.5), p=0.8),
}

LGN = {"LMSToKonio", "LMSToMagno", "LMSToParvo", "NormalizeLGN", "RGBToLGN", "RGBToMagno"}
CHANGES_TYPE = {"Normalize", "SRGBToLMS", "ToFloat"} | LGN
CHANGES_SHAPE = {"Embed", "Embed alpha"} | LGN
LEAVES_RANGE = {"Normalize"} | LGN
MIXES = {"CutMix", "Mixup", "MixupOrCutMix"}
MASKS = {"BlockMask", "JEPAMask", "PatchMask"}


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


def run(transform: A.Transform, images: torch.Tensor, numbers: torch.Tensor, **options: object):
    """``(output, params)``; what needs labels or makes masks is asked for its pixels."""
    if transform.in_chains:
        return transform(images, numbers, return_params=True, **options)
    params = transform.sample(numbers, like=images, **options)
    return transform.apply(images, params), params


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The pictures are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
