"""Memory for batches."""

from __future__ import annotations

import torch
from torch.utils.data import get_worker_info

from torchslip.loading._slabs import empty_slab, slabs_available

__all__ = ["empty_bytes", "empty_pictures"]


def empty_pictures(count: int, height: int, width: int, *, channels: int = 3) -> torch.Tensor:
    """Uninitialised uint8 ``[count, channels, height, width]``; three channels are last in memory, others planes.

    In a worker process it lies in shared memory from the start, as `default_collate` does it, so that handing the
    batch to the main process copies nothing.
    """
    size = height * width * channels
    if count > 1 and size and get_worker_info() is not None and slabs_available():
        # Pictures of different sizes come one by one; a slab only pays where the next batch has the same size.
        strides = (size, 1, width * 3, 3) if channels == 3 else (size, height * width, width, 1)
        return empty_slab((count, channels, height, width), strides)
    memory = empty_bytes(count * size)
    if channels != 3:
        return memory.view(count, channels, height, width)
    return memory.view(count, height, width, 3).permute(0, 3, 1, 2)


def empty_bytes(count: int) -> torch.Tensor:
    """Uninitialised uint8 ``[count]``; in a worker process in shared memory, see `empty_pictures`."""
    if get_worker_info() is None or not count:
        return torch.empty(count, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count, device="cpu")  # type: ignore[no-untyped-call]
    memory: torch.Tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memory
