"""The decoder that is always there: JPEG by torchvision, everything else by Pillow, resizing by torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch

from torchslip.decode._color import halve_chroma, to_yuv
from torchslip.decode._decoder import Output, Outputs
from torchslip.decode._header import Encoded, Header
from torchslip.decode._planes import decode_planes
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
        images: Sequence[Encoded],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Outputs],
        *,
        output: Output = "rgb",
    ) -> dict[int, Exception]:
        """See `Decoder.decode`."""
        geometry = [np.concatenate((place.box, place.resized, place.window), axis=1).tolist() for place in placements]
        failures: dict[int, Exception] = {}
        for row, (data, header) in enumerate(zip(images, headers, strict=True)):
            try:
                pixels = _decode(data, header, rgb=output == "rgb")
                for number, boxes in enumerate(geometry):
                    if output == "planes":
                        _write_planes(pixels, boxes[row], outputs[number][row], outputs[len(geometry) + number][row])
                    else:
                        black = (0, 0) if output == "rgb" else (0, 128)
                        write_view(pixels, boxes[row], outputs[number][row], black=black)
            except Exception as error:  # whatever a damaged file makes the libraries raise is that sample's error
                failures[row] = error
        return failures


def _decode(data: Encoded, header: Header, *, rgb: bool) -> torch.Tensor:
    """The whole picture: uint8 ``[3, H, W]``, channels last in memory."""
    decode_jpeg = jpeg_operator()
    if header.format == "yuv420":
        pixels = decode_planes(data, rgb=rgb)
    # Four components are CMYK or YCCK, which only Pillow converts as Pillow does.
    elif decode_jpeg is not None and header.format == "jpeg" and header.components != 4:
        # A copy, because torch warns about memory that it could write to; 3 microseconds for 40 kB.
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), _RGB)
    else:
        pixels = _decode_with_pillow(data)
    if tuple(pixels.shape[1:]) != (header.height, header.width):
        raise ValueError(
            f"it decodes to {pixels.shape[1]}x{pixels.shape[2]} pixels, but its header says "
            f"{header.height}x{header.width}"
        )
    if not rgb and header.format != "yuv420":
        pixels = to_yuv(pixels)
    # torch resizes three channels only as pixels of three bytes.
    return pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _decode_with_pillow(data: Encoded) -> torch.Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        # Transparency is dropped by the conversion anyway; with it, Pillow warns about palettes.
        image.load()
        image.info.pop("transparency", None)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_view(
    pixels: torch.Tensor, geometry: Sequence[int], output: torch.Tensor, *, black: tuple[int, int] = (0, 0)
) -> None:
    """Write one view of a picture.

    Args:
        pixels: uint8 ``[3, H, W]``, channels last in memory.
        geometry: Of a `Placement`: box, resized and window; eight numbers.
        output: uint8 ``[3, H, W]``.
        black: The value of the first channel, and of the others, where the view shows nothing.
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
    show_window(box, window_top, window_left, output, black)


def show_window(box: torch.Tensor, top: int, left: int, output: torch.Tensor, black: tuple[int, int] = (0, 0)) -> None:
    """Copy the window of `box` that begins at (`top`, `left`), with a black border where it lies outside."""
    height, width = output.shape[1:]
    inside = box[:, max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape != output.shape:
        output[0] = black[0]
        output[1:] = black[1]
    above, before = max(-top, 0), max(-left, 0)
    output[:, above : above + inside.shape[1], before : before + inside.shape[2]] = inside


def _write_planes(pixels: torch.Tensor, geometry: list[int], luma: torch.Tensor, chroma: torch.Tensor) -> None:
    height, width = luma.shape[1:]
    resized_height, resized_width, top, left = geometry[4:]
    whole = luma.new_empty((height, width, 3)).permute(2, 0, 1)
    write_view(pixels, geometry, whole, black=(0, 128))
    luma.copy_(whole[:1])
    chroma.fill_(128)
    # What the view shows, from an even row and column on: pixels of the border are in no mean.
    above, below = max(-top, 0), min(resized_height - top, height)
    before, behind = max(-left, 0), min(resized_width - left, width)
    if above >= below or before >= behind:
        return
    inside = whole[1:, above:below, before:behind]
    if above % 2:
        inside = torch.cat((inside[:, :1], inside), dim=1)
    if before % 2:
        inside = torch.cat((inside[:, :, :1], inside), dim=2)
    halved = halve_chroma(inside)
    rows, columns = halved.shape[1:]
    chroma[:, above // 2 : above // 2 + rows, before // 2 : before // 2 + columns] = halved
