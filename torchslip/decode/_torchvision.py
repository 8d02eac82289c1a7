"""The decoder that is always there: JPEG by torchvision, everything else by Pillow, resizing by torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from torchslip.decode._header import Header
from torchslip.decode._view import Placement

__all__ = ["TorchvisionDecoder", "jpeg_operator", "show_window", "write_view"]

# The kernel below `torchvision.transforms.v2.functional.resize(..., antialias=True)` on uint8. Called directly, it
# writes into the batch; through v2 it costs twice as much (0.36 against 0.17 ms for a crop to 224, 2026-11).
_resize = torch.ops.aten._upsample_bilinear2d_aa.out

_RGB = 3  # torchvision.io.ImageReadMode.RGB


@cache
def jpeg_operator() -> Callable[[torch.Tensor, int], torch.Tensor] | None:
    """The operator below `torchvision.io.decode_jpeg`, or None where this torchvision has none.

    From 0.29 on the function warns that a later release will drop it, and points to TorchCodec, which decodes no
    faster; the operator is the same in all releases since 0.17. Without it, Pillow decodes JPEG too.
    """
    try:
        import torchvision.io.image  # noqa: F401  (loads the operators)

        operator: Callable[[torch.Tensor, int], torch.Tensor] = torch.ops.image.decode_jpeg.default
    except (ImportError, AttributeError, RuntimeError):
        return None
    return operator


class TorchvisionDecoder:
    """Decodes whole pictures, then crops and resizes. See `Decoder`."""

    name = "torchvision"

    def decode(
        self,
        images: Sequence[bytes],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Sequence[torch.Tensor]],
    ) -> dict[int, Exception]:
        """See `Decoder.decode`."""
        geometry = [np.concatenate((place.box, place.resized, place.window), axis=1).tolist() for place in placements]
        failures: dict[int, Exception] = {}
        for row, (data, header) in enumerate(zip(images, headers, strict=True)):
            try:
                pixels = _decode_rgb(data, header)
                for boxes, view in zip(geometry, outputs, strict=True):
                    write_view(pixels, boxes[row], view[row])
            except Exception as error:  # whatever a damaged file makes the libraries raise is that sample's error
                failures[row] = error
        return failures


def _decode_rgb(data: bytes, header: Header) -> torch.Tensor:
    """The whole picture: uint8 ``[3, H, W]``, channels last in memory."""
    decode_jpeg = jpeg_operator()
    # Four components are CMYK or YCCK, which only Pillow converts as Pillow does.
    if decode_jpeg is not None and header.format == "jpeg" and header.components != 4:
        # A copy, because torch warns about memory that it could write to; 3 microseconds for 40 kB.
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
    else:
        pixels = _decode_with_pillow(data)
    if tuple(pixels.shape[1:]) != (header.height, header.width):
        raise ValueError(
            f"it decodes to {pixels.shape[1]}x{pixels.shape[2]} pixels, but its header says "
            f"{header.height}x{header.width}"
        )
    return pixels


def _decode_with_pillow(data: bytes) -> torch.Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        # Transparency is dropped by the conversion anyway; with it, Pillow warns about palettes.
        image.load()
        image.info.pop("transparency", None)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_view(pixels: torch.Tensor, geometry: Sequence[int], output: torch.Tensor) -> None:
    """Write one view of a picture.

    Args:
        pixels: uint8 ``[3, H, W]``, channels last in memory.
        geometry: Of a `Placement`: box, resized and window; eight numbers.
        output: uint8 ``[3, H, W]``.
    """
    top, left, height, width, resized_height, resized_width, window_top, window_left = geometry
    box = pixels[:, top : top + height, left : left + width]
    shown_height, shown_width = output.shape[1:]
    if (height, width) != (resized_height, resized_width):
        if (resized_height, resized_width, window_top, window_left) == (shown_height, shown_width, 0, 0):
            _resize(box[None], [resized_height, resized_width], False, None, None, out=output[None])
            return
        resized = output.new_empty((1, resized_height, resized_width, 3)).permute(0, 3, 1, 2)
        _resize(box[None], [resized_height, resized_width], False, None, None, out=resized)
        box = resized[0]
    if window_top == window_left == 0 and box.shape == output.shape:
        output.copy_(box)
        return
    show_window(box, window_top, window_left, output)


def show_window(box: torch.Tensor, top: int, left: int, output: torch.Tensor) -> None:
    """Copy the window of `box` that begins at (`top`, `left`), with a black border where it lies outside."""
    height, width = output.shape[1:]
    inside = box[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape != output.shape:
        output.zero_()
    above, before = max(-top, 0), max(-left, 0)
    output[:, above : above + inside.shape[1], before : before + inside.shape[2]] = inside
