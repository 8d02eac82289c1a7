"""Where the blocks of a dataset begin: shards of listed sizes, or runs of equal size."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from torchslip.order._permutation import Permutation

__all__ = ["Blocks", "EqualBlocks", "Layout", "ListedBlocks"]

_Ints = npt.NDArray[np.int64]


class Blocks(Protocol):
    """A dataset cut into consecutive blocks, and the same blocks laid out in a permuted sequence of slots."""

    @property
    def count(self) -> int:
        """How many blocks there are."""

    def first_sample(self, blocks: _Ints) -> _Ints:
        """The first sample id of each block."""

    def lay_out(self, permutation: Permutation) -> Layout:
        """Put block ``permutation(s)`` in slot s."""


class Layout(Protocol):
    """Blocks in slots; a position counts samples along the slots."""

    def start(self, slots: _Ints) -> _Ints:
        """The first position of each slot; slot `count` starts at the end."""

    def slot_of(self, positions: _Ints) -> _Ints:
        """The slot that each position lies in."""


class EqualBlocks:
    """Runs of `size` samples, the last one shorter; everything in O(1) memory."""

    def __init__(self, length: int, size: int) -> None:
        self._size = size
        self._last_size = (length - 1) % size + 1
        self.count = -(-length // size)

    def first_sample(self, blocks: _Ints) -> _Ints:
        """The first sample id of each block."""
        return blocks * self._size

    def lay_out(self, permutation: Permutation) -> Layout:
        """Put block ``permutation(s)`` in slot s."""
        short_slot = int(permutation.inverse(self.count - 1))
        return _EqualLayout(self._size, short_slot, self._size - self._last_size)


class _EqualLayout:
    def __init__(self, size: int, short_slot: int, missing: int) -> None:
        self._size, self._short_slot, self._missing = size, short_slot, missing

    def start(self, slots: _Ints) -> _Ints:
        return slots * self._size - self._missing * (slots > self._short_slot)

    def slot_of(self, positions: _Ints) -> _Ints:
        short_end = (self._short_slot + 1) * self._size - self._missing
        return np.where(positions < short_end, positions, positions + self._missing) // self._size


class ListedBlocks:
    """Blocks of given sizes, such as the shards of a dataset: O(blocks) memory."""

    def __init__(self, sizes: npt.ArrayLike) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._first = np.concatenate(([0], np.cumsum(self._sizes)))
        self.count = len(self._sizes)

    def first_sample(self, blocks: _Ints) -> _Ints:
        """The first sample id of each block."""
        return self._first[blocks]

    def lay_out(self, permutation: Permutation) -> Layout:
        """Put block ``permutation(s)`` in slot s."""
        return _ListedLayout(self._sizes[permutation(np.arange(self.count))])


class _ListedLayout:
    def __init__(self, sizes: _Ints) -> None:
        self._starts = np.concatenate(([0], np.cumsum(sizes)))

    def start(self, slots: _Ints) -> _Ints:
        return self._starts[slots]

    def slot_of(self, positions: _Ints) -> _Ints:
        # side="right" passes over empty blocks, which share their start with the next one.
        return np.searchsorted(self._starts, positions, side="right") - 1
