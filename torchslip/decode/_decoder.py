"""The seam between geometry and pixels: encoded pictures and placements in, uint8 pictures out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from torchslip.decode._header import Encoded, Header
from torchslip.decode._view import Placement

__all__ = ["BACKENDS", "Backend", "Decoder", "Output", "Outputs", "backends", "make_decoder"]

Output = Literal["rgb", "yuv", "planes"]
"""``rgb``; ``yuv``: Y, Cb and Cr at full size; ``planes``: Y, and apart from it Cb and Cr of half the size."""

Outputs = torch.Tensor | Sequence[torch.Tensor]
"""Where the pictures of a view go: a tensor for each, or one for all of them."""


@runtime_checkable
class Decoder(Protocol):
    """Decodes pictures into tensors of the caller. Stateless between calls, picklable, usable from any thread.

    Pixel contract: the outputs are those of ``PIL.Image.convert("RGB")``, cropped and resized by torchvision v2's
    antialiased bilinear `resize`; on photographs the mean difference is at most 1 and the largest at most 8, or 8 and
    64 (2 in the mean over many pictures) where the crop is at least 2.5 times as large as the output and the decoder
    makes use of that.
    """

    @property
    def name(self) -> str:
        """What users pass as ``decoder=``."""

    def decode(
        self,
        images: Sequence[Encoded],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Outputs],
        *,
        output: Output = "rgb",
    ) -> dict[int, Exception]:
        """Decode every image once and write every view of it.

        Args:
            images: B encoded pictures.
            headers: Their headers.
            placements: One for each view, with B rows.
            outputs: For each view, B uint8 tensors ``[3, H, W]`` of the placement's sizes, which are written; or one
                ``[B, 3, H, W]``. For ``planes``, B of ``[1, H, W]`` for each view, and behind them, for each view
                again, B of ``[2, ceil(H / 2), ceil(W / 2)]``: the mean of each 2 x 2 pixels, of those that the view
                shows.
            output: The colours, see `Output`: those of JFIF, see `torchslip.augment.yuv_to_rgb`. Borders are black.

        Returns:
            The row of each picture that could not be decoded, and why. The outputs of these rows are undefined.
        """


@dataclass(frozen=True, slots=True)
class Backend:
    """A decoder that can be chosen by name.

    Attributes:
        name: What users pass as ``decoder=``.
        available: Whether it can be used here.
        why_not: If not, or not at full speed: the reason and the remedy; else empty.
        capabilities: Beyond decoding whole pictures on the CPU: ``region``, ``scale``, ``yuv``, ``device`` (on a
            GPU, see `DeviceDecoder`).
    """

    name: str
    available: bool
    why_not: str = ""
    capabilities: tuple[str, ...] = ()


def _turbo() -> Decoder:
    from torchslip.decode._turbo import TurboDecoder

    return TurboDecoder()


def _turbo_status() -> Backend:
    from torchslip.decode._turbo import why_no_kernel

    reason = why_no_kernel()
    return Backend("turbo", not reason, reason, ("region", "scale", "yuv"))


def _torchvision() -> Decoder:
    from torchslip.decode._torchvision import TorchvisionDecoder

    return TorchvisionDecoder()


def _torchvision_status() -> Backend:
    from torchslip.decode._torchvision import jpeg_operator

    if jpeg_operator() is None:
        return Backend("torchvision", True, "This torchvision decodes no JPEG; Pillow does it, at half the speed.")
    return Backend("torchvision", True, capabilities=("device",))


def _dali() -> Decoder:
    from torchslip.decode._dali import DaliDecoder

    return DaliDecoder()


def _dali_status() -> Backend:
    from torchslip.decode._dali_graph import why_no_dali

    reason = why_no_dali()
    return Backend("dali", not reason, reason, ("region", "device"))


BACKENDS: dict[str, tuple[Callable[[], Decoder], Callable[[], Backend]]] = {
    "turbo": (_turbo, _turbo_status),
    "torchvision": (_torchvision, _torchvision_status),
    "dali": (_dali, _dali_status),
}
"""Name to (how to make the decoder, how to tell whether it can be used).

``auto`` takes the first that can be used; as torchvision always can, those behind it are used by name only.
"""


def backends() -> list[Backend]:
    """Every decoder backend, and whether it can be used here."""
    return [status() for _, status in BACKENDS.values()]


def make_decoder(name: str = "auto") -> Decoder:
    """The decoder of that name; ``auto`` takes the first that is available.

    Raises:
        ValueError: If there is no such decoder.
        RuntimeError: If it cannot be used here; the text says why and what to do.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"decoder must be one of auto, {', '.join(BACKENDS)}; got {name!r}.")
    reasons = []
    for each in BACKENDS if name == "auto" else [name]:
        make, status = BACKENDS[each]
        backend = status()
        if backend.available:
            return make()
        reasons.append(f"{each}: {backend.why_not}")
    raise RuntimeError("No decoder can be used. " + " ".join(reasons))
