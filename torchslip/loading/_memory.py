"""Memory for pictures."""

from __future__ import annotations

import torch
from torch.utils.data import get_worker_info

__all__ = ["empty_pictures"]


def empty_pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Uninitialised uint8 ``[count, 3, height, width]``, channels last in memory.

    In a worker process it lies in shared memory from the start, as `default_collate` does it, so that handing the
    batch to the main process copies nothing.
    """
    shape = (count, height, width, 3)
    bytes_needed = count * height * width * 3
    if get_worker_info() is None or not bytes_needed:
        return torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
    storage = torch.UntypedStorage._new_shared(bytes_needed, device="cpu")  # type: ignore[no-untyped-call]
    memory: torch.Tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memory.view(shape).permute(0, 3, 1, 2)
