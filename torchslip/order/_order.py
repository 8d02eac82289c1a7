"""Which sample stands at position p of epoch e."""

from __future__ import annotations

import hashlib
import operator
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from torchslip.order._blocks import Blocks, EqualBlocks, Layout, ListedBlocks
from torchslip.order._permutation import Permutation

__all__ = ["Fingerprint", "Order", "Sequential", "Shuffled", "Subset"]

Fingerprint = dict[str, int | str | None]


@runtime_checkable
class Order(Protocol):
    """A pure function from ``(epoch, position)`` to a sample id.

    Any position can be computed alone, on any machine, in any process; there is no state. ``len(order)`` is the number
    of positions in an epoch.
    """

    def __len__(self) -> int: ...

    def at(self, positions: npt.ArrayLike, *, epoch: int) -> npt.NDArray[np.int64]:
        """The sample ids at `positions` of `epoch`.

        Args:
            positions: Integers in ``[0, len(order))``, any shape.
            epoch: 0 or more.

        Returns:
            int64, the shape of `positions`.

        Raises:
            IndexError: If a position lies outside the epoch.
        """

    @property
    def fingerprint(self) -> Fingerprint:
        """What makes this order what it is, as flat names and values; equal orders have equal fingerprints."""


class Sequential:
    """Samples in the order in which they are stored.

    Args:
        length: The number of samples, or anything that has a `len`, such as a source.
    """

    def __init__(self, length: int | _Sized) -> None:
        self._length = _length_of(length)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Sequential({self._length})"

    def at(self, positions: npt.ArrayLike, *, epoch: int) -> npt.NDArray[np.int64]:
        """The positions themselves, whatever the epoch. See `Order.at`."""
        return _checked(positions, self._length).copy()

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Order.fingerprint`."""
        return {"order": "sequential", "length": self._length}


class Subset:
    """Only these samples, in this order: few-shot sets, one class, or the one sample that one is debugging.

    Args:
        indices: Sample ids; they may repeat. ``ts.Shuffled(ts.Subset(indices), seed=0)`` shuffles them.

    Raises:
        ValueError: If `indices` is not a flat list of integers >= 0.
    """

    def __init__(self, indices: npt.ArrayLike) -> None:
        given = np.asarray(indices)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ValueError(f"indices must be a flat list of integers, got {given.dtype} {list(given.shape)}.")
        self._indices = given.astype(np.int64)
        self._indices.setflags(write=False)
        if given.size and self._indices.min() < 0:
            raise ValueError(f"indices must be 0 or more, got {self._indices.min()}.")

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"Subset(<{len(self)} indices>)"

    def at(self, positions: npt.ArrayLike, *, epoch: int) -> npt.NDArray[np.int64]:
        """``indices[positions]``, whatever the epoch. See `Order.at`."""
        return self._indices[_checked(positions, len(self))]

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Order.fingerprint`."""
        digest = hashlib.sha256(self._indices.astype("<i8").tobytes()).hexdigest()
        return {"order": "subset", "length": len(self), "indices": f"sha256:{digest}"}


class Shuffled:
    """A new permutation in every epoch, from a keyed bijection instead of a stream of random numbers.

    Without `window` the whole set is shuffled. With it, the order has two levels, so that a reader needs to hold only
    `window` blocks at a time: blocks are permuted, and samples are permuted inside each run of `window` blocks.

    Args:
        base: The number of samples, anything that has a `len`, or another order, whose positions are shuffled.
        seed: Different seeds give unrelated orders.
        window: How many blocks are mixed with each other; ``None`` mixes everything. Larger mixes better and needs
            more cache.
        blocks: The size of the blocks: one integer, or the list of shard sizes. Only used with `window`.

    Raises:
        ValueError: If `window` or `blocks` is not positive, or if listed `blocks` don't add up to the length.
    """

    def __init__(
        self,
        base: int | _Sized | Order,
        *,
        seed: int = 0,
        window: int | None = None,
        blocks: int | npt.ArrayLike = 1024,
    ) -> None:
        self._base: Order = base if isinstance(base, Order) else Sequential(base)
        self._length = len(self._base)
        self._seed = operator.index(seed)
        self._window = None if window is None else operator.index(window)
        self._blocks: Blocks | None = None
        self._laid_out: tuple[int, Permutation, Layout] | None = None
        self._block_fingerprint: int | str | None = None
        if self._window is not None:
            if self._window < 1:
                raise ValueError(f"window must be at least 1 block, or None for the whole set; got {window}.")
            self._blocks, self._block_fingerprint = _make_blocks(blocks, self._length)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"Shuffled({self._base!r}, seed={self._seed}, window={self._window})"

    def at(self, positions: npt.ArrayLike, *, epoch: int) -> npt.NDArray[np.int64]:
        """The sample ids at `positions` of `epoch`. See `Order.at`."""
        given, epoch = _checked(positions, self._length), operator.index(epoch)
        if not given.size:
            return given.copy()
        if self._blocks is None:
            inner = Permutation(self._length, self._seed, epoch, "samples")(given)
        else:
            inner = self._in_windows(given.reshape(-1), epoch).reshape(given.shape)
        return self._base.at(inner, epoch=epoch)

    def _in_windows(self, positions: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        assert self._blocks is not None and self._window is not None
        if self._laid_out is None or self._laid_out[0] != epoch:
            # Kept for the epoch: with 100,000 listed shards it takes 8 ms.
            block_at = Permutation(self._blocks.count, self._seed, epoch, "blocks")
            self._laid_out = epoch, block_at, self._blocks.lay_out(block_at)
        _, block_at, layout = self._laid_out
        windows = layout.slot_of(positions) // self._window
        shuffled = np.empty_like(positions)
        for window in np.unique(windows):
            first_slot = window * self._window
            bounds = np.array([first_slot, min(first_slot + self._window, self._blocks.count)])
            begin, end = layout.start(bounds)
            here = windows == window
            permutation = Permutation(int(end - begin), self._seed, epoch, "window", int(window))
            shuffled[here] = begin + permutation(positions[here] - begin)
        slots = layout.slot_of(shuffled)
        return self._blocks.first_sample(block_at(slots)) + shuffled - layout.start(slots)

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Order.fingerprint`."""
        own: Fingerprint = {
            "order": "shuffled/1",
            "length": self._length,
            "seed": self._seed,
            "window": self._window,
            "blocks": self._block_fingerprint,
        }
        of = {f"of {name}": value for name, value in self._base.fingerprint.items()}
        return own if isinstance(self._base, Sequential) else own | of


