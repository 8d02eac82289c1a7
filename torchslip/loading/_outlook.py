"""Telling a source what comes next: the order is arithmetic, so every process can look ahead."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchslip.order import Order

__all__ = ["Outlook"]

# Of a windowed order of 850 shards they take 6 ms, so 2 % of the time of a worker that decodes 500 samples/s (2026-11).
_POINTS = 512
_MIN_STEP = 4096


class Outlook:
    """Tells a source that has `prepare` which records come next: the nearest exactly, those far away by samples.

    Args:
        source: The source; or None.
        order: The order that it is read in.
        step: Say it anew after this many positions, or a few thousand, or an eighth of the epoch.
    """

    def __init__(self, source: Any, order: Order, *, step: int) -> None:
        prepare = getattr(source, "prepare", None)
        self._prepare = prepare if prepare is not None and prepare((), ()) else None
        self._order = order
        # More often in a short epoch, where a few shards of the plan are much of it.
        self._step = min(max(step, _MIN_STEP), len(order) // 8)
        self._next = -1

    def at(self, position: int, *, epoch: int) -> None:
        """The pass has come to `position`."""
        if self._prepare is None or position < self._next:
            return
        self._next = position + self._step
        length = len(self._order)
        # A whole epoch's length ahead, into the next one, so that each sample comes once.
        ahead = np.unique(np.geomspace(1, length, _POINTS).astype(np.int64)) - 1
        positions = position + ahead
        now = positions < length
        ids = np.concatenate(
            [
                self._order.at(positions[now], epoch=epoch),
                self._order.at(positions[~now] - length, epoch=epoch + 1),
            ]
        )
        self._prepare(ids, np.diff(ahead, append=length))
