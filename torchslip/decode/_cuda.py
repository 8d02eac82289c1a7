"""JPEG on a GPU: by DALI, which decodes regions, and by torchvision, which decodes whole pictures; both over nvJPEG."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from torchslip.decode._dali import GraphCache, refused_rows, takes
from torchslip.decode._dali_graph import Stages, restore_edges
from torchslip.decode._device import HostDecoder
from torchslip.decode._header import Header
from torchslip.decode._torchvision import TorchvisionDecoder, show_window
from torchslip.decode._view import Placement

__all__ = ["DaliCudaDecoder", "TorchvisionCudaDecoder"]

_RGB = 3  # torchvision.io.ImageReadMode.RGB
# nvJPEG reads the bit streams on the CPU where no hardware decoder takes them. Not measured: the machines of a GPU have
# cores to spare when their workers only ship bytes.
_DALI_THREADS = 4

_Outputs = Sequence[Sequence[torch.Tensor] | torch.Tensor]


class _CudaDecoder:
    """What both have in common: other formats and damaged files are decoded on the CPU.

    Args:
        device: The GPU.
    """

    name = ""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @abstractmethod
    def _run(
        self,
        rows: list[int],
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: _Outputs,
    ) -> None:
        """Decode these rows. Raises RuntimeError if one of them cannot be decoded."""

    def decode(
        self,
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: _Outputs,
    ) -> dict[int, Exception]:
        """See `DeviceDecoder.decode`."""
        taken = [row for row, each in enumerate(headers) if takes(each)]
        with torch.cuda.device(self._device):
            failed = refused_rows(lambda rows: self._run(rows, images, headers, placements, outputs), taken)
        rows = sorted((set(range(len(images))) - set(taken)) | set(failed))
        if not rows:
            return {}
        failures = HostDecoder(TorchvisionDecoder()).decode(
            [images[row] for row in rows],
            [headers[row] for row in rows],
            [place.rows(rows) for place in placements],
            [[view[row] for row in rows] for view in outputs],
        )
        return {rows[index]: error for index, error in failures.items()}


class DaliCudaDecoder(_CudaDecoder):
    """Decodes the region that the views need, and resizes, by DALI. See `DeviceDecoder`."""

    name = "dali"

    def _run(
        self,
        rows: list[int],
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: _Outputs,
    ) -> None:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        parts = [place.rows(rows) for place in placements]
        stages = [Stages.of(part) for part in parts]
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        arrays = [images[row].numpy() for row in rows]
        lists = _graphs.run(stages, arrays, parts, threads=_DALI_THREADS, device_id=index)
        stream = torch.cuda.current_stream(self._device)

        def pixels_of(picture: Any, *shape: int) -> torch.Tensor:
            pixels = torch.empty(shape, dtype=torch.uint8, device=self._device)
            feed_ndarray(picture, pixels, cuda_stream=stream)
            return pixels

        for part, stage, pictures, view in zip(parts, stages, lists, outputs, strict=True):
            if isinstance(view, torch.Tensor) and pictures.is_dense_tensor():
                height, width = part.size[0].tolist()
                stack = pixels_of(pictures.as_tensor(), len(rows), height, width, 3)
                if stage.resize:
                    restore_edges(stack, part, np.arange(len(rows)))
                if len(rows) == len(view):
                    view.copy_(stack.permute(0, 3, 1, 2))
                else:
                    view[torch.tensor(rows, device=self._device)] = stack.permute(0, 3, 1, 2)
                continue
            for number, row in enumerate(rows):
                height, width = part.size[number].tolist()
                pixels = pixels_of(pictures[number], height, width, 3)
                if stage.resize:
                    restore_edges(pixels[None], part, np.array([number]))
                view[row].copy_(pixels.permute(2, 0, 1))
        # DALI writes its memory again in the next run.
        stream.synchronize()


class TorchvisionCudaDecoder(_CudaDecoder):
    """Decodes whole pictures by torchvision, then crops and resizes by torch. See `DeviceDecoder`."""

    name = "torchvision"

    def _run(
        self,
        rows: list[int],
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: _Outputs,
    ) -> None:
        import torchvision.io.image  # noqa: F401  (loads the operators)

        # The operator below `torchvision.io.decode_jpeg`, which warns from 0.29 on.
        pictures = torch.ops.image.decode_jpegs_cuda([images[row] for row in rows], _RGB, self._device)
        for number, row in enumerate(rows):
            header, pixels = headers[row], pictures[number]
            if tuple(pixels.shape[1:]) != (header.height, header.width):
                raise RuntimeError(f"it decodes to {tuple(pixels.shape[1:])} pixels, its header says {header}")
            for place, view in zip(placements, outputs, strict=True):
                _write(pixels, place, row, view[row])


def _write(pixels: torch.Tensor, place: Placement, row: int, output: torch.Tensor) -> None:
    top, left, height, width = place.box[row].tolist()
    resized: tuple[int, int] = tuple(place.resized[row].tolist())
    box = pixels[:, top : top + height, left : left + width]
    if (height, width) != resized:
        # There is no kernel for uint8 on a GPU; torch converts to uint8 without rounding.
        floating = F.interpolate(box[None].float(), size=resized, mode="bilinear", antialias=True)
        box = floating[0].round_().clamp_(0, 255).to(torch.uint8)
    window_top, window_left = place.window[row].tolist()
    show_window(box, window_top, window_left, output)


_graphs = GraphCache()
