"""Many keyed permutations at once: each element has a domain and a key of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchslip.order._permutation import _GOLDEN, _MIX1, _MIX2, _ROUNDS, _SMALL, _SMALL_ROUNDS, _add, _below

__all__ = ["mix_keys", "permute_each"]

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


def permute_each(positions: _Ints, sizes: _Ints, keys: _UInts) -> _Ints:
    """Permute each position by a `Permutation` of its own, in as many array operations as for one.

    Args:
        positions: int64 ``[N]``, each below its size.
        sizes: int64 ``[N]``, 1 or more, how many integers are permuted.
        keys: uint64 ``[N]``; with the key ``derive_key(*key)`` the value is that of ``Permutation(size, *key)``.
    """
    root = np.sqrt(sizes - 1).astype(np.int64)
    root -= root * root > sizes - 1
    root += (root + 1) * (root + 1) <= sizes - 1
    a = (root + 2) & ~1
    each = sizes.view(np.uint64), a.view(np.uint64), (-(-sizes // a)).view(np.uint64), keys
    result = _encipher(positions.view(np.uint64), *each)
    outside = np.flatnonzero(result >= each[0])
    while outside.size:
        n, a_, b_, keys_ = (values[outside] for values in each)
        result[outside] = again = _encipher(result[outside], n, a_, b_, keys_)
        outside = outside[again >= n]
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
