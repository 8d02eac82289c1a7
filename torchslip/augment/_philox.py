"""The random numbers of `torchslip.random`, computed on the device of the batch.

The same Philox4x32-10 in int64 arithmetic of torch: no generator state, no host synchronisation, and the same 32-bit
words on every device.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from torchslip.random import derive_key

__all__ = ["Request", "constant", "noise", "philox4x32", "uniform", "uniform_of"]

Request = tuple[int | None, str, int]
"""A transform's own seed (None: that of the call and its view), its path in the chain, and how many blocks it takes."""

_ROUNDS = 10
_ROUNDS_OF_NOISE = 7  # the fewest with which the paper's authors found no fault
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_NOISE_TAG = 0x6E6F6973


def constant(values: object, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`values` (numbers in nested tuples) as a tensor, made once per device: making it anew would wait for the GPU."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return _constant(values, device, dtype)


@lru_cache(maxsize=512)
def _constant(values: object, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def philox4x32(counter: torch.Tensor, key: torch.Tensor, *, rounds: int = _ROUNDS) -> torch.Tensor:
    """Philox4x32 of each counter.

    Args:
        counter: int64 ``[4, ...]``, words of 32 bits.
        key: int64 ``[2, ...]``, words of 32 bits; broadcasts against the rest of `counter`.
        rounds: 10 for all that has to do with samples.

    Returns:
        int64 ``[4, ...]``: four independent, uniform words of 32 bits.
    """
    device, trailing = counter.device, (1,) * (counter.dim() - 1)
    multipliers = constant(_MULTIPLIERS, device, torch.int64).view(2, *trailing)
    steps = constant(_KEY_STEPS, device, torch.int64).view(2, *trailing)
    even, odd = counter[0::2], counter[1::2]
    for number in range(rounds):
        # 32 x 32 bits do not fit into int64: the factor is split into halves of 16.
        upper = multipliers * (even >> 16) + (multipliers * (even & 0xFFFF) >> 16)
        low = (multipliers * (even & 0xFFFF) & 0xFFFF) | ((upper & 0xFFFF) << 16)
        even = (upper >> 16).flip(0) ^ odd ^ ((key + number * steps) & _LOW)
        odd = low.flip(0)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


def uniform(ids: torch.Tensor, *, keys: tuple[tuple[int, int], ...], epoch: int | torch.Tensor = 0) -> torch.Tensor:
    """Four numbers in [0, 1) for each sample and key: those of `torchslip.random.uniform`, to 24 bits.

    Args:
        ids: int64 ``[B]``.
        keys: Pairs of a key from `torchslip.random.derive_key` and a block number.
        epoch: 0 to 2**32 - 1; a number, or int64 ``[B]``.

    Returns:
        float32 ``[B, 4 * len(keys)]``.
    """
    words = tuple((key & _LOW, key >> 32, block) for key, block in keys)
    return _uniform(ids, words, epoch)


def uniform_of(
    ids: torch.Tensor, requests: tuple[Request, ...], *, seed: int, view: int | str, epoch: int | torch.Tensor
) -> torch.Tensor:
    """All numbers that the transforms of a chain take, in one go: float32 ``[B, 4 * blocks]``."""
    return _uniform(ids, _words(requests, seed, view), epoch)


def _words(requests: tuple[Request, ...], seed: int, view: int | str) -> tuple[tuple[int, int, int], ...]:
    return _hash(requests, seed, view)


# What `torch.compiler.assume_constant_result` does; that decorator would import the compiler, which takes a second.
_words._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=512)
def _hash(requests: tuple[Request, ...], seed: int, view: int | str) -> tuple[tuple[int, int, int], ...]:
    words = []
    for own_seed, path, blocks in requests:
        parts = (seed, "augment", view) if own_seed is None else (own_seed, "augment", None)
        key = derive_key(*parts, path)
        words += [(key & _LOW, key >> 32, block) for block in range(blocks)]
    return tuple(words)


def _uniform(ids: torch.Tensor, words: tuple[tuple[int, int, int], ...], epoch: int | torch.Tensor) -> torch.Tensor:
    if not words:
        return torch.empty(len(ids), 0, device=ids.device)
    table = constant(words, ids.device, torch.int64)
    column = ids[:, None]
    epochs = epoch[..., None] if isinstance(epoch, torch.Tensor) else torch.full_like(column, epoch)
    shape = (len(ids), len(words))
    counter = torch.stack(
        [part.expand(shape) for part in (column & _LOW, (column >> 32) & _LOW, epochs & _LOW, table[None, :, 2])]
    )
    drawn = philox4x32(counter, table[:, :2].T[:, None, :])
    return _to_float(drawn).permute(1, 2, 0).flatten(1)


def noise(keys: torch.Tensor, count: int) -> torch.Tensor:
    """A field of numbers in (0, 1) for each key, of 16 bits: float32 ``[B, count]``.

    Args:
        keys: int64 ``[B, 2]``, words of 32 bits.
        count: How many.
    """
    blocks = torch.arange(-(-count // 8), device=keys.device)
    shape = (len(keys), len(blocks))
    counter = torch.stack([blocks.expand(shape), *[torch.full_like(blocks, _NOISE_TAG).expand(shape)] * 3])
    drawn = philox4x32(counter, keys.T[:, :, None], rounds=_ROUNDS_OF_NOISE)
    halves = torch.cat((drawn >> 16, drawn & 0xFFFF))
    return (halves.to(torch.float32) + 0.5).mul_(2.0**-16).permute(1, 2, 0).flatten(1)[:, :count]


def _to_float(words: torch.Tensor) -> torch.Tensor:
    """24 of 32 bits: exact in float32, and never 1."""
    return (words >> 8).to(torch.float32) * 2.0**-24
