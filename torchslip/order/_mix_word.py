"""Which source stands at which slot of a mixture: a random word with exact counts and bounded discrepancy.

The sources are the leaves of a Huffman tree over their counts. A node with N slots, of which c belong to its smaller
child, is cut into c strata, the j-th from ``ceil(j N / c)`` to ``ceil((j + 1) N / c)``; in each stratum one slot, drawn
by a key, goes to the smaller child and the others to the larger one. So how many slots of each child come before slot q
follows from the stratum of q alone, and a walk from the root to a leaf yields the source of any slot and how many slots
of that source come before it, in O(depth) time and O(sources) memory.

The discrepancy: with ``share = c / N``, the slots of a child among any n consecutive ones differ from n times its share
by less than ``2 - share``. Down the tree errors shrink with the child's share r of its parent and add up:
``bound = own + r * bound of the parent``. A few very uneven mixtures of three or four sources would exceed the number
of sources by this formula; there, nodes draw from the first half of their strata only, which makes their own error less
than ``(3 - share) / 2``.

Drawing a place instead of taking every (N / c)-th slot matters because ranks take every world_size-th position:
evenly spaced, a source with one in eight samples would go to the same one of eight ranks for ever.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from torchslip.order._mix_permutations import mix_keys
from torchslip.order._permutation import _below
from torchslip.random import derive_key

__all__ = ["MAX_SLOTS", "Word"]

MAX_SLOTS = 1 << 41
"""The longest word: above, the product of two counts would need more than 64 bits in the long division below."""

_DIGIT = np.int64(21)
_DIGIT_MASK = np.int64((1 << 21) - 1)
_MAX_REACH = np.int64((1 << 32) - 1)

_Ints = npt.NDArray[np.int64]


class Word:
    """A periodic sequence of sources, in which a period of ``sum(counts)`` slots has `counts[i]` slots of source i.

    Args:
        counts: Slots of each source in a period; some may be 0.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self.period = sum(counts)
        assert 1 <= self.period <= MAX_SLOTS
        self._counts = np.array(counts, np.int64)
        tree = _Tree(counts)
        self._root = tree.root
        self._total = np.array(tree.total, np.int64)
        self._minor = np.array(tree.minor, np.int64)
        self._children = np.array(tree.children, np.int64).reshape(-1, 2)
        # Long division of q * minor by total, with q in two digits of 21 bits.
        digits = [divmod(minor << 21, total) for minor, total in zip(tree.minor, tree.total, strict=True)]
        self._quotient = np.array([quotient for quotient, _ in digits], np.int64)
        self._remainder = np.array([remainder for _, remainder in digits], np.int64)
        self._halved, self.bound = tree.narrow(limit=tree.leaves)
        nodes = np.arange(len(tree.total))
        self._node_keys = mix_keys(np.full(len(nodes), derive_key("mix node"), np.uint64), nodes)

    def at(self, slots: _Ints, key: int) -> tuple[_Ints, _Ints]:
        """The source of each slot, and how many slots of that source come before it.

        Args:
            slots: int64 ``[N]``, 0 or more.
            key: 64 bits that choose one of the many words with these counts.
        """
        period, index = np.divmod(slots, self.period)
        source = np.full(len(slots), ~self._root, np.int64)
        before = index.copy()
        if self._root >= 0:
            todo, node, of_period = np.arange(len(slots)), np.full(len(slots), self._root), period
            while todo.size:
                stratum, past = self._strata(node, index, of_period, key)
                is_minor = past == 0
                index = np.where(is_minor, stratum, index - stratum - (past > 0))
                node = self._children[node, is_minor.view(np.int8)]
                is_leaf = node < 0
                done = todo[is_leaf]
                source[done], before[done] = ~node[is_leaf], index[is_leaf]
                inner = ~is_leaf
                todo, node, index, of_period = todo[inner], node[inner], index[inner], of_period[inner]
        return source, before + period * self._counts[source]

    def counts_before(self, slot: int, key: int) -> _Ints:
        """How many of the first `slot` slots belong to each source: int64 ``[sources]``."""
        periods, rest = divmod(slot, self.period)
        counts = self._counts * periods
        todo = [(self._root, rest)]
        while todo:
            node, index = todo.pop()
            if node < 0:
                counts[~node] += index
            elif index == self._total[node]:
                # Past the last stratum.
                minor = int(self._minor[node])
                todo += [(int(self._children[node, 1]), minor), (int(self._children[node, 0]), index - minor)]
            else:
                one = np.array([node]), np.array([index]), np.array([periods])
                stratum, past = self._strata(*one, key)
                minor = int(stratum[0]) + int(past[0] > 0)
                todo += [(int(self._children[node, 1]), minor), (int(self._children[node, 0]), index - minor)]
        return counts

    def _strata(self, node: _Ints, index: _Ints, period: _Ints, key: int) -> tuple[_Ints, _Ints]:
        """The stratum that `index` lies in, and how far it lies past the slot drawn there."""
        total, minor = self._total[node], self._minor[node]
        high = index >> _DIGIT
        low = high * self._remainder[node] + (index & _DIGIT_MASK) * minor
        stratum, rest = np.divmod(low, total)
        stratum += high * self._quotient[node]
        from_start = rest // minor
        size = from_start - (rest - total) // minor
        reach = np.clip(size >> self._halved[node], 1, _MAX_REACH).view(np.uint64)
        # The number of the stratum, counted from the first period.
        x = (stratum + period * minor).view(np.uint64) + np.uint64(key)
        return stratum, from_start - _below(x, self._node_keys[node], reach).view(np.int64)


class _Tree:
    """A Huffman tree; a child is the number of another node, or ``~source`` for a leaf."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.total: list[int] = []
        self.minor: list[int] = []
        self.children: list[tuple[int, int]] = []
        """The larger and the smaller child of each node."""
        # Number, then entry, so that equal counts merge in one order on every platform.
        todo = [(count, source, ~source) for source, count in enumerate(counts) if count]
        self.leaves = len(todo)
        heapq.heapify(todo)
        entry = len(counts)
        while len(todo) > 1:
            (minor, _, small), (major, _, large) = heapq.heappop(todo), heapq.heappop(todo)
            self.total.append(minor + major)
            self.minor.append(minor)
            self.children.append((large, small))
            heapq.heappush(todo, (minor + major, entry, len(self.total) - 1))
            entry += 1
        self.root = todo[0][2]

    def narrow(self, limit: int) -> tuple[npt.NDArray[np.int8], Fraction]:
        """Which nodes draw from half of their strata, so that the bound is at most `limit`; and the bound."""
        halved = np.zeros(len(self.total), np.int8)
        bound = self._bound(halved)
        for node in sorted(range(len(self.total)), key=lambda node: Fraction(self.minor[node], self.total[node])):
            if bound <= limit:
                break
            halved[node] = 1
            bound = self._bound(halved)
        return halved, bound

    def _bound(self, halved: npt.NDArray[np.int8]) -> Fraction:
        worst = Fraction(0)
        todo = [(self.root, Fraction(0))]
        while todo:
            node, of_parent = todo.pop()
            if node < 0:
                worst = max(worst, of_parent)
                continue
            share = Fraction(self.minor[node], self.total[node])
            own = (3 - share) / 2 if halved[node] else 2 - share
            large, small = self.children[node]
            todo += [(small, own + share * of_parent), (large, own + (1 - share) * of_parent)]
        return worst
