"""Which positions of an epoch belong to batch k of a rank.

The global batch is the unit: it takes the next ``batch_size * world_size`` positions, and rank r gets every
world_size-th of them, beginning with the r-th. So a global batch holds the same samples on any number of ranks, and a
tail is spread evenly.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from torchslip.order._topology import Topology

__all__ = ["Share", "Slice", "Tail"]

Tail = Literal["drop", "pad", "uneven"]


@dataclass(frozen=True, slots=True)
class Slice:
    """The positions of one rank in one global batch; `valid` is False where `pad` repeats an earlier sample."""

    positions: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Share:
    """The division of an epoch into global batches, and of these over ranks.

    Args:
        length: Positions in the epoch.
        batch_size: Samples per rank and batch.
        topology: Which rank this is.
        tail: What becomes of an incomplete last global batch. ``drop`` leaves it out; ``pad`` fills it with samples
            from the start of the epoch, marked as not valid; ``uneven`` divides what there is, so that the last batch
            may be smaller (on a rank for which nothing is left: empty). Every rank has the same number of batches.
    """

    length: int
    batch_size: int
    topology: Topology
    tail: Tail = "uneven"

    def __post_init__(self) -> None:
        if operator.index(self.batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if self.tail not in get_args(Tail):
            raise ValueError(f"tail must be one of {', '.join(get_args(Tail))}; got {self.tail!r}.")

    @property
    def global_batch(self) -> int:
        """Samples in one batch over all ranks."""
        return self.batch_size * self.topology.world_size

    def count(self, start: int = 0) -> int:
        """How many batches every rank gets from position `start` to the end of the epoch."""
        left = max(self.length - start, 0)
        return left // self.global_batch if self.tail == "drop" else -(-left // self.global_batch)

    def end(self, start: int, batches: int) -> int:
        """The position after `batches` global batches from `start`; the end of the epoch after the last one."""
        if batches >= self.count(start):
            return max(self.length, start)
        return start + batches * self.global_batch

    def batch(self, start: int, number: int) -> Slice:
        """Batch `number`, counted from position `start`, of this rank."""
        first = start + number * self.global_batch + self.topology.rank
        positions = np.arange(self.batch_size, dtype=np.int64) * self.topology.world_size + first
        valid = positions < self.length
        if self.tail == "pad":
            return Slice(positions % self.length, valid)
        return Slice(positions[valid], np.ones(int(valid.sum()), np.bool_))

    def first_position(self, start: int, number: int) -> int:
        """The first position of the global batch: the same on every rank."""
        return start + number * self.global_batch
