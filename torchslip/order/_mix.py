"""Several sources as one order."""

from __future__ import annotations

import bisect
import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchslip.order._mix_permutations import mix_keys, permute_each
from torchslip.order._mix_plan import Batching, Change, EpochPlan, Planner, SourceExhausted
from torchslip.order._mix_weights import Weights
from torchslip.order._mix_windows import Windows
from torchslip.order._order import Fingerprint, Order, Sequential, _checked
from torchslip.random import derive_key

__all__ = ["MixedOrder", "Schedule", "check_global_batch"]

Schedule = Sequence[tuple[int | tuple[int, int], Sequence[float]]]
"""From when on (an epoch, or an epoch and a position in it) which weights hold."""

_Ints = npt.NDArray[np.int64]

# How the samples of a source follow each other.
_WHOLE, _WINDOWED, _STORED, _ORDER = range(4)


@dataclass(frozen=True, slots=True)
class _Epoch:
    """What depends on the epoch: its plan, a key for each segment, and how far each source was when it began."""

    number: int
    plan: EpochPlan
    keys: list[int]
    passes: _Ints
    starts: _Ints


class MixedOrder:
    """Several sources as one order, in the proportions of their weights; O(sources) memory.

    Which source stands at a position, and which of its samples, is a function of ``(seed, epoch, position)`` alone. In
    an epoch each source gets its weight times the length of the epoch, in whole samples (largest remainders). Among any
    n consecutive positions, the samples of a source differ from n times its share of the epoch by less than `bound`,
    which is at most the number of sources; the rounding to whole samples adds at most n divided by the length.

    Samples of one source come in the order of that source: all of them once, before any comes again. With
    ``source_exhausted="repeat"`` a pass over a source goes on over the epochs, and every pass has an order of its own;
    else a pass begins with each epoch.

    Args:
        sources: For each source its number of samples, which are then shuffled anew in every pass, or an order, which
            is asked with the number of the pass as its epoch.
        weights: Relative weights; default: the lengths of the sources.
        seed: Different seeds give unrelated orders.
        source_exhausted: What happens to an epoch that needs more samples of a source than it has. ``error`` refuses
            it here, before anything is read; ``allow`` lets the source leave, while the others go on in their
            proportions; ``repeat`` begins the source anew.
        epoch_size: Positions of an epoch. Default: with ``error`` the longest epoch that exhausts no source, with
            ``allow`` and ``repeat`` the number of all samples.
        batching: ``random`` mixes sample by sample. ``per_source`` takes each global batch from one source.
            ``stratified`` gives all global batches the same composition, the weights in whole samples of one batch.
            The last two round the epoch down to whole batches.
        batch_size: Samples of a global batch, that is, of all ranks together. ``stratified`` and ``per_source`` need
            it, and hold for batches of that size only; ``random`` ignores it.
        schedule: Weights that change, instead of `weights`: ``[(0, [1, 0]), ((2, 50_000), [1, 1]), (5, [0, 1])]``
            holds the first from the beginning, the second from position 50,000 of epoch 2, the third from epoch 5.
        window: Shuffle a source within this many of its blocks at a time, see `Shuffled`; None: the whole source.
        blocks: For each source the size of its blocks, or the list of their sizes; default: 1,024. Only used with
            `window`, and not for sources that are orders.
        starts: The sample id at which each source begins; default: one after the other.

    Raises:
        ValueError: If arguments are out of range, or a source would be exhausted under ``error``; the text says which
            and how many samples are missing.
    """

    def __init__(
        self,
        sources: Sequence[int | Order],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        source_exhausted: SourceExhausted = "error",
        epoch_size: int | None = None,
        batching: Batching = "random",
        batch_size: int | None = None,
        schedule: Schedule | None = None,
        window: int | None = None,
        blocks: Sequence[int | npt.ArrayLike] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        if not sources:
            raise ValueError("A mixture needs at least one source, got none.")
        self._orders = {i: each for i, each in enumerate(sources) if isinstance(each, Order)}
        lengths = [len(each) if isinstance(each, Order) else operator.index(each) for each in sources]
        if min(lengths) < 0:
            raise ValueError(f"The length of a source must be 0 or more, got {min(lengths)}.")
        self.lengths = lengths
        """Samples of each source."""
        self.source_exhausted = source_exhausted
        """``error``, ``allow`` or ``repeat``."""
        self._lengths = np.array(lengths, np.int64)
        self._seed = operator.index(seed)
        self._batching = batching
        self._changes = _read_schedule(weights, schedule, lengths)
        planner = Planner(lengths, self._changes, exhausted=source_exhausted, batching=batching, batch_size=batch_size)
        self._plans = planner.plans(epoch_size)
        self.batch_size = planner.batch_size
        """Samples of the global batches that `batching` is about; None for ``random``."""
        begins = np.cumsum([0, *lengths[:-1]]) if starts is None else starts
        self._starts = np.array([operator.index(start) for start in begins], np.int64)
        if len(self._starts) != len(lengths):
            raise ValueError(f"starts must have one id per source, {len(lengths)}; got {len(self._starts)}.")
        self._source_keys = np.array(
            [derive_key(self._seed, "mix source", source) for source in range(len(lengths))], np.uint64
        )
        self._window = None if window is None else operator.index(window)
        self._block_fingerprint: str | None = None
        self._kinds = np.array([_kind_of(each) for each in sources])
        if self._window is not None:
            if self._window < 1:
                raise ValueError(f"window must be at least 1 block, or None for the whole source; got {window}.")
            self._use_windows(self._window, [1024] * len(lengths) if blocks is None else blocks)
        self._current: _Epoch | None = None

    def __len__(self) -> int:
        return self._plans[0].length

    def __repr__(self) -> str:
        weights = _short(", ".join(map(str, (change.weights for change in self._changes))))
        return f"MixedOrder(<{len(self._lengths)} sources>, weights={weights}, seed={self._seed}, length={len(self)})"

    @property
    def bound(self) -> float:
        """Among any n consecutive positions, the count of a source is less than this away from its share of them.

        It holds for ``random`` and ``stratified``; with ``per_source``, for batches instead of samples. Windows over
        a change of weights, or over the exit of a source, are compared with the shares on both sides.
        """
        return float(max(segment.word.bound for plan in self._plans for segment in plan.segments))

    def at(self, positions: npt.ArrayLike, *, epoch: int) -> _Ints:
        """The sample ids at `positions` of `epoch`. See `Order.at`."""
        given, epoch = _checked(positions, len(self)), operator.index(epoch)
        sources, ranks = self._place(given.reshape(-1), epoch)
        now = self._at_epoch(epoch)
        passes, ranks = np.divmod(ranks + now.starts[sources], self._lengths[sources])
        passes += now.passes[sources]
        if self._kinds.any():
            inner = self._samples_of_kinds(ranks, sources, passes)
        else:
            inner = self._samples_of_whole(ranks, sources, passes)
        return (inner + self._starts[sources]).reshape(given.shape)

    def source_at(self, positions: npt.ArrayLike, *, epoch: int) -> _Ints:
        """The number of the source at each of `positions`: int64, the shape of `positions`."""
        given = _checked(positions, len(self))
        return self._place(given.reshape(-1), operator.index(epoch))[0].reshape(given.shape)

    def counts(self, *, epoch: int, position: int | None = None) -> _Ints:
        """How many of the first `position` samples of `epoch` are of each source; default: of the whole epoch."""
        end = len(self) if position is None else operator.index(position)
        if not 0 <= end <= len(self):
            raise IndexError(f"position must lie in [0, {len(self)}], got {end}.")
        now = self._at_epoch(operator.index(epoch))
        number = bisect.bisect([segment.start for segment in now.plan.segments], end) - 1
        return now.plan.segments[number].counts_before(end, now.keys[number])

    def progress(self, *, epoch: int, position: int | None = None) -> tuple[_Ints, _Ints]:
        """How far each source is after `position` samples of `epoch`.

        Returns:
            The passes that have ended since the beginning, and the samples of the one in progress: int64 ``[sources]``
            each. Unless sources are repeated, a pass ends with its epoch.
        """
        now = self._at_epoch(operator.index(epoch))
        counts = self.counts(epoch=epoch, position=position)
        passes, ranks = np.divmod(counts + now.starts, np.maximum(self._lengths, 1))
        return passes + now.passes, ranks

    def weights_at(self, *, epoch: int, position: int = 0) -> list[float]:
        """The weights that hold at `position` of `epoch`; they add up to 1."""
        now = operator.index(epoch), operator.index(position)
        parts = [change for change in self._changes if (change.epoch, change.position) <= now][-1].weights.parts
        return [part / sum(parts) for part in parts]

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Order.fingerprint`."""
        weights = [str(change.weights) for change in self._changes]
        schedule = None
        if len(self._changes) > 1:
            schedule = _short(" ".join(f"{c.epoch}+{c.position}={c.weights}" for c in self._changes))
        orders = {str(i): order.fingerprint for i, order in self._orders.items()}
        sources = json.dumps([self._lengths.tolist(), self._starts.tolist(), orders], sort_keys=True)
        return {
            "order": "mixed/1",
            "length": len(self),
            "seed": self._seed,
            "sources": f"{len(self._lengths)} sha256:{hashlib.sha256(sources.encode()).hexdigest()}",
            "weights": _short(weights[0]),
            "schedule": schedule,
            "window": self._window if self._block_fingerprint else None,
            "blocks": self._block_fingerprint,
            "source_exhausted": self.source_exhausted,
            "batching": self._batching,
            "batch_size": self.batch_size,
        }

    def _place(self, positions: _Ints, epoch: int) -> tuple[_Ints, _Ints]:
        """The source at each position, and how many samples of that source come before it in the epoch."""
        now = self._at_epoch(epoch)
        segments = now.plan.segments
        if len(segments) == 1:
            return segments[0].place(positions, now.keys[0])
        sources, ranks = np.empty_like(positions), np.empty_like(positions)
        numbers = np.searchsorted([segment.start for segment in segments], positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            sources[here], ranks[here] = segments[number].place(positions[here], now.keys[number])
        return sources, ranks

    def _samples_of_whole(self, ranks: _Ints, sources: _Ints, passes: _Ints) -> _Ints:
        return permute_each(ranks, self._lengths[sources], mix_keys(self._source_keys[sources], passes))

    def _samples_of_kinds(self, ranks: _Ints, sources: _Ints, passes: _Ints) -> _Ints:
        inner = np.empty_like(ranks)
        kinds = self._kinds[sources]
        whole, windowed, stored = kinds == _WHOLE, kinds == _WINDOWED, kinds == _STORED
        inner[stored] = ranks[stored]
        if whole.any():
            inner[whole] = self._samples_of_whole(ranks[whole], sources[whole], passes[whole])
        if windowed.any():
            of = self._in_windows[sources[windowed]]
            inner[windowed] = self._windows(ranks[windowed], of, passes[windowed], self._window_keys)
        for source in np.unique(sources[kinds == _ORDER]).tolist():
            order, here = self._orders[source], sources == source
            for number in np.unique(passes[here]).tolist():
                at = here & (passes == number)
                inner[at] = order.at(ranks[at], epoch=number)
        return inner

    def _use_windows(self, window: int, blocks: Sequence[int | npt.ArrayLike]) -> None:
        if len(blocks) != len(self.lengths):
            raise ValueError(f"blocks must have one entry per source, {len(self.lengths)}; got {len(blocks)}.")
        sizes = [_block_sizes(each, length) for each, length in zip(blocks, self.lengths, strict=True)]
        # A source that lies in one window is shuffled whole.
        self._kinds[[kind == _WHOLE and len(each) > window for kind, each in zip(self._kinds, sizes, strict=True)]] = (
            _WINDOWED
        )
        windowed = np.flatnonzero(self._kinds == _WINDOWED)
        self._in_windows = np.cumsum(self._kinds == _WINDOWED) - 1
        self._windows = Windows([sizes[source] for source in windowed.tolist()], window)
        self._window_keys = self._source_keys[windowed]
        digest = hashlib.sha256()
        for source in windowed.tolist():
            digest.update(source.to_bytes(8, "little") + sizes[source].astype("<i8").tobytes())
        self._block_fingerprint = f"sha256:{digest.hexdigest()}" if len(windowed) else None

    def _at_epoch(self, epoch: int) -> _Epoch:
        current = self._current
        if current is None or current.number != epoch:
            if epoch < 0:
                raise ValueError(f"epoch must be 0 or more, got {epoch}.")
            plan = [plan for plan in self._plans if plan.first_epoch <= epoch][-1]
            keys = [derive_key(self._seed, epoch, "mix", number) for number in range(len(plan.segments))]
            passes = [(epoch, 0)] * len(self._lengths)
            if self.source_exhausted == "repeat":
                taken = self._taken_before(epoch)
                passes = [divmod(count, max(n, 1)) for count, n in zip(taken, self._lengths.tolist(), strict=True)]
            self._current = current = _Epoch(
                epoch,
                plan,
                keys,
                np.array([number % (1 << 62) for number, _ in passes], np.int64),
                np.array([start for _, start in passes], np.int64),
            )
        return current

    def _taken_before(self, epoch: int) -> list[int]:
        """Samples of each source in all epochs before `epoch`."""
        taken = [0] * len(self._lengths)
        ends = [*(plan.first_epoch for plan in self._plans[1:]), epoch]
        for plan, end in zip(self._plans, ends, strict=True):
            epochs = max(min(end, epoch) - plan.first_epoch, 0)
            taken = [so_far + epochs * count for so_far, count in zip(taken, plan.counts, strict=True)]
        return taken


def check_global_batch(order: Order, samples: int) -> None:
    """Refuse global batches of another size than `order` was made for.

    Raises:
        ValueError: If `order` mixes by batches, and not by batches of `samples` samples.
    """
    wanted = getattr(order, "batch_size", None)
    if wanted is not None and wanted != samples:
        raise ValueError(
            f"The order mixes by global batches of {wanted} samples, but here they have {samples} (batch_size times "
            "the number of ranks). Pass that number as batch_size to the mixture, or use batching='random'."
        )


def _read_schedule(weights: Sequence[float] | None, schedule: Schedule | None, lengths: Sequence[int]) -> list[Change]:
    if schedule is None:
        if weights is None and not any(lengths):
            raise ValueError("All sources are empty.")
        points: Schedule = [(0, lengths if weights is None else weights)]
    elif weights is not None:
        raise ValueError("Pass either weights or a schedule, whose entries have weights of their own.")
    else:
        points = schedule
    changes = []
    for when, each in points:
        epoch, position = when if isinstance(when, tuple) else (when, 0)
        changes.append(Change(operator.index(epoch), operator.index(position), Weights.parse(each, len(lengths))))
    times = [(change.epoch, change.position) for change in changes]
    if not times or times[0] != (0, 0) or sorted(set(times)) != times:
        raise ValueError(
            f"A schedule begins at epoch 0 and goes on in time, [(0, weights), ((epoch, position), weights), ...]; "
            f"got {times}."
        )
    for change in changes:
        for source, (part, length) in enumerate(zip(change.weights.parts, lengths, strict=True)):
            if part and not length:
                raise ValueError(f"Source {source} has no samples, but a weight; leave it out, or give it weight 0.")
    return changes


def _kind_of(source: int | Order) -> int:
    if isinstance(source, Sequential):
        return _STORED
    return _ORDER if isinstance(source, Order) else _WHOLE


def _block_sizes(blocks: int | npt.ArrayLike, length: int) -> _Ints:
    sizes = np.asarray(blocks, np.int64)
    if sizes.ndim == 0 and sizes >= 1:
        return np.diff(np.append(np.arange(0, length, int(sizes)), length))
    if sizes.ndim != 1 or (sizes < 0).any() or sizes.sum() != length:
        raise ValueError(
            f"The blocks of a source must be a size >= 1, or list sizes >= 0 that add up to its {length} samples; got "
            f"{sizes if sizes.ndim == 0 else f'{sizes.size} sizes, sum {sizes.sum()}'}."
        )
    return sizes


def _short(text: str) -> str:
    """Short enough for an error message."""
    return text if len(text) <= 100 else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