class _Sized(Protocol):
    def __len__(self) -> int: ...


def _length_of(length: int | _Sized) -> int:
    number = operator.index(length) if isinstance(length, (int, np.integer)) else len(length)
    if number < 0:
        raise ValueError(f"The length must be 0 or more, got {number}.")
    return number


def _make_blocks(blocks: int | npt.ArrayLike, length: int) -> tuple[Blocks, int | str]:
    sizes = np.asarray(blocks)
    if sizes.ndim == 0:
        size = operator.index(sizes.item())
        if size < 1:
            raise ValueError(f"blocks must be at least 1 sample each, got {size}.")
        return EqualBlocks(max(length, 1), size), size
    sizes = sizes.astype(np.int64)
    if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != length:
        raise ValueError(
            f"blocks must list sizes >= 0 that add up to the {length} samples; "
            f"got {sizes.size} sizes, sum {sizes.sum()}."
        )
    digest = hashlib.sha256(sizes.astype("<i8").tobytes()).hexdigest()
    return ListedBlocks(sizes), f"sha256:{digest}"


def _checked(positions: npt.ArrayLike, length: int) -> npt.NDArray[np.int64]:
    given = np.asarray(positions, np.int64)
    if given.size and (given.min() < 0 or given.max() >= length):
        raise IndexError(f"Positions must lie in [0, {length}), got {given.min()} to {given.max()}.")
    return given
