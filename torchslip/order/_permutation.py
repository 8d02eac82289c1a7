"""A keyed permutation of the integers below n, in O(1) memory.

A generalized Feistel network over the product Z_a x Z_b with a * b barely above n (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002), and cycle walking for the few values that fall outside. The round function is
the 64-bit finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Any position can be computed alone and inverted.

The values are pinned by test vectors: a permutation never changes between versions, platforms and numpy releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from torchslip.random import derive_key

__all__ = ["Permutation"]

# Eight rounds cost 0.1 microseconds a sample. The halves of a small domain hold so few values that it takes 16 until
# all n! permutations come out equally often (chi-square at n = 3 to 9), so small sets get 24.
_ROUNDS, _SMALL_ROUNDS, _SMALL = 8, 24, 1024
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_30, _27, _32 = np.uint64(30), np.uint64(27), np.uint64(32)

_UInts = npt.NDArray[np.uint64]


class Permutation:
    """A bijection of ``range(n)`` onto itself, chosen by a key.

    Args:
        n: How many integers are permuted, 1 to 2**62.
        key: Anything that names this permutation: ``Permutation(n, 17, epoch, "samples")``.
    """

    __slots__ = ("_a", "_b", "_n", "_round_keys")

    def __init__(self, n: int, *key: int | str | None) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"A permutation needs 1 <= n <= 2**62, got n={n}.")
        self._n = n
        # An even: adding modulo odd numbers yields even permutations only, which shows when n is small.
        self._a = (math.isqrt(n - 1) + 2) & ~1
        self._b = -(-n // self._a)
        rounds = _SMALL_ROUNDS if n <= _SMALL else _ROUNDS
        start = derive_key(*key)
        self._round_keys = [np.uint64((start + i * _GOLDEN) & _MASK) for i in range(1, rounds + 1)]

    def __len__(self) -> int:
        return self._n

    def __call__(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The value at each position: int64, the shape of `positions`, which must lie in ``[0, n)``."""
        return self._walk(positions, self._forward)

    def inverse(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The position of each value: ``p.inverse(p(x)) == x``."""
        return self._walk(values, self._backward)

    def _walk(self, values: npt.ArrayLike, step: Callable[[_UInts], _UInts]) -> npt.NDArray[np.int64]:
        given = np.asarray(values, np.int64)
        if given.size and (given.min() < 0 or given.max() >= self._n):
            raise IndexError(f"Positions must lie in [0, {self._n}), got {given.min()} to {given.max()}.")
        result = step(given.reshape(-1).astype(np.uint64))
        # Less than a in a * b values lie outside, so this loop is short and touches few of them.
        outside = np.flatnonzero(result >= self._n)
        while outside.size:
            result[outside] = step(result[outside])
            outside = outside[result[outside] >= self._n]
        return result.astype(np.int64).reshape(given.shape)

    def _forward(self, x: _UInts) -> _UInts:
        b = np.uint64(self._b)
        left, right = x // b, x % b
        for i, key in enumerate(self._round_keys):
            if i % 2 == 0:
                left = _add(left, _below(right, key, self._a), self._a)
            else:
                right = _add(right, _below(left, key, self._b), self._b)
        return left * b + right

    def _backward(self, y: _UInts) -> _UInts:
        b = np.uint64(self._b)
        left, right = y // b, y % b
        for i, key in reversed(list(enumerate(self._round_keys))):
            if i % 2 == 0:
                left = _subtract(left, _below(right, key, self._a), self._a)
            else:
                right = _subtract(right, _below(left, key, self._b), self._b)
        return left * b + right


def _below(x: _UInts, key: np.uint64 | _UInts, limit: int | _UInts) -> _UInts:
    """A pseudorandom integer in [0, limit) for each x; limit < 2**32."""
    h = x + key
    h = (h ^ (h >> _30)) * _MIX1
    h = (h ^ (h >> _27)) * _MIX2
    # Multiply-shift instead of a division, which is several times slower on arrays.
    return ((h >> _32) * np.uint64(limit)) >> _32


def _add(x: _UInts, y: _UInts, modulus: int | _UInts) -> _UInts:
    total = x + y
    return np.where(total >= modulus, total - np.uint64(modulus), total)


def _subtract(x: _UInts, y: _UInts, modulus: int) -> _UInts:
    return np.where(x >= y, x - y, x + np.uint64(modulus) - y)
