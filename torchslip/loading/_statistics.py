"""Counters that worker processes write and the main process reads."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import get_worker_info

__all__ = ["Statistics"]

_WORKERS = 512


class Statistics:
    """Totals over all worker processes, in shared memory: one row per process, so that no lock is needed."""

    names = ("batches", "samples", "skipped_samples", "encoded_bytes")

    def __init__(self) -> None:
        self._counts = torch.zeros((_WORKERS + 1, len(self.names)), dtype=torch.int64)
        self._counts.share_memory_()  # type: ignore[no-untyped-call]

    def add(self, **amounts: int) -> None:
        """Add to counters of this process."""
        worker = get_worker_info()
        # The main process has the last row: it decodes while workers run.
        row = self._counts[_WORKERS if worker is None else worker.id % _WORKERS]
        for name, amount in amounts.items():
            row[self.names.index(name)] += amount

    def totals(self) -> dict[str, int]:
        """Counter name to the sum over all processes."""
        return dict(zip(self.names, self._counts.sum(dim=0).tolist(), strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy made by pickle or deepcopy has plain memory, which workers would not share.
        self.__dict__.update(state)
        self._counts.share_memory_()  # type: ignore[no-untyped-call]
