"""What is measured, and how each library does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.transforms import v2

from torchslip import augment as A

__all__ = ["CASES", "PEERS", "Case"]

PEERS = ("torchvision-sample", "torchvision-batch", "kornia")
MEAN, STD = A.IMAGENET_MEAN, A.IMAGENET_STD
BLUR = (0.1, 2.0)


@dataclass(frozen=True, slots=True)
class Case:
    """One transform or chain.

    Attributes:
        views: Name to size in pixels of what comes in; each image of the batch has all of them.
        ours: Makes torchslip's transform of a view.
        torchvision: Makes torchvision's, or None.
        kornia: Makes kornia's, which is called with floats, or None.
        dtype: What comes in. kornia takes floats only, so it is given bytes divided by 255 where others take bytes.
    """

    ours: Callable[[str], A.Transform]
    torchvision: Callable[[str], Callable[[Any], Any]] | None = None
    kornia: Callable[[str], Callable[[Any], Any]] | None = None
    views: tuple[tuple[str, int], ...] = (("image", 224),)
    dtype: torch.dtype = torch.float32


def _kornia(make: Callable[[Any], Any]) -> Callable[[str], Callable[[Any], Any]]:
    def build(_view: str) -> Callable[[Any], Any]:
        import kornia.augmentation

        return make(kornia.augmentation)

    return build


def _one(make: Callable[[], Any]) -> Callable[[str], Any]:
    return lambda _view: make()


def _ssl(view: str, *, jitter: tuple[float, float, float, float], blur: float, size: int, solarize: float = 0.0) -> Any:
    chain = [
        A.HorizontalFlip(),
        A.ColorJitter(*jitter, p=0.8),
        A.RandomGrayscale(0.2),
        A.GaussianBlur(size, BLUR, p=blur),
    ]
    return A.Compose([*chain, *([A.Solarize(p=solarize)] if solarize else []), A.Normalize()])


def _ssl_torchvision(
    view: str, *, jitter: tuple[float, float, float, float], blur: float, size: int, solarize: float = 0.0
) -> Any:
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*jitter)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(size, BLUR)], blur),
            *([v2.RandomSolarize(128, solarize)] if solarize else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def _ssl_kornia(
    view: str, *, jitter: tuple[float, float, float, float], blur: float, size: int, solarize: float = 0.0
) -> Any:
    import kornia.augmentation as K

    return torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*jitter, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((size, size), BLUR, p=blur),
        *([K.RandomSolarize(0.0, 0.0, p=solarize)] if solarize else []),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )


_SIMCLR: dict[str, Any] = {"jitter": (0.8, 0.8, 0.8, 0.2), "blur": 0.5, "size": 23}
_DINO_JITTER = (0.4, 0.4, 0.2, 0.1)
_DINO_VIEWS = (("global_0", 224), ("global_1", 224), *((f"local_{number}", 96) for number in range(8)))


def _dino(view: str) -> dict[str, Any]:
    if view == "global_0":
        return {"jitter": _DINO_JITTER, "blur": 1.0, "size": 23}
    if view == "global_1":
        return {"jitter": _DINO_JITTER, "blur": 0.1, "size": 23, "solarize": 0.2}
    return {"jitter": _DINO_JITTER, "blur": 0.5, "size": 9}


CASES: dict[str, Case] = {
    "simclr": Case(
        lambda view: _ssl(view, **_SIMCLR),
        lambda view: _ssl_torchvision(view, **_SIMCLR),
        lambda view: _ssl_kornia(view, **_SIMCLR),
        dtype=torch.uint8,
    ),
    "dino": Case(
        lambda view: _ssl(view, **_dino(view)),
        lambda view: _ssl_torchvision(view, **_dino(view)),
        lambda view: _ssl_kornia(view, **_dino(view)),
        views=_DINO_VIEWS,
        dtype=torch.uint8,
    ),
    "normalize_bytes": Case(
        _one(lambda: A.Normalize()),
        _one(lambda: v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])),
        _kornia(lambda k: k.Normalize(torch.tensor(MEAN), torch.tensor(STD))),
        dtype=torch.uint8,
    ),
    "horizontal_flip": Case(
        _one(lambda: A.HorizontalFlip()),
        _one(lambda: v2.RandomHorizontalFlip()),
        _kornia(lambda k: k.RandomHorizontalFlip(p=0.5)),
    ),
    "brightness": Case(
        _one(lambda: A.Brightness(0.4)),
        _one(lambda: v2.ColorJitter(brightness=0.4)),
        _kornia(lambda k: k.RandomBrightness((0.6, 1.4), p=1.0)),
    ),
    "contrast": Case(
        _one(lambda: A.Contrast(0.4)),
        _one(lambda: v2.ColorJitter(contrast=0.4)),
        _kornia(lambda k: k.ColorJitter(0.0, 0.4, 0.0, 0.0, p=1.0)),
    ),
    "color_jitter": Case(
        _one(lambda: A.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        _one(lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        _kornia(lambda k: k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0)),
    ),
    "color_jitter_yiq": Case(_one(lambda: A.ColorJitterYIQ(0.4, 0.4, 0.4, 0.1))),
    "grayscale": Case(
        _one(lambda: A.RandomGrayscale(0.2)),
        _one(lambda: v2.RandomGrayscale(0.2)),
        _kornia(lambda k: k.RandomGrayscale(p=0.2)),
    ),
    "gaussian_blur": Case(
        _one(lambda: A.GaussianBlur(23, BLUR)),
        _one(lambda: v2.GaussianBlur(23, BLUR)),
        _kornia(lambda k: k.RandomGaussianBlur((23, 23), BLUR, p=1.0)),
    ),
    "solarize": Case(
        _one(lambda: A.Solarize(p=0.5)),
        _one(lambda: v2.RandomSolarize(0.5, 0.5)),
        _kornia(lambda k: k.RandomSolarize(0.0, 0.0, p=0.5)),
    ),
    "posterize": Case(
        _one(lambda: A.Posterize(4)),
        _one(lambda: v2.RandomPosterize(4)),
        _kornia(lambda k: k.RandomPosterize(4, p=0.5)),
    ),
    "equalize": Case(
        _one(lambda: A.Equalize()), _one(lambda: v2.RandomEqualize()), _kornia(lambda k: k.RandomEqualize(p=0.5))
    ),
    "sharpness": Case(
        _one(lambda: A.Sharpness(1.0)),
        _one(lambda: v2.RandomAdjustSharpness(2)),
        _kornia(lambda k: k.RandomSharpness(1.0, p=0.5)),
    ),
    "rotate": Case(
        _one(lambda: A.Rotate(45)),
        _one(lambda: v2.RandomRotation(45, v2.InterpolationMode.BILINEAR)),
        _kornia(lambda k: k.RandomRotation(45.0, p=1.0)),
    ),
    "affine": Case(
        _one(lambda: A.Affine(30, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=10)),
        _one(lambda: v2.RandomAffine(30, (0.1, 0.1), (0.8, 1.2), 10, v2.InterpolationMode.BILINEAR)),
        _kornia(lambda k: k.RandomAffine(30.0, (0.1, 0.1), (0.8, 1.2), 10.0, p=1.0)),
    ),
    "erasing": Case(
        _one(lambda: A.RandomErasing()),
        _one(lambda: v2.RandomErasing(0.5)),
        _kornia(lambda k: k.RandomErasing(p=0.5)),
    ),
    "erasing_noise": Case(_one(lambda: A.RandomErasing(fill="noise"))),
    "patch_shuffle": Case(_one(lambda: A.PatchShuffle(4, p=1))),
    "rand_augment": Case(_one(lambda: A.RandAugment()), _one(lambda: v2.RandAugment()), dtype=torch.uint8),
    "trivial_augment": Case(_one(lambda: A.TrivialAugment()), _one(lambda: v2.TrivialAugmentWide()), dtype=torch.uint8),
    "augmix": Case(_one(lambda: A.AugMix()), _one(lambda: v2.AugMix()), dtype=torch.uint8),
    "background_noise": Case(_one(lambda: A.BackgroundBlend(fade=0.4))),
    "lgn": Case(_one(lambda: A.RGBToLGN())),
}
"""Chains begin with bytes and end with normalised floats; single transforms keep what they are given."""
