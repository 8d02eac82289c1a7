"""The pictures of one batch while it is made: decoded into their places, or gathered as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode import Decoder, Draws, Header, Placement, View
from torchslip.loading._encoded import EncodedPictures, EncodedView
from torchslip.loading._memory import empty_bytes, empty_pictures

__all__ = ["GatheredPictures", "NamedView", "Pictures", "boxes_of"]


@dataclass(frozen=True, slots=True)
class NamedView:
    """A view and its key in the batch."""

    key: str
    view: View

    def draws(self, ids: npt.NDArray[np.int64], seed: int, epoch: int, batch_key: int) -> Draws:
        """Its random numbers for these samples."""
        name: str | int = self.key if self.view.seed is None else self.view.seed
        return Draws(ids, seed=seed, view=name, epoch=epoch, batch_key=batch_key)


class Pictures:
    """The outputs of all views of one batch, in host memory."""

    def __init__(
        self, views: Sequence[NamedView], ids: npt.NDArray[np.int64], *, seed: int, epoch: int, batch_key: int
    ) -> None:
        self._views, self._seed, self._epoch, self._batch_key = views, seed, epoch, batch_key
        self._sizes = [each.view.output_size(self._draws(each, ids)) for each in views]
        self._boxes = np.zeros((len(views), len(ids), 4), np.float32)
        self._stacked: list[torch.Tensor | None] = []
        self._outputs: list[list[torch.Tensor]] = []
        self._prepare(len(ids))

    def _prepare(self, count: int) -> None:
        for size in self._sizes:
            stack = None if size is None else empty_pictures(count, *size)
            self._stacked.append(stack)
            self._outputs.append([torch.empty(0)] * count if stack is None else list(stack.unbind(0)))

    def _draws(self, each: NamedView, ids: npt.NDArray[np.int64]) -> Draws:
        return each.draws(ids, self._seed, self._epoch, self._batch_key)

    def _place(self, headers: Sequence[Header], rows: list[int], ids: npt.NDArray[np.int64]) -> list[Placement]:
        sizes = np.array([(header.height, header.width) for header in headers], np.int64)
        placements = [each.view.place(sizes, self._draws(each, ids[rows])) for each in self._views]
        for number, placement in enumerate(placements):
            self._boxes[number, rows] = placement.shown
        return placements

    def decode(
        self,
        decoder: Decoder,
        images: Sequence[bytes],
        headers: Sequence[Header],
        rows: list[int],
        ids: npt.NDArray[np.int64],
    ) -> dict[int, Exception]:
        """Decode `images` into `rows`; returns the rows that failed."""
        placements = self._place(headers, rows, ids)
        for number, placement in enumerate(placements):
            if self._stacked[number] is None:
                for row, (height, width) in zip(rows, placement.size.tolist(), strict=True):
                    self._outputs[number][row] = empty_pictures(1, height, width)[0]
        outputs = [[view[row] for row in rows] for view in self._outputs]
        failures = decoder.decode(images, headers, placements, outputs)
        return {rows[index]: error for index, error in failures.items()}

    def in_batch(self, *, with_boxes: bool) -> dict[str, Any]:
        """Batch key to tensor or list of tensors, and the boxes if asked for."""
        batch: dict[str, Any] = {}
        for each, stack, outputs in zip(self._views, self._stacked, self._outputs, strict=True):
            batch[each.key] = outputs if stack is None else stack
        return batch | (self.boxes() if with_boxes else {})

    def boxes(self) -> dict[str, torch.Tensor]:
        """Batch key to what is shown of each picture."""
        return boxes_of({each.key: boxes for each, boxes in zip(self._views, self._boxes, strict=True)})

    def row(self, row: int) -> dict[str, torch.Tensor]:
        """Batch key to picture, for one row that was decoded."""
        return {each.key: view[row] for each, view in zip(self._views, self._outputs, strict=True)}


class GatheredPictures(Pictures):
    """The same for pictures that another process decodes: their bytes and where their views lie."""

    def _prepare(self, count: int) -> None:
        self._images: list[bytes] = [b""] * count
        self._headers: list[Header | None] = [None] * count
        widths = {"box": 4, "resized": 2, "window": 2, "size": 2}
        self._placements = [
            Placement(**{name: np.zeros((count, width), np.int64) for name, width in widths.items()})
            for _ in self._views
        ]

    def decode(
        self,
        decoder: Decoder,
        images: Sequence[bytes],
        headers: Sequence[Header],
        rows: list[int],
        ids: npt.NDArray[np.int64],
    ) -> dict[int, Exception]:
        """Keep `images` for `rows`; nothing fails here."""
        for row, image, header in zip(rows, images, headers, strict=True):
            self._images[row], self._headers[row] = image, header
        for whole, part in zip(self._placements, self._place(headers, rows, ids), strict=True):
            for name in ("box", "resized", "window", "size"):
                getattr(whole, name)[rows] = getattr(part, name)
        return {}

    def gathered(self) -> EncodedPictures:
        """All of them, for the way to the other process."""
        lengths = np.array([len(image) for image in self._images], np.int64)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        payload = empty_bytes(int(offsets[-1]))
        memory = payload.numpy()
        for image, begin, end in zip(self._images, offsets[:-1], offsets[1:], strict=True):
            memory[begin:end] = np.frombuffer(image, np.uint8)
        views = tuple(
            EncodedView(each.key, placement, size)
            for each, placement, size in zip(self._views, self._placements, self._sizes, strict=True)
        )
        return EncodedPictures(payload, offsets, tuple(each for each in self._headers if each is not None), views)


def boxes_of(shown: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """The entries of a batch that say what each view shows, ``<key>_box``: float32 ``[B, 4]``."""
    return {f"{key}_box": torch.from_numpy(boxes.copy()) for key, boxes in shown.items()}
