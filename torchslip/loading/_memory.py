"""Memory for batches."""

from __future__ import annotations

import mmap

import numpy as np
import torch
from torch.utils.data import get_worker_info

from torchslip.loading._slabs import empty_slab, slabs_available

__all__ = ["empty_bytes", "empty_pictures"]

_MAPPED_BYTES = 1 << 18
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)  # 0 on Windows


def empty_pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Uninitialised uint8 ``[count, 3, height, width]``, channels last in memory.

    In a worker process it lies in shared memory from the start, as `default_collate` does it, so that handing the
    batch to the main process copies nothing.
    """
    if count > 1 and height * width and get_worker_info() is not None and slabs_available():
        # Pictures of different sizes come one by one; a slab only pays where the next batch has the same size.
        return empty_slab((count, 3, height, width), (height * width * 3, 1, width * 3, 3))
    size = count * height * width * 3
    # Batches of pictures all have one size, so what glibc keeps of one is just right for the next.
    memory = torch.empty(size, dtype=torch.uint8) if get_worker_info() is None else empty_bytes(size)
    return memory.view(count, height, width, 3).permute(0, 3, 1, 2)


def empty_bytes(count: int) -> torch.Tensor:
    """Uninitialised uint8 ``[count]``; in a worker process in shared memory, see `empty_pictures`."""
    if get_worker_info() is None or not count:
        return _pages(count) if count >= _MAPPED_BYTES and _PRIVATE else torch.empty(count, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(count, device="cpu")  # type: ignore[no-untyped-call]
    memory: torch.Tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memory


def _pages(count: int) -> torch.Tensor:
    """Memory that goes back to the system as soon as it is freed.

    What glibc gives out up to 32 MiB it keeps, in pieces, when another thread frees it: a cap of 128 MiB on batches of
    30 MiB took 335 MB so (2026-11-21).
    """
    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, count, flags=_PRIVATE), np.uint8))
