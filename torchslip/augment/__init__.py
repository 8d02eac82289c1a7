"""Pixels to pixels: batch transforms whose parameters belong to the image, drawn and replayed as data."""

from torchslip.augment._blur import GaussianBlur
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
from torchslip.augment._geometry import Affine, HorizontalFlip, Rotate, RotateObject, VerticalFlip, Zoom
from torchslip.augment._multi_view import MultiView
from torchslip.augment._philox import uniform
from torchslip.augment._transform import Params, Transform

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Affine",
    "Brightness",
    "ColorJitter",
    "ColorJitterYIQ",
    "Compose",
    "Contrast",
    "GaussianBlur",
    "Grayscale",
    "HorizontalFlip",
    "Invert",
    "MultiView",
    "Normalize",
    "NormalizeLGN",
    "OneOf",
    "Params",
    "RandomApply",
    "RandomGrayscale",
    "Rotate",
    "RotateObject",
    "Saturation",
    "ToFloat",
    "Transform",
    "VerticalFlip",
    "Zoom",
    "uniform",
]
