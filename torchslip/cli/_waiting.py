"""How long a training waits for its data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torchslip as ts

__all__ = ["Waiting"]


class Waiting:
    """Measures how long the training loop waits for its loader, with the start of its workers."""

    seconds = 0.0

    def on(self, loader: ts.DataLoader) -> Iterator[dict[str, Any]]:
        """The batches of a pass."""
        begin = time.perf_counter()
        batches = iter(loader)
        while (batch := next(batches, None)) is not None:
            self.seconds += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()
        self.seconds += time.perf_counter() - begin
