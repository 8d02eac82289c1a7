"""Which positions of an epoch form a batch, when batches have a size in bytes.

A plan is a pure function of the sizes of the samples in the order of the epoch and of the limits: the same for any
number of ranks and workers. A state is therefore a position like any other. Going on from one means to plan the epoch
again, which is arithmetic on sizes, and to begin behind that position.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchslip.order import Slice, Tail, Topology

__all__ = ["SLO_MAX", "WINDOW", "Band", "BytePlan", "ByteShare", "jitter", "plan_batches", "plan_counts"]

Int64s = npt.NDArray[np.int64]

WINDOW = 128
"""How many batches the spread of sizes is taken over."""

SLO_MAX = 1.25
"""The largest p95 / p50 of batch sizes that is accepted."""

_RELAX_BELOW = 1.10
_LOWER_PCT, _UPPER_PCT = 85, 115
_LOWER_MAX_PCT, _UPPER_MAX_PCT, _GAP_PCT = 95, 130, 10
_TIGHTEN_PCT, _RELAX_PCT, _COOLDOWN = 2, 1, 16


@dataclass(frozen=True, slots=True)
class Band:
    """Between which parts of the target a batch may be closed, in per cent; and what led to it.

    Attributes:
        batch: The number of the batch, in the epoch, after which it holds.
        lower_pct: From here on a batch is closed if the next sample would carry it above the upper edge.
        upper_pct: The upper edge.
        p95_over_p50: The spread of the 128 batches before.
        breached: Whether that was above the limit of 1.25.
    """

    batch: int
    lower_pct: int
    upper_pct: int
    p95_over_p50: float = 1.0
    breached: bool = False

    def after(self, batch: int, spread: float) -> Band:
        """The band that follows from the spread after `batch`."""
        lower, upper = self.lower_pct, self.upper_pct
        if spread > SLO_MAX:
            lower = min(lower + _TIGHTEN_PCT, _LOWER_MAX_PCT)
            upper = min(max(upper - _TIGHTEN_PCT, lower + _GAP_PCT), _UPPER_MAX_PCT)
        elif spread < _RELAX_BELOW:
            lower = max(lower - _RELAX_PCT, _LOWER_PCT)
            upper = min(upper + _RELAX_PCT, _UPPER_PCT)
        return Band(batch, lower, upper, spread, spread > SLO_MAX)

    def same_edges(self, other: Band) -> bool:
        """Whether both have the same edges."""
        return (self.lower_pct, self.upper_pct) == (other.lower_pct, other.upper_pct)


@dataclass(frozen=True, slots=True)
class BytePlan:
    """The batches of an epoch.

    Attributes:
        ends: The position behind each batch, int64 ``[batches]``.
        sizes: Bytes of each batch, int64 ``[batches]``; -1 where a source does not know sizes.
        bands: The bands in the order in which they came to hold; the first one from the start.
    """

    ends: Int64s
    sizes: Int64s
    bands: tuple[Band, ...] = (Band(-1, _LOWER_PCT, _UPPER_PCT),)

    def bands_around(self, batch: int) -> tuple[Band, Band | None]:
        """The band that held when `batch` was closed, and the one that follows from it, if there is a new one."""
        place = bisect_left(self.bands, batch, key=lambda band: band.batch)
        follows = place < len(self.bands) and self.bands[place].batch == batch
        return self.bands[place - 1], self.bands[place] if follows else None


def jitter(sizes: Int64s) -> tuple[int, int]:
    """The 50th and the 95th percentile of batch sizes; 0 without any."""
    if not len(sizes):
        return 0, 0
    ranked = np.sort(sizes)
    return int(ranked[(len(ranked) - 1) // 2]), int(ranked[95 * (len(ranked) - 1) // 100])


def plan_batches(
    sizes: Int64s,
    *,
    batch_size: int,
    target_bytes: int,
    max_bytes: int,
    refuse: Callable[[int], None] | None = None,
) -> BytePlan:
    """Divide an epoch into batches.

    A batch is closed when it has `batch_size` samples; when it has reached the target; when the next sample would carry
    it above the maximum; or when it has reached the lower edge of the band and the next sample would carry it above the
    upper edge. The band is 85 to 115 % of the target; it gets narrower, from the very next batch on, while p95 / p50 of
    the last 128 batches is above 1.25, and wider again below 1.10. A sample above the maximum forms a batch alone.

    Args:
        sizes: Bytes of the sample at each position, int64 ``[positions]``.
        batch_size: The most samples of a batch.
        target_bytes: What batches strive for.
        max_bytes: No batch of several samples is larger.
        refuse: Called with the position of a sample above `max_bytes`, to raise.
    """
    total = len(sizes)
    if refuse is not None:
        for position in np.flatnonzero(sizes > max_bytes).tolist():
            refuse(position)
    if total == 0:
        return BytePlan(np.zeros(0, np.int64), np.zeros(0, np.int64))
    before = np.concatenate(([0], np.cumsum(sizes)))  # bytes before each position
    band = Band(-1, _LOWER_PCT, _UPPER_PCT)
    bands, ends, planned = [band], [], []
    recent: deque[int] = deque(maxlen=WINDOW)
    begin, quiet_until = 0, 0
    while begin < total:
        end = _close(before, begin, min(begin + batch_size, total), target_bytes, max_bytes, band)
        ends.append(end)
        planned.append(int(before[end] - before[begin]))
        recent.append(planned[-1])
        if len(recent) == WINDOW and len(ends) >= quiet_until:
            p50, p95 = jitter(np.array(recent))
            following = band.after(len(ends) - 1, p95 / max(p50, 1))
            if following.breached or not following.same_edges(band):
                bands.append(following)
                band, quiet_until = following, len(ends) + _COOLDOWN
        begin = end
    return BytePlan(np.array(ends), np.array(planned), tuple(bands))


def plan_counts(total: int, *, batch_size: int) -> BytePlan:
    """The plan where sizes are not known: every batch has `batch_size` samples, but the last."""
    ends = np.minimum(np.arange(batch_size, total + batch_size, batch_size, dtype=np.int64), total)
    return BytePlan(ends, np.full(len(ends), -1, np.int64))


def _close(before: Int64s, begin: int, furthest: int, target: int, most: int, band: Band) -> int:
    """Where the batch that begins at `begin` ends."""
    start = before[begin]
    lower, upper = min(target * band.lower_pct // 100, most), min(target * band.upper_pct // 100, most)
    if before[furthest] - start < min(target, lower):
        return furthest
    # The first end whose bytes reach the target or the lower edge, and the first that would pass an edge.
    edges = np.array((target, lower, upper + 1, most + 1)) + start
    reach_target, reach_lower, above_upper, above_most = (
        begin + np.searchsorted(before[begin : furthest + 1], edges)
    ).tolist()
    end = min(furthest, reach_target, above_most - 1, max(reach_lower, above_upper - 1))
    return max(int(end), begin + 1)


@dataclass(frozen=True, slots=True)
class ByteShare:
    """The division of a plan over ranks: as `Share`, with the batches of the plan as the unit.

    Step k gives rank r batch ``k * world_size + r``, counted from the one that holds the first position.

    Attributes:
        plan: The batches of the epoch.
        length: Positions in the epoch.
        topology: Which rank this is.
        tail: What becomes of a last step that has not a batch for every rank. ``drop`` leaves it out; ``pad`` repeats
            batches from the start of the epoch, marked as not valid; ``uneven`` gives empty batches.
    """

    plan: BytePlan
    length: int
    topology: Topology
    tail: Tail = "uneven"

    def _first(self, start: int) -> int:
        return int(np.searchsorted(self.plan.ends, start, side="right"))

    def _span(self, index: int) -> tuple[int, int]:
        return (int(self.plan.ends[index - 1]) if index else 0), int(self.plan.ends[index])

    def index(self, start: int, number: int) -> int:
        """The number in the plan of the batch that this rank gets in step `number`, counted from position `start`."""
        return self._first(start) + number * self.topology.world_size + self.topology.rank

    def count(self, start: int = 0) -> int:
        """How many batches every rank gets from position `start` to the end of the epoch."""
        left = len(self.plan.ends) - self._first(start)
        world = self.topology.world_size
        return left // world if self.tail == "drop" else -(-left // world)

    def end(self, start: int, batches: int) -> int:
        """The position after `batches` steps from `start`; the end of the epoch after the last one."""
        if batches >= self.count(start):
            return max(self.length, start)
        return self._span(self._first(start) + batches * self.topology.world_size)[0] if batches else start

    def batch(self, start: int, number: int) -> Slice:
        """Batch `number`, counted from position `start`, of this rank."""
        index, valid = self.index(start, number), True
        if index >= len(self.plan.ends):
            if self.tail != "pad":
                return Slice(np.zeros(0, np.int64), np.zeros(0, np.bool_))
            index, valid = index % len(self.plan.ends), False
        begin, end = self._span(index)
        if valid:
            begin = max(begin, start)  # a state from another division: the batch goes on from there
        return Slice(np.arange(begin, end, dtype=np.int64), np.full(end - begin, valid))

    def first_position(self, start: int, number: int) -> int:
        """The first position of the step: the same on every rank."""
        return self.end(start, number) if number < self.count(start) else self.length
