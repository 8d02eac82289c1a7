"""Shuffling several sets at once, each within a window of its blocks at a time: the two levels of `Shuffled`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchslip.order._mix_permutations import mix_keys, permute_each

__all__ = ["Windows"]

_Ints = npt.NDArray[np.int64]
_UInts = npt.NDArray[np.uint64]

_NEVER = -1


@dataclass(frozen=True, slots=True)
class _Layout:
    """The blocks of each set, laid out for one pass over it; the slots of all sets stand one after the other.

    Attributes:
        passes: The pass of each set that the layout is for.
        starts: The first position of each slot, counted over all sets, and the end of the last one.
        origins: The first sample of the block in each slot.
    """

    passes: _Ints
    starts: _Ints
    origins: _Ints


class Windows:
    """The shuffled orders of several sets; O(blocks) memory.

    Args:
        blocks: For each set, the sizes of its blocks.
        window: How many blocks are mixed with each other.
    """

    def __init__(self, blocks: Sequence[_Ints], window: int) -> None:
        self._window = window
        self._counts = np.array([len(sizes) for sizes in blocks], np.int64)
        self._first_slots = np.cumsum(self._counts) - self._counts
        self._sizes = np.concatenate([np.zeros(0, np.int64), *blocks])
        self._origins = np.concatenate([np.zeros(0, np.int64), *(np.cumsum(sizes) - sizes for sizes in blocks)])
        lengths = np.array([sizes.sum() for sizes in blocks], np.int64)
        self._begins = np.cumsum(lengths) - lengths
        ends = np.cumsum(self._sizes)
        self._layout = _Layout(
            np.full(len(blocks), _NEVER), np.append(ends - self._sizes, lengths.sum()), np.zeros_like(self._origins)
        )

    def __call__(self, ranks: _Ints, of: _Ints, passes: _Ints, keys: _UInts) -> _Ints:
        """The sample at each rank.

        Args:
            ranks: int64 ``[N]``, below the length of the set.
            of: int64 ``[N]``, the set of each element.
            passes: int64 ``[N]``, each pass over a set has another order.
            keys: uint64 ``[sets]``.
        """
        samples = np.empty_like(ranks)
        todo = np.arange(len(ranks))
        while todo.size:
            # A batch may reach over the end of a pass, then the later one has its turn after the earlier one.
            wanted = self._layout.passes.copy()
            wanted[of[todo][::-1]] = passes[todo][::-1]
            layout = self._lay_out(wanted, keys)
            now = passes[todo] == wanted[of[todo]]
            here, todo = todo[now], todo[~now]
            samples[here] = self._shuffle(layout, ranks[here], of[here], keys)
        return samples

    def _shuffle(self, layout: _Layout, ranks: _Ints, of: _Ints, keys: _UInts) -> _Ints:
        first, begins = self._first_slots[of], self._begins[of]
        slots = np.searchsorted(layout.starts, begins + ranks, side="right") - 1 - first
        windows = slots // self._window
        window_slot = windows * self._window
        start = layout.starts[first + window_slot]
        end = layout.starts[first + np.minimum(window_slot + self._window, self._counts[of])]
        # Key 0 of a pass is for the blocks.
        of_pass = mix_keys(keys[of], layout.passes[of])
        places = start + permute_each(begins + ranks - start, end - start, mix_keys(of_pass, windows + 1))
        slots = np.searchsorted(layout.starts, places, side="right") - 1
        samples: _Ints = layout.origins[slots] + places - layout.starts[slots]
        return samples

    def _lay_out(self, passes: _Ints, keys: _UInts) -> _Layout:
        changed = np.flatnonzero(passes != self._layout.passes)
        if not changed.size:
            return self._layout
        counts, first = self._counts[changed], self._first_slots[changed]
        of = np.repeat(np.arange(len(changed)), counts)
        slots = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
        block_keys = mix_keys(mix_keys(keys[changed], passes[changed]), np.zeros(len(changed), np.int64))
        blocks = first[of] + permute_each(slots, counts[of], block_keys[of])
        starts, origins = self._layout.starts.copy(), self._layout.origins.copy()
        origins[first[of] + slots] = self._origins[blocks]
        ends = np.cumsum(self._sizes[blocks])
        before = np.concatenate(([0], ends))[np.cumsum(counts) - counts]
        starts[first[of] + slots] = ends - self._sizes[blocks] - before[of] + self._begins[changed][of]
        self._layout = layout = _Layout(passes, starts, origins)
        return layout
