"""Decoding where the pictures are wanted: on a GPU, in the main process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from torchslip.decode._dali_graph import why_no_dali
from torchslip.decode._decoder import BACKENDS, Decoder, make_decoder
from torchslip.decode._header import Header
from torchslip.decode._view import Placement

__all__ = ["DeviceDecoder", "device_backend", "make_device_decoder"]


@runtime_checkable
class DeviceDecoder(Protocol):
    """Decodes encoded pictures from host memory into tensors on a device, on the current stream.

    Lives in the process that uses the device, which is never a forked worker. What it cannot decode it gives to a
    decoder on the CPU, so it accepts the files that those accept.
    """

    @property
    def name(self) -> str:
        """What users pass to datasets as ``decoder=``."""

    def decode(
        self,
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Sequence[torch.Tensor] | torch.Tensor],
    ) -> dict[int, Exception]:
        """Decode every image once and write every view of it.

        Args:
            images: B encoded pictures, uint8 ``[bytes]`` in host memory.
            headers: Their headers.
            placements: One for each view, with B rows.
            outputs: For each view, uint8 ``[B, 3, H, W]`` on the device, or B tensors ``[3, H, W]``; written.

        Returns:
            The row of each picture that could not be decoded, and why.
        """


def device_backend(name: str, device: torch.device) -> str:
    """The backend that decodes for `device` where a dataset has ``decoder=name``.

    Raises:
        ValueError: If that one does not decode there.
        RuntimeError: If it cannot be used here; the text says why and what to do.
    """
    if device.type != "cuda":
        return make_decoder(name).name
    if name == "auto":
        return "torchvision" if why_no_dali() else "dali"
    if name not in BACKENDS or name == "turbo":
        raise ValueError(
            f"decode='device' on {device} needs a decoder that works there: decoder='auto', 'dali' or 'torchvision' in "
            f"the dataset; got {name!r}."
        )
    if name == "dali" and (reason := why_no_dali()):
        raise RuntimeError(f"decode='device' cannot use dali. {reason}")
    return name


def make_device_decoder(name: str, device: torch.device) -> DeviceDecoder:
    """A decoder for `device`, see `device_backend`; a device of another kind than ``cuda`` gets one on the CPU."""
    backend = device_backend(name, device)
    if device.type != "cuda":
        return HostDecoder(make_decoder(backend))
    from torchslip.decode._cuda import DaliCudaDecoder, TorchvisionCudaDecoder

    return DaliCudaDecoder(device) if backend == "dali" else TorchvisionCudaDecoder(device)


class HostDecoder:
    """A decoder on the CPU as a `DeviceDecoder`: for devices that decode nothing, and for the CPU itself.

    Args:
        decoder: What decodes.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def name(self) -> str:
        """See `DeviceDecoder.name`."""
        return self._decoder.name

    def decode(
        self,
        images: Sequence[torch.Tensor],
        headers: Sequence[Header],
        placements: Sequence[Placement],
        outputs: Sequence[Sequence[torch.Tensor] | torch.Tensor],
    ) -> dict[int, Exception]:
        """See `DeviceDecoder.decode`."""
        written = [list(view) for view in outputs]
        host = [[each if each.is_cpu else torch.empty_like(each, device="cpu") for each in view] for view in written]
        failures = self._decoder.decode([image.numpy().tobytes() for image in images], headers, placements, host)
        for theirs, ours in zip(written, host, strict=True):
            for row, (output, pixels) in enumerate(zip(theirs, ours, strict=True)):
                if output is not pixels and row not in failures:
                    output.copy_(pixels)
        return failures
