"""Batches whose pictures are still encoded, on their way to the process that decodes them on a device."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchslip.decode import Header, Placement

__all__ = ["EncodedBatch", "EncodedPictures", "EncodedView"]


@dataclass(frozen=True, slots=True)
class EncodedView:
    """What becomes of each picture.

    Attributes:
        key: The key of the view in the batch.
        placement: Where its pixels lie; one row per picture.
        size: Height and width of all outputs; None where each has its own.
    """

    key: str
    placement: Placement
    size: tuple[int, int] | None


@dataclass(frozen=True, slots=True, repr=False)
class EncodedPictures:
    """The pictures of a batch as they are stored, one behind the other.

    Attributes:
        payload: uint8 ``[bytes]``.
        offsets: int64 ``[B + 1]``: where each begins, and behind the last one where it ends.
        headers: B headers.
        views: What is to be made of them.
    """

    payload: torch.Tensor
    offsets: npt.NDArray[np.int64]
    headers: tuple[Header, ...]
    views: tuple[EncodedView, ...]

    def __len__(self) -> int:
        return len(self.headers)

    def __repr__(self) -> str:
        keys = ", ".join(each.key for each in self.views)
        return f"EncodedPictures({len(self)} pictures, {self.payload.nbytes} bytes, views {keys})"

    @property
    def images(self) -> list[torch.Tensor]:
        """Each picture, uint8 ``[bytes]``: views of the payload."""
        return [self.payload[begin:end] for begin, end in itertools.pairwise(self.offsets.tolist())]


@dataclass(frozen=True, slots=True, repr=False)
class EncodedBatch:
    """A batch that lacks nothing but its pixels.

    Attributes:
        pictures: Its pictures.
        fields: Everything else of the batch.
        wanted: int64 ``[B]``: the sample ids before any was replaced.
        attempts: int64 ``[B]``: how often each was replaced.
        epoch: Enters every random draw.
        key: Names the global batch.
    """

    pictures: EncodedPictures
    fields: dict[str, Any]
    wanted: npt.NDArray[np.int64]
    attempts: npt.NDArray[np.int64]
    epoch: int
    key: int

    def __repr__(self) -> str:
        return f"EncodedBatch({self.pictures!r}, epoch={self.epoch}, key={self.key})"
