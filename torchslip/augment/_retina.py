"""From sRGB to the channels of the retina and the lateral geniculate nucleus (LGN).

Cone responses (LMS) come from linear light through the CAT02 matrix of CIECAM02 (Moroney et al., "The CIECAM02 color
appearance model", 2002), scaled so that white is (1, 1, 1). Cells have a centre and a surround of Gaussian form, whose
difference they respond to (Rodieck 1965):

==========  ========  ==================================================
cells       channels  centre minus surround
==========  ========  ==================================================
parvo       2         L minus M; M minus L: red against green
magno       2         (L + M) / 2 against itself: light (on), dark (off)
konio       1         S minus (L + M) / 2: blue against yellow
==========  ========  ==================================================
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch

from torchslip.augment._blur import blurred, gaussian
from torchslip.augment._color_linear import check_rgb, map_colors
from torchslip.augment._philox import constant
from torchslip.augment._transform import Params, Pictures, Transform, Tree

__all__ = ["LMSToKonio", "LMSToMagno", "LMSToParvo", "RGBToLGN", "RGBToMagno", "SRGBToLMS"]

Rectify = Literal["none", "relu"]

_XYZ_FROM_RGB = np.array(  # IEC 61966-2-1, white point D65
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_CAT02 = np.array([[0.7328, 0.4296, -0.1624], [-0.7036, 1.6975, 0.0061], [0.0030, 0.0136, 0.9834]])
_LMS_FROM_RGB = tuple(map(tuple, (lambda m: m / m.sum(1, keepdims=True))(_CAT02 @ _XYZ_FROM_RGB).tolist()))


class _Retinal(Transform):
    """Floating results of any number of channels, also from bytes."""

    def _step(self, pictures: Pictures, params: Tree) -> Pictures:
        images, bound, dtype = pictures.floating()
        dtype = dtype if dtype.is_floating_point else torch.float32
        scaled = images * (1 / bound) if bound != 1 else images
        return Pictures(self.pixels(scaled, params, 1.0).to(dtype), 1.0, dtype)


class SRGBToLMS(_Retinal):
    """Responses of the long, middle and short wavelength cones, from 0 for black to 1 for white."""

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        linear = torch.where(images <= 0.04045, images / 12.92, ((images.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
        matrix = constant(_LMS_FROM_RGB, images.device).expand(len(images), 3, 3)
        return map_colors(linear, matrix, images.new_zeros(len(images), 3))


class _CenterSurround(_Retinal):
    """Cells that respond to the difference of two Gaussians."""

    def __init__(self, sigma_center: float, sigma_surround: float, rectify: Rectify) -> None:
        super().__init__()
        if rectify not in get_args(Rectify):
            raise ValueError(f"rectify must be one of {', '.join(get_args(Rectify))}; got {rectify!r}.")
        if not 0 < sigma_center <= sigma_surround:
            raise ValueError(
                f"The centre must be above 0 and no wider than the surround; got {sigma_center} and {sigma_surround}."
            )
        self.sigma_center, self.sigma_surround, self.rectify = sigma_center, sigma_surround, rectify

    def _respond(self, center: torch.Tensor, surround: torch.Tensor) -> torch.Tensor:
        response = _smooth(center, self.sigma_center) - _smooth(surround, self.sigma_surround)
        return response.relu() if self.rectify == "relu" else response

    def extra_repr(self) -> str:
        return f"sigma_center={self.sigma_center}, sigma_surround={self.sigma_surround}, rectify={self.rectify!r}"


class LMSToParvo(_CenterSurround):
    """Parvocellular responses to LMS: 2 channels, L against M and M against L.

    Args:
        sigma_center: Standard deviation of the centre, in pixels.
        sigma_surround: Standard deviation of the surround, in pixels.
        rectify: ``relu`` keeps what is above 0, ``none`` keeps everything.
    """

    def __init__(self, sigma_center: float = 1.5, sigma_surround: float = 5.0, *, rectify: Rectify = "none") -> None:
        super().__init__(sigma_center, sigma_surround, rectify)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        return self._respond(images[:, :2], images[:, :2].flip(1))


class LMSToMagno(_CenterSurround):
    """Magnocellular responses to LMS: 2 channels, on and off.

    Args:
        sigma_center: Standard deviation of the centre, in pixels.
        sigma_surround: Standard deviation of the surround, in pixels.
        rectify: ``relu`` keeps what is above 0, ``none`` keeps everything.
    """

    def __init__(self, sigma_center: float = 2.5, sigma_surround: float = 5.0, *, rectify: Rectify = "none") -> None:
        super().__init__(sigma_center, sigma_surround, rectify)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        light = images[:, :2].mean(1, keepdim=True)
        on = _smooth(light, self.sigma_center) - _smooth(light, self.sigma_surround)
        both = torch.cat((on, -on), 1)
        return both.relu() if self.rectify == "relu" else both


class LMSToKonio(_CenterSurround):
    """Koniocellular responses to LMS: 1 channel, S against L and M.

    Args:
        sigma_center: Standard deviation of the centre, in pixels.
        sigma_surround: Standard deviation of the surround, in pixels.
        rectify: ``relu`` keeps what is above 0, ``none`` keeps everything.
    """

    def __init__(self, sigma_center: float = 2.5, sigma_surround: float = 6.5, *, rectify: Rectify = "none") -> None:
        super().__init__(sigma_center, sigma_surround, rectify)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        check_rgb(images, self)
        return self._respond(images[:, 2:], images[:, :2].mean(1, keepdim=True))


class RGBToLGN(_Retinal):
    """The five channels of the LGN from sRGB: parvo (2), magno (2), konio (1).

    Args:
        parvo: Standard deviations of centre and surround, in pixels.
        magno: Likewise.
        konio: Likewise.
        rectify: ``relu`` keeps what is above 0, ``none`` keeps everything.
    """

    def __init__(
        self,
        parvo: tuple[float, float] = (1.5, 5.0),
        magno: tuple[float, float] = (2.5, 5.0),
        konio: tuple[float, float] = (2.5, 6.5),
        *,
        rectify: Rectify = "relu",
    ) -> None:
        super().__init__()
        self.to_lms = SRGBToLMS()
        self.cells = torch.nn.ModuleList(
            (
                LMSToParvo(*parvo, rectify=rectify),
                LMSToMagno(*magno, rectify=rectify),
                LMSToKonio(*konio, rectify=rectify),
            )
        )

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        lms = self.to_lms.pixels(images, params, bound)
        return torch.cat([each.pixels(lms, params, bound) for each in self.cells if isinstance(each, Transform)], 1)


class RGBToMagno(_Retinal):
    """The two magnocellular channels, on and off, from sRGB.

    Args:
        sigma_center: Standard deviation of the centre, in pixels.
        sigma_surround: Standard deviation of the surround, in pixels.
        rectify: ``relu`` keeps what is above 0, ``none`` keeps everything.
    """

    def __init__(self, sigma_center: float = 2.5, sigma_surround: float = 5.0, *, rectify: Rectify = "relu") -> None:
        super().__init__()
        self.to_lms, self.cells = SRGBToLMS(), LMSToMagno(sigma_center, sigma_surround, rectify=rectify)

    def pixels(self, images: torch.Tensor, params: Params, bound: float) -> torch.Tensor:
        return self.cells.pixels(self.to_lms.pixels(images, params, bound), params, bound)


def _smooth(images: torch.Tensor, sigma: float) -> torch.Tensor:
    kernel = gaussian(constant((sigma,), images.device).to(images.dtype), 2 * math.ceil(3 * sigma) + 1)
    return blurred(images, kernel.expand(len(images), -1))
