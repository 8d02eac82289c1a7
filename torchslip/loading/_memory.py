"""Memory for batches, and what a worker does for the way of a batch to the main process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from torchslip.loading._slabs import empty_in_slab, slabs_available
from torchslip.loading._worker_tensor import by_value

__all__ = ["PictureShape", "empty_bytes", "empty_pictures", "for_handover"]

_SMALL_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class PictureShape:
    """The shape of a tensor of pictures, uint8 ``[count, channels, height, width]``."""

    count: int
    height: int
    width: int
    channels: int = 3

    @property
    def size_bytes(self) -> int:
        """Of all of them."""
        return self.count * self.height * self.width * self.channels

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Three channels are last in memory, others are planes."""
        picture = self.height * self.width * self.channels
        if self.channels == 3:
            return picture, 1, self.width * 3, 3
        return picture, self.height * self.width, self.width, 1

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """As torch orders them."""
        return self.count, self.channels, self.height, self.width


def empty_pictures(shapes: Sequence[PictureShape], *, spare: bool = False) -> list[torch.Tensor]:
    """Uninitialised pictures of one batch.

    In a worker process they lie in shared memory from the start, as those of `default_collate`, so that handing the
    batch to the main process copies nothing.

    Args:
        shapes: Of each tensor.
        spare: The next batch will want another amount of memory.
    """
    if _in_worker() and slabs_available() and any(shape.size_bytes for shape in shapes):
        return empty_in_slab([(shape.sizes, shape.strides) for shape in shapes], spare=spare)
    return [empty_bytes(shape.size_bytes).as_strided(shape.sizes, shape.strides) for shape in shapes]


def empty_bytes(count: int, *, keep_bytes: int | None = None) -> torch.Tensor:
    """Uninitialised uint8 ``[count]``; in a worker process in shared memory, see `empty_pictures`.

    Args:
        count: How many.
        keep_bytes: How much shared memory may be kept for what comes next; default: as much as is in use.
    """
    if not _in_worker() or not count:
        return torch.empty(count, dtype=torch.uint8)
    if slabs_available():
        return empty_in_slab([((count,), (1,))], spare=True, keep_bytes=keep_bytes)[0]
    storage = torch.UntypedStorage._new_shared(count, device="cpu")  # type: ignore[no-untyped-call]
    memory: torch.Tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memory


def for_handover(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch; in a worker process its small tensors go to the main process by value."""
    if not _in_worker():
        return batch
    small = {
        key: by_value(value)
        for key, value in batch.items()
        if type(value) is torch.Tensor and value.nbytes <= _SMALL_BYTES
    }
    return batch | small


def _in_worker() -> bool:
    return get_worker_info() is not None
