"""Random numbers that are a function of what they are for.

Everything random about a sample is computed from ``(seed, epoch, sample_id, operation)`` by a counter-based
generator, never taken from a stream. So a sample gets the same crop in whatever batch, worker, rank or thread it is
processed, and there is no generator state to save.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
The key is the hash of ``(seed, operation)``; the counter is ``(sample_id low, sample_id high, epoch, block)``.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt

__all__ = ["derive_key", "philox4x32", "uniform"]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def derive_key(*parts: int | str | None) -> int:
    """Hash `parts` to a 64-bit key: the same on every platform and in every version.

    Args:
        parts: What the random numbers are for, such as ``(seed, "crop", "image")``. ``1`` and ``"1"`` differ.
    """
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox4x32(counter: npt.NDArray[np.uint32], key: int) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of each counter.

    Args:
        counter: uint32 ``[..., 4]``.
        key: 64 bits; the low half is the generator's first key word.

    Returns:
        uint32 ``[..., 4]``: four independent, uniform 32-bit words per counter.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0 = (product1 >> _32) ^ c1 ^ np.uint64(k0)
        c1 = product1 & _LOW
        c2 = (product0 >> _32) ^ c3 ^ np.uint64(k1)
        c3 = product0 & _LOW
        k0 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF
        k1 = (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1).astype(np.uint32)


def uniform(
    sample_ids: npt.NDArray[np.int64], *, key: int, epoch: int, block: int | npt.NDArray[np.int64] = 0
) -> npt.NDArray[np.float64]:
    """Four numbers in [0, 1) for each sample.

    Args:
        sample_ids: int64 ``[N]``.
        key: From `derive_key`: the seed and the operation.
        epoch: 0 to 2**32 - 1.
        block: Which four numbers of the sample's sequence: 0 for the first four, 1 for the next four, ...; for each
            sample the same, or int64 ``[N]``.

    Returns:
        float64 ``[N, 4]``, multiples of 2**-32.
    """
    ids = sample_ids.astype(np.uint64)
    counter = np.empty((len(ids), 4), np.uint32)
    counter[:, 0] = ids & _LOW
    counter[:, 1] = ids >> _32
    counter[:, 2] = epoch
    counter[:, 3] = block
    return philox4x32(counter, key).astype(np.float64) * 2.0**-32
