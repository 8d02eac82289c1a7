"""Pixels to pixels: batch transforms whose parameters belong to the image, drawn and replayed as data."""

from torchslip.augment._bank import OPERATIONS
from torchslip.augment._blur import GaussianBlur
from torchslip.augment._canvas import BackgroundBlend, Embed, power_law_noise
from torchslip.augment._color_jitter import ColorJitter
from torchslip.augment._color_linear import (
    Brightness,
    ColorJitterYIQ,
    Contrast,
    Grayscale,
    Invert,
    RandomGrayscale,
    Saturation,
)
from torchslip.augment._compose import Compose, OneOf, RandomApply
from torchslip.augment._convert import IMAGENET_MEAN, IMAGENET_STD, Normalize, NormalizeLGN, ToFloat
from torchslip.augment._distortion import CircularMask, OpticalDistortion
from torchslip.augment._geometry import Affine, HorizontalFlip, Rotate, RotateObject, VerticalFlip, Zoom
from torchslip.augment._masks import BlockMask, JEPAMask, PatchMask
from torchslip.augment._mixing import CutMix, Mixup, MixupOrCutMix
from torchslip.augment._multi_view import MultiView
from torchslip.augment._patches import PatchShuffle, RandomErasing
from torchslip.augment._philox import uniform
from torchslip.augment._policies import AugMix, RandAugment, TrivialAugment
from torchslip.augment._retina import LMSToKonio, LMSToMagno, LMSToParvo, RGBToLGN, RGBToMagno, SRGBToLMS
from torchslip.augment._tone import AutoContrast, Equalize, Posterize, Sharpness, Solarize
from torchslip.augment._transform import Params, Transform
from torchslip.augment._yuv import yuv_to_rgb

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OPERATIONS",
    "Affine",
    "AugMix",
    "AutoContrast",
    "BackgroundBlend",
    "BlockMask",
    "Brightness",
    "CircularMask",
    "ColorJitter",
    "ColorJitterYIQ",
    "Compose",
    "Contrast",
    "CutMix",
    "Embed",
    "Equalize",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Invert",
    "JEPAMask",
    "LMSToKonio",
    "LMSToMagno",
    "LMSToParvo",
    "Mixup",
    "MixupOrCutMix",
    "MultiView",
    "Normalize",
    "NormalizeLGN",
    "OneOf",
    "OpticalDistortion",
    "Params",
    "PatchMask",
    "PatchShuffle",
    "Posterize",
    "RGBToLGN",
    "RGBToMagno",
    "RandAugment",
    "RandomApply",
    "RandomErasing",
    "RandomGrayscale",
    "Rotate",
    "RotateObject",
    "SRGBToLMS",
    "Saturation",
    "Sharpness",
    "Solarize",
    "ToFloat",
    "Transform",
    "TrivialAugment",
    "VerticalFlip",
    "Zoom",
    "power_law_noise",
    "uniform",
    "yuv_to_rgb",
]
