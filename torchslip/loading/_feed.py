"""What `ts.DataLoader` does to batches in the main process: decode, move, augment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal, get_args

import torch

from torchslip.decode import DeviceDecoder, device_backend, make_device_decoder
from torchslip.loading._batcher import Batcher
from torchslip.loading._encoded import EncodedBatch
from torchslip.loading._transfer import deliver_ahead, make_lane, resolve_device

__all__ = ["DecodePlace", "Feed"]

DecodePlace = Literal["workers", "device"]


class Feed:
    """From the batches that workers make to those that the training loop gets.

    Touches no device before the first batch is asked for, when all workers run.

    Args:
        device: Where batches go; None: they stay.
        augment: Applied to each batch where it is then.
        decode: Where pictures are decoded.
        batcher: Of the dataset, where it decodes pictures.

    Raises:
        ValueError: If the arguments exclude each other.
        RuntimeError: If there is no such device, or no decoder for it.
    """

    def __init__(
        self,
        *,
        device: str | torch.device | None,
        augment: Callable[[Any], Any] | None,
        decode: DecodePlace,
        batcher: Batcher | None,
    ) -> None:
        if decode not in get_args(DecodePlace):
            raise ValueError(f"decode must be one of {', '.join(get_args(DecodePlace))}; got {decode!r}.")
        if augment is not None and not callable(augment):
            raise ValueError(f"augment must be callable, a batch in and a batch out; got {augment!r}.")
        self.device = None if device is None else torch.device(device)
        self._augment, self._batcher = augment, None
        if self.device is not None and self.device.type == "cuda" and not torch.cuda.device_count():
            resolve_device(self.device)
        if decode == "device":
            if self.device is None:
                raise ValueError("decode='device' needs a device: pass device='cuda' to ts.DataLoader.")
            if batcher is None:
                raise ValueError("decode='device' needs an ImageDataset or an ImageMapDataset: others decode nothing.")
            if batcher.output != "rgb":
                raise ValueError(
                    f"decode='device' makes RGB only, and the dataset has output={batcher.output!r}; drop one."
                )
            device_backend(batcher.decoder_name, self.device)
            self._batcher = batcher
        self._decoder: tuple[torch.device, DeviceDecoder] | None = None

    @property
    def ahead(self) -> int:
        """How many batches it takes from the workers before the training loop gets them."""
        return 0 if self.device is None else 1

    def making(self) -> contextlib.AbstractContextManager[None]:
        """Around the beginning of workers and the making of batches."""
        return contextlib.nullcontext() if self._batcher is None else self._batcher.leaving_encoded()

    def __call__(self, batches: Iterator[Any]) -> Generator[Any, None, None]:
        """The batches that the training loop gets; `batches` is closed with this generator."""
        moved = batches
        try:
            if self.device is not None:
                lane = make_lane(self.device)
                moved = deliver_ahead(batches, lane, lambda batch: self._finish(batch, lane.device))
            while True:
                try:
                    taken = [next(moved)]
                except StopIteration:
                    return
                if self._augment is not None:
                    taken.append(self._augment(taken.pop()))
                yield taken.pop()  # so that the consumer's reference is the last one
        finally:
            for each in (moved, batches):
                if isinstance(each, Generator):
                    each.close()

    def _finish(self, batch: Any, device: torch.device) -> Any:
        if not isinstance(batch, EncodedBatch) or self._batcher is None:
            return batch
        if self._decoder is None or self._decoder[0] != device:
            self._decoder = device, make_device_decoder(self._batcher.decoder_name, device)
        return self._batcher.finish(batch, self._decoder[1], device)
