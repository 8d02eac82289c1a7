"""How many samples an epoch of a mixture takes from which source, before any of them is read."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from torchslip.order._mix_weights import Weights, apportion
from torchslip.order._mix_word import MAX_SLOTS, Word

__all__ = ["Batching", "Change", "EpochPlan", "Planner", "Segment", "SourceExhausted"]

Batching = Literal["random", "stratified", "per_source"]
SourceExhausted = Literal["error", "allow", "repeat"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """From `position` of `epoch` on, these weights hold."""

    epoch: int
    position: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class Segment:
    """Positions of an epoch that are mixed in one way.

    Attributes:
        start: Its first position.
        taken: Samples of each source that come before it in the epoch, int64 ``[sources]``.
        slot_size: Consecutive samples of one source; more than 1 for ``per_source``.
        slot_counts: Slots of each source in one period of the word.
    """

    start: int
    taken: _Ints
    slot_size: int
    slot_counts: tuple[int, ...]

    @property
    def word(self) -> Word:
        """The source of each slot."""
        return _make_word(self.slot_counts)

    def place(self, positions: _Ints, key: int) -> tuple[_Ints, _Ints]:
        """The source at each position, and how many samples of that source come before it in the epoch."""
        slots, offsets = np.divmod(positions - self.start, self.slot_size)
        sources, before = self.word.at(slots, key)
        return sources, self.taken[sources] + before * self.slot_size + offsets

    def counts_before(self, position: int, key: int) -> _Ints:
        """How many samples of each source come before `position` in the epoch."""
        slot, offset = divmod(position - self.start, self.slot_size)
        counts = self.taken + self.word.counts_before(slot, key) * self.slot_size
        if offset:
            counts[self.word.at(np.array([slot]), key)[0]] += offset
        return counts


# An epoch from which a thousand sources leave one by one has a thousand words, of which one is in use at a time.
@functools.lru_cache(maxsize=32)
def _make_word(counts: tuple[int, ...]) -> Word:
    return Word(counts)


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """All epochs from `first_epoch` to the next plan.

    Attributes:
        first_epoch: The first epoch of this plan.
        segments: Without gaps, from position 0 to `length`.
        counts: Samples of each source in an epoch.
        length: Positions of an epoch.
    """

    first_epoch: int
    segments: tuple[Segment, ...]
    counts: tuple[int, ...]
    length: int


class Planner:
    """What is mixed, and how: makes the plans.

    Args:
        lengths: Samples of each source.
        changes: The weights, from epoch 0 and position 0 on.
        exhausted: See `MixedOrder`.
        batching: See `MixedOrder`.
        batch_size: Samples of a global batch, where `batching` goes by batches.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        changes: Sequence[Change],
        *,
        exhausted: SourceExhausted,
        batching: Batching,
        batch_size: int | None,
    ) -> None:
        for name, value, options in (
            ("source_exhausted", exhausted, get_args(SourceExhausted)),
            ("batching", batching, get_args(Batching)),
        ):
            if value not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}; got {value!r}.")
        if batching != "random" and batch_size is None:
            raise ValueError(
                f"batching={batching!r} needs batch_size=, the samples of a global batch: those of all ranks together."
            )
        self._lengths, self._changes, self._exhausted, self._batching = lengths, changes, exhausted, batching
        self.batch_size = None if batching == "random" else operator.index(batch_size or 0)
        """Samples of a global batch, None if the order does not depend on it."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self._unit = self.batch_size or 1
        self._slot_size = self._unit if batching == "per_source" else 1

    def plans(self, epoch_size: int | None) -> list[EpochPlan]:
        """The plan of each run of equal epochs, in order; all have the same length.

        Raises:
            ValueError: If `epoch_size` cannot be had, or not without exhausting a source where that is an error.
        """
        length = self._default_length() if epoch_size is None else operator.index(epoch_size)
        if epoch_size is not None and length < 1:
            raise ValueError(f"epoch_size must be at least 1 sample, got {length}.")
        if length > MAX_SLOTS:
            raise ValueError(f"An epoch can have at most 2**41 samples, got {length}; pass a smaller epoch_size.")
        length -= length % self._unit
        plans = self._plans_of(length)
        if self._exhausted == "error":
            self._refuse_exhausted(plans)
        shortest = min(plan.length for plan in plans)
        if shortest < length and epoch_size is not None:
            raise ValueError(
                f"All sources together are exhausted after {shortest} samples, epoch_size is {epoch_size}. Pass a "
                "smaller epoch_size, or source_exhausted='repeat'."
            )
        return plans if shortest == length else self._plans_of(shortest)

    def _plans_of(self, length: int) -> list[EpochPlan]:
        if not length:
            raise ValueError(
                f"An epoch would have no batch of {self._unit} samples; the sources have {list(self._lengths)}."
            )
        self._check_changes(length)
        return [self._plan(epoch, length) for epoch in self._first_epochs()]

    def _first_epochs(self) -> list[int]:
        """Where a run of equal epochs begins: epochs in which weights change differ from the next one."""
        starts = {change.epoch for change in self._changes}
        return sorted(starts | {change.epoch + 1 for change in self._changes if change.position})

    def _default_length(self) -> int:
        if self._exhausted != "error":
            return sum(self._lengths)
        # The longest epoch that exhausts no source; each change of weights may round up once more.
        spare = len(self._changes) - 1
        longest = []
        for change in self._changes:
            if self._batching == "stratified":
                counts = self._in_batch(change.weights)
                batches = min(n // count for n, count in zip(self._lengths, counts, strict=True) if count)
                longest.append(batches * self._unit)
            else:
                parts = change.weights.parts
                slots = [max(n // self._slot_size - spare, 0) for n in self._lengths]
                fits = (have * sum(parts) // part for have, part in zip(slots, parts, strict=True) if part)
                longest.append(min(fits) * self._slot_size)
        return min(longest)

    def _check_changes(self, length: int) -> None:
        for change in self._changes:
            if change.position >= length or change.position % self._unit:
                multiple = f", a multiple of batch_size={self._unit}" if self.batch_size else ""
                raise ValueError(
                    f"The schedule changes at position {change.position} of epoch {change.epoch}; a position must "
                    f"lie in [0, {length}), the epoch{multiple}."
                )

    def _plan(self, epoch: int, length: int) -> EpochPlan:
        before = [change for change in self._changes if (change.epoch, change.position) <= (epoch, 0)]
        inside = [change for change in self._changes if change.epoch == epoch and change.position]
        starts = [0, *(change.position for change in inside), length]
        segments: list[Segment] = []
        counts = [0] * len(self._lengths)
        position = 0
        for change, start, end in zip([before[-1], *inside], starts, starts[1:], strict=False):
            position = start
            while position < end:
                left = self._left(counts)
                word_counts, slots = self._next(change.weights, left, (end - position) // self._slot_size)
                if not slots:
                    break  # all sources are exhausted
                segments.append(Segment(position, np.array(counts), self._slot_size, tuple(word_counts)))
                position += slots * self._slot_size
                samples = slots // sum(word_counts) * self._slot_size
                counts = [count + samples * each for count, each in zip(counts, word_counts, strict=True)]
            if position < end:
                break
        return EpochPlan(epoch, tuple(segments), tuple(counts), position)

    def _left(self, taken: Sequence[int]) -> list[int] | None:
        """Slots that each source has left, None where they are endless or are checked in the end."""
        if self._exhausted != "allow":
            return None
        return [(n - count) // self._slot_size for n, count in zip(self._lengths, taken, strict=True)]

    def _next(self, weights: Weights, left: list[int] | None, slots: int) -> tuple[list[int], int]:
        """Slots of each source in a period, and how many slots there are until a source is exhausted, or `slots`."""
        if self._batching == "stratified":
            return self._next_stratified(weights, left, slots)
        if left is None:
            return apportion(weights, slots), slots
        if not (active := weights.only([have > 0 for have in left])):
            return [], 0
        # Source i would last for have / part rounds of sum(parts) slots.
        rounds, part = 1, 0
        for have, each in zip(left, active.parts, strict=True):
            if have * part < rounds * each:
                rounds, part = have, each
        if rounds * sum(active.parts) >= slots * part:
            return apportion(active, slots), slots
        counts = [rounds * each // part for each in active.parts]
        return counts, sum(counts)

    def _next_stratified(self, weights: Weights, left: list[int] | None, slots: int) -> tuple[list[int], int]:
        active: Weights | None = weights
        while active:
            counts = self._in_batch(active)
            if left is None:
                return counts, slots
            batches = min(have // count for have, count in zip(left, counts, strict=True) if count)
            if batches:
                return counts, min(batches * self._unit, slots)
            # What cannot fill its share of one batch leaves.
            active = active.only([have >= count for have, count in zip(left, counts, strict=True)])
        return [], 0

    def _in_batch(self, weights: Weights) -> list[int]:
        counts = apportion(weights, self._unit)
        for source, (count, part) in enumerate(zip(counts, weights.parts, strict=True)):
            if part and not count:
                raise ValueError(
                    f"Source {source} has a share of {part / sum(weights.parts):.3g}, which is not one sample of a "
                    f"batch of {self._unit}, so batching='stratified' would never take it. Use a larger batch_size, or "
                    "batching='random'."
                )
        return counts

    def _refuse_exhausted(self, plans: Sequence[EpochPlan]) -> None:
        for plan in plans:
            short = [
                f"source {source} has {have} samples, {count} are needed: {count - have} too few"
                for source, (have, count) in enumerate(zip(self._lengths, plan.counts, strict=True))
                if count > have
            ]
            if short:
                raise ValueError(
                    f"An epoch of {plan.length} samples with these weights exhausts sources (epoch {plan.first_epoch}):"
                    "\n  " + "\n  ".join(short) + "\nPass a smaller epoch_size, other weights, "
                    "source_exhausted='repeat' to begin such a source anew, or 'allow' to go on without it."
                )
