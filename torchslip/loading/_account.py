"""The room of one pass in one process, and the guard that watches its memory."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import get_worker_info

from torchslip.errors import MemoryLimitError
from torchslip.loading._byte_budget import AbandonedError, ByteBudget
from torchslip.loading._encoded import EncodedBatch
from torchslip.loading._memory_guard import MemoryGuard

__all__ = ["Account", "bytes_in"]


class Account:
    """Begins a pass with its budget: the one that all workers share, or where the consumer is here, one of its own.

    Args:
        shared: The budget of the dataset.
        token: Names the pass, see `PassClock`.
        workers: How many processes go through it.
    """

    def __init__(self, shared: ByteBudget, *, token: int, workers: int) -> None:
        worker = get_worker_info()
        self._shared = shared
        self.alone = worker is None
        """Whether the consumer is in this process."""
        self.budget = ByteBudget(shared.limits, shared.deliveries, alone=True) if self.alone else shared
        self._opened = self.budget.open() if self.alone else 0
        # The first worker watches all of them, from the main process down.
        self._guard: MemoryGuard | None = None
        if worker is None or worker.id == 0:
            self._guard = MemoryGuard(self.budget, os.getpid() if worker is None else os.getppid())
            self._guard.start()
        self.budget.begin(token, worker=0 if worker is None else worker.id, workers=workers)

    def make_room(self, size: int, position: int, then: int | None) -> bool:
        """Reserve for a batch that this thread is about to make.

        Args:
            size: Its bytes.
            position: The first position of its step.
            then: That of the next batch of this process.

        Returns:
            Whether the pass goes on.

        Raises:
            MemoryLimitError: If the batch is larger than the cap, or the process tree has reached its hard limit.
            RuntimeError: If nobody would say when a batch is handed over.
        """
        if not self.budget.guided:
            raise RuntimeError(
                "A memory cap on batches of pictures needs ts.DataLoader, which says when a batch was handed over: "
                "use it instead of torch's, or leave max_ram_gb, constraints and profile out."
            )
        if self.alone:
            self.budget.ask()
        try:
            lease = self.budget.reserve(position, size, then=then)
        except AbandonedError:
            return False
        self._lease, self._size = lease, size
        return True

    def made(self, batch: Any, position: int) -> None:
        """The batch that room was made for is there.

        Raises:
            MemoryLimitError: If it is larger than that.
        """
        size = bytes_in(batch)
        if size > self._size:
            raise MemoryLimitError(
                f"A batch has {size} bytes, more than the {self._size} that are kept for one whose size nobody knows: "
                f"a third of max_inflight_bytes={self.budget.limits.max_inflight_bytes}. Raise it, use a smaller "
                "batch_size, or views of a fixed size."
            )
        self.budget.shrink(self._lease, size)
        if self.alone:
            self.budget.hand_over(position)

    def close(self) -> None:
        """The pass is over, wholly or not."""
        self.budget.end()
        if self.alone:
            self.budget.close(self._opened)
            self._shared.absorb(self.budget)
        if self._guard is not None:
            self._guard.stop()


def bytes_in(batch: Any) -> int:
    """Bytes of all tensors in a batch: a dict of tensors or lists of tensors, or an encoded batch."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes
    if isinstance(batch, EncodedBatch):
        return batch.pictures.payload.nbytes + bytes_in(batch.fields)
    if isinstance(batch, dict):
        return sum(bytes_in(each) for each in batch.values())
    return sum(bytes_in(each) for each in batch) if isinstance(batch, list | tuple) else 0
