"""Many keyed permutations at once: each element has a domain and a key of its own."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from torchslip.order._permutation import _GOLDEN, _MIX1, _MIX2, _ROUNDS, _SMALL, _SMALL_ROUNDS, _add, _below

__all__ = ["Permutations", "mix_keys"]

_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_STEP = np.uint64(_GOLDEN)

_Ints = npt.NDArray[np.int64]
_UInts = npt.NDArray[np.uint64]


def mix_keys(keys: _UInts, numbers: _Ints) -> _UInts:
    """An unrelated 64-bit key for each pair of a key and a number: output `numbers` of SplitMix64 from `keys`."""
    h: _UInts = keys + (numbers.view(np.uint64) + np.uint64(1)) * _STEP
    h = (h ^ (h >> _30)) * _MIX1
    h = (h ^ (h >> _27)) * _MIX2
    return h ^ (h >> _31)


class Permutations:
    """`Permutation` for several sets at a time, in as many array operations as for one.

    Args:
        sizes: How many integers each set has, 1 to 2**62.
    """

    def __init__(self, sizes: _Ints) -> None:
        self._n = sizes.astype(np.uint64)
        # As in `Permutation`.
        self._a = np.array([(math.isqrt(size - 1) + 2) & ~1 for size in sizes.tolist()], np.uint64)
        self._b = (self._n + self._a - np.uint64(1)) // self._a

    def __call__(self, positions: _Ints, of: _Ints, keys: _UInts) -> _Ints:
        """The value at each position.

        Args:
            positions: int64 ``[N]``, below the size of the set.
            of: int64 ``[N]``, the set of each element.
            keys: uint64 ``[N]``, the key of each element; with the key ``derive_key(*key)`` the values are those of
                ``Permutation(size, *key)``.
        """
        n, a, b = self._n[of], self._a[of], self._b[of]
        result = _encipher(positions.view(np.uint64), n, a, b, keys)
        outside = np.flatnonzero(result >= n)
        while outside.size:
            result[outside] = _encipher(result[outside], n[outside], a[outside], b[outside], keys[outside])
            outside = outside[result[outside] >= n[outside]]
        return result.view(np.int64)


def _encipher(x: _UInts, n: _UInts, a: _UInts, b: _UInts, keys: _UInts) -> _UInts:
    """Eight rounds for all, then sixteen more for the small sets."""
    left, right = _rounds(*np.divmod(x, b), a, b, keys, range(_ROUNDS))
    small = np.flatnonzero(n <= _SMALL)
    if small.size:
        more = range(_ROUNDS, _SMALL_ROUNDS)
        left[small], right[small] = _rounds(left[small], right[small], a[small], b[small], keys[small], more)
    return left * b + right


def _rounds(left: _UInts, right: _UInts, a: _UInts, b: _UInts, keys: _UInts, numbers: range) -> tuple[_UInts, _UInts]:
    for i in numbers:
        key = keys + np.uint64((i + 1) * _GOLDEN & (1 << 64) - 1)
        if i % 2 == 0:
            left = _add(left, _below(right, key, a), a)
        else:
            right = _add(right, _below(left, key, b), b)
    return left, right
