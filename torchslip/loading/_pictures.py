"""The pictures of one batch while it is made: decoded into their places, or gathered as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode import Decoder, Draws, Encoded, Header, Output, Placement, View
from torchslip.loading._encoded import EncodedPictures, EncodedView
from torchslip.loading._memory import PictureShape, empty_bytes, empty_pictures
from torchslip.loading._slabs import in_same_slab

__all__ = ["GatheredPictures", "NamedView", "Part", "Pictures", "boxes_of", "parts_of"]


@dataclass(frozen=True, slots=True)
class NamedView:
    """A view and its key in the batch."""

    key: str
    view: View

    def draws(self, ids: npt.NDArray[np.int64], seed: int, epoch: int, batch_key: int) -> Draws:
        """Its random numbers for these samples."""
        name: str | int = self.key if self.view.seed is None else self.view.seed
        return Draws(ids, seed=seed, view=name, epoch=epoch, batch_key=batch_key)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a view in the batch."""

    key: str
    channels: int = 3
    halved: bool = False

    def shape(self, count: int, size: tuple[int, int]) -> PictureShape:
        """Of `count` views of this height and width."""
        height, width = (-(-side // 2) if self.halved else side for side in size)
        return PictureShape(count, height, width, self.channels)


def parts_of(key: str, output: Output) -> list[Part]:
    """The tensors of a view; those of all views come in the order in which decoders take them."""
    return [Part(f"{key}_y", 1), Part(f"{key}_uv", 2, True)] if output == "planes" else [Part(key)]


class Pictures:
    """The outputs of all views of one batch, in host memory.

    Of each view comes its first part, and then of each its second, if it has two.
    """

    def __init__(
        self,
        views: Sequence[NamedView],
        ids: npt.NDArray[np.int64],
        *,
        seed: int,
        epoch: int,
        batch_key: int,
        output: Output = "rgb",
    ) -> None:
        self._views, self._seed, self._epoch, self._batch_key = views, seed, epoch, batch_key
        self._output = output
        self._sizes = [each.view.output_size(self._draws(each, ids)) for each in views]
        self._boxes = np.zeros((len(views), len(ids), 4), np.float32)
        parts = [parts_of(each.key, output) for each in views]
        self._parts = [part for same in zip(*parts, strict=True) for part in same]
        self._outputs: list[torch.Tensor | list[torch.Tensor]] = []
        self._prepare(len(ids))

    def _prepare(self, count: int) -> None:
        sizes = self._sizes * (len(self._parts) // len(self._views))
        shapes = [part.shape(count, size) for part, size in zip(self._parts, sizes, strict=True) if size is not None]
        stacks = iter(empty_pictures(shapes))
        self._outputs = [[torch.empty(0)] * count if size is None else next(stacks) for size in sizes]

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
        images: Sequence[Encoded],
        headers: Sequence[Header],
        rows: list[int],
        ids: npt.NDArray[np.int64],
    ) -> dict[int, Exception]:
        """Decode `images` into `rows`; returns the rows that failed."""
        placements = self._place(headers, rows, ids)
        self._prepare_singles(placements, rows)
        outputs = [part if len(rows) == len(part) else [part[row] for row in rows] for part in self._outputs]
        failures = decoder.decode(images, headers, placements, outputs, output=self._output)
        return {rows[index]: error for index, error in failures.items()}

    def _prepare_singles(self, placements: list[Placement], rows: list[int]) -> None:
        """Memory for the views that have a size for each picture."""
        lists = {number: each for number, each in enumerate(self._outputs) if isinstance(each, list)}
        if not lists:
            return
        shapes = [
            self._parts[number].shape(1, (height, width))
            for number in lists
            for height, width in placements[number % len(placements)].size.tolist()
        ]
        singles = iter(empty_pictures(shapes, spare=True))
        for each in lists.values():
            for row in rows:
                single = next(singles)
                each[row] = in_same_slab(single[0], single)

    def in_batch(self, *, with_boxes: bool) -> dict[str, Any]:
        """Batch key to tensor or list of tensors, and the boxes if asked for."""
        batch: dict[str, Any] = {part.key: each for part, each in zip(self._parts, self._outputs, strict=True)}
        return batch | (self.boxes() if with_boxes else {})

    def boxes(self) -> dict[str, torch.Tensor]:
        """Batch key to what is shown of each picture."""
        return boxes_of({each.key: boxes for each, boxes in zip(self._views, self._boxes, strict=True)})

    def row(self, row: int) -> dict[str, torch.Tensor]:
        """Batch key to picture, for one row that was decoded."""
        return {part.key: outputs[row] for part, outputs in zip(self._parts, self._outputs, strict=True)}


class GatheredPictures(Pictures):
    """The same for pictures that another process decodes: their bytes and where their views lie."""

    def _prepare(self, count: int) -> None:
        self._images: list[Encoded] = [b""] * count
        self._headers: list[Header | None] = [None] * count
        widths = {"box": 4, "resized": 2, "window": 2, "size": 2}
        self._placements = [
            Placement(**{name: np.zeros((count, width), np.int64) for name, width in widths.items()})
            for _ in self._views
        ]

    def decode(
        self,
        decoder: Decoder,
        images: Sequence[Encoded],
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
