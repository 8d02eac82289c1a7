"""Augmentation policies: RandAugment, TrivialAugment, AugMix, with torchvision's operations and ranges."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchslip.augment._bank import OPERATIONS, apply_operations
from torchslip.augment._gamma import NUMBERS_PER_GAMMA, dirichlet
from torchslip.augment._geometry import Interpolation
from torchslip.augment._philox import constant
from torchslip.augment._tone import from_bytes, to_bytes
from torchslip.augment._transform import Params, Transform, per_image

__all__ = ["AugMix", "RandAugment", "TrivialAugment"]

_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
_DEPTH = 3


class _Policy(Transform):
    """Works on bytes; floats are taken as 256 levels, since the operations are defined on these."""

    keeps_bytes = True

    def __init__(
        self, space: dict[str, Sequence[float]], interpolation: Interpolation, *, p: float, seed: int | None
    ) -> None:
        super().__init__(p=p, seed=seed)
        self.interpolation = interpolation
        self._kinds = tuple(OPERATIONS.index(name) for name in space)
        self._magnitudes = tuple(tuple(map(float, values)) for values in space.values())
        self._signed = tuple(float(name in _SIGNED) for name in space)

    def choose(
        self, kind: torch.Tensor, sign: torch.Tensor, level: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Operations and their signed magnitudes from numbers in [0, 1) and levels of magnitude."""
        index = (kind * len(self._kinds)).to(torch.int64)
        magnitude = constant(self._magnitudes, kind.device)[index, level]
        negative = constant(self._signed, kind.device)[index] * (sign < 0.5)
        return constant(self._kinds, kind.device, torch.int64)[index], magnitude * (1 - 2 * negative)

    def walk(self, levels: torch.Tensor, operation: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
        """One operation after the other: ``[B, n]`` each."""
        for own, strength in zip(operation.unbind(1), magnitude.unbind(1), strict=True):
            levels = apply_operations(levels, own, strength, interpolation=self.interpolation)
        return levels

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return from_bytes(self.mix(to_bytes(images, bound), params), images, bound)

    def mix(self, levels: torch.Tensor, params: Params) -> torch.Tensor:
        return self.walk(levels, params["operation"], params["magnitude"])


class RandAugment(_Policy):
    """Several random operations of one strength (Cubuk et al., CVPR workshops 2020): torchvision's ``RandAugment``.

    Args:
        num_ops: How many operations, one after the other.
        magnitude: Their strength, from 0 to `bins` - 1.
        bins: Levels of strength.
        interpolation: Of shear, shift and turn.
        p: See `Transform`.
        seed: See `Transform`.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        *,
        bins: int = 31,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(_space(bins, 0.3, 150 / 331, 30, 0.9, (8, 4)), interpolation, p=p, seed=seed)
        if num_ops < 1 or not 0 <= magnitude < bins or bins < 2:
            raise ValueError(
                f"num_ops must be from 1, and magnitude from 0 to bins - 1; got {num_ops} and {magnitude} of {bins}."
            )
        self.num_ops, self.magnitude, self.numbers = num_ops, magnitude, 2 * num_ops

    def draw(self, numbers: torch.Tensor) -> Params:
        kind, sign = torch.split(numbers, self.num_ops, 1)
        operation, magnitude = self.choose(kind, sign, self.magnitude)
        return {"operation": operation, "magnitude": magnitude}

    def extra_repr(self) -> str:
        return f"num_ops={self.num_ops}, magnitude={self.magnitude}"


class TrivialAugment(_Policy):
    """One random operation of random strength (Müller and Hutter, ICCV 2021): ``TrivialAugmentWide``.

    Shifts are up to 32 of 224 pixels, in proportion for other sizes, where torchvision's are 32 pixels in any.

    Args:
        bins: Levels of strength.
        interpolation: Of shear, shift and turn.
        p: See `Transform`.
        seed: See `Transform`.
    """

    numbers = 3

    def __init__(
        self,
        *,
        bins: int = 31,
        interpolation: Interpolation = "nearest",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(_space(bins, 0.99, 32 / 224, 135, 0.99, (8, 2)), interpolation, p=p, seed=seed)
        self.bins = bins

    def draw(self, numbers: torch.Tensor) -> Params:
        kind, sign, level = torch.split(numbers, 1, 1)
        operation, magnitude = self.choose(kind, sign, (level * self.bins).to(torch.int64))
        return {"operation": operation, "magnitude": magnitude}


class AugMix(_Policy):
    """A random mixture of the image and of chains of operations (Hendrycks et al., ICLR 2020): ``AugMix``.

    Args:
        severity: The largest strength, from 1 to 10.
        width: How many chains.
        depth: Operations of each chain; None draws 1 to 3.
        alpha: Of the Dirichlet and beta distributions of the weights.
        all_ops: Use brightness, contrast, colour and sharpness too, which the paper leaves out.
        interpolation: Of shear, shift and turn.
        p: See `Transform`.
        seed: See `Transform`.
    """

    def __init__(
        self,
        severity: int = 3,
        *,
        width: int = 3,
        depth: int | None = None,
        alpha: float = 1.0,
        all_ops: bool = True,
        interpolation: Interpolation = "bilinear",
        p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        space = _space(10, 0.3, 1 / 3, 30, 0.9, (4, 0))
        left_out = ("Identity",) if all_ops else ("Identity", "Brightness", "Contrast", "Color", "Sharpness")
        kept = {name: values for name, values in space.items() if name not in left_out}
        super().__init__(kept, interpolation, p=p, seed=seed)
        if not 1 <= severity <= 10 or width < 1 or (depth is not None and depth < 1) or alpha <= 0:
            raise ValueError(
                f"severity must be from 1 to 10, width and depth from 1, alpha above 0; got {severity}, {width}, "
                f"{depth}, {alpha}."
            )
        self.severity, self.width, self.depth, self.alpha = severity, width, depth, alpha
        self.numbers = width * (1 + 3 * (depth or _DEPTH)) + (2 + width) * NUMBERS_PER_GAMMA

    def draw(self, numbers: torch.Tensor) -> Params:
        steps = self.width * (self.depth or _DEPTH)
        length, kind, sign, level, gamma = torch.split(
            numbers, [self.width, steps, steps, steps, (2 + self.width) * NUMBERS_PER_GAMMA], 1
        )
        operation, magnitude = self.choose(kind, sign, (level * self.severity).to(torch.int64))
        operation = operation.view(-1, self.width, steps // self.width)
        if self.depth is None:
            beyond = torch.arange(_DEPTH, device=numbers.device) > (length * _DEPTH).floor()[..., None]
            operation = torch.where(beyond, torch.zeros_like(operation), operation)
        share = dirichlet(gamma[:, : 2 * NUMBERS_PER_GAMMA], self.alpha)
        weights = dirichlet(gamma[:, 2 * NUMBERS_PER_GAMMA :], self.alpha) * share[:, 1:]
        return {
            "operation": operation,
            "magnitude": magnitude.view(-1, self.width, steps // self.width),
            "weight": torch.cat((share[:, :1], weights), 1),
        }

    def mix(self, levels: torch.Tensor, params: Params) -> torch.Tensor:
        mixed = levels * per_image(params["weight"][:, 0], levels)
        for chain in range(self.width):
            walked = self.walk(levels, params["operation"][:, chain], params["magnitude"][:, chain])
            mixed = mixed + walked * per_image(params["weight"][:, chain + 1], levels)
        return mixed.clamp(0, 255).to(torch.uint8)

    def extra_repr(self) -> str:
        return f"severity={self.severity}, width={self.width}, depth={self.depth}"


def _space(
    bins: int, shear: float, shift: float, degrees: float, factor: float, bits: tuple[int, int]
) -> dict[str, Sequence[float]]:
    """Name to magnitudes, weakest first."""
    if bins < 2:
        raise ValueError(f"bins must be at least 2; got {bins}.")
    grow = [level / (bins - 1) for level in range(bins)]
    most = {"ShearX": shear, "ShearY": shear, "TranslateX": shift, "TranslateY": shift, "Rotate": degrees}
    most |= dict.fromkeys(("Brightness", "Contrast", "Color", "Sharpness"), factor)
    space: dict[str, Sequence[float]] = {name: [0.0] * bins for name in ("Identity", "AutoContrast", "Equalize")}
    space |= {name: [each * largest for each in grow] for name, largest in most.items()}
    space["Posterize"] = [round(bits[0] - each * (bits[0] - bits[1])) for each in grow]
    space["Solarize"] = [1 - each for each in grow]
    return space
