"""Tells the account of worker processes what the main process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._bytes_batch import BytesBatch

__all__ = ["Handover"]


class Handover:
    """One pass of `ts.DataLoader` over a dataset with a memory cap. Made before the workers begin.

    Args:
        budget: The account.
        position_of: The first position of the step of a number, counted in this pass.
    """

    def __init__(self, budget: ByteBudget, position_of: Callable[[int], int]) -> None:
        self._budget, self._position_of = budget, position_of
        self._number = 0
        self._pass = budget.open()

    def ask(self) -> None:
        """The consumer waits for a batch.

        Raises:
            MemoryLimitError: If the process tree has reached its hard limit.
        """
        self._budget.check_memory()
        self._budget.ask()

    def take(self, batch: Any) -> None:
        """The consumer gets a batch, and lets go of the one before."""
        self._budget.hand_over(self._position_of(self._number))
        self._number += 1
        if isinstance(batch, BytesBatch):
            self._budget.deliveries.add(batch, self._budget.inflight_bytes)

    def close(self) -> None:
        """The pass is over, wholly or not."""
        self._budget.close(self._pass)
