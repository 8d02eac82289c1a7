"""One process's part in sharing an epoch: what to ask of the store next, given what it has answered.

It does no input or output and reads no clock. Every method is a generator that yields `Request`s and is sent the
store's replies, so that tests can stop, delay and interleave any number of processes between any two operations.

Fresh segments are numbered by an atomic counter, so thousands of processes begin without contention. When the counter
has passed the last segment, a process looks through what is open: leases of nobody first, then those of dead holders,
then half of the largest remaining one.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torchslip.order._lease import HeldLease, Lease, LeasedBatch, Segment
from torchslip.order._lease_plan import LeasePlan
from torchslip.order._lease_store import Request, Steps

__all__ = ["LeaseHolder"]

_LOOK_BEHIND_SEGMENTS = 64  # read at once when looking for what dead processes left, in mid-epoch
_LOOK_BEHIND_EVERY = 4  # grants
_LOOK_AROUND_SEGMENTS = 64


class LeaseHolder:
    """Takes leases of an epoch, hands out their batches, acknowledges and renews them.

    Args:
        plan: What the processes of the job have agreed on.
        epoch: The epoch.
        holder: Names this process in this pass; no other pass has the same.
        ttl_seconds: A lease whose beat stands still for so long is taken from its holder.
        want: Leases with batches left to hand out, which it tries to have.
        replay: Whether what was handed out and not acknowledged is handed out again when its holder dies.
    """

    def __init__(
        self, plan: LeasePlan, *, epoch: int, holder: str, ttl_seconds: float, want: int = 1, replay: bool = True
    ) -> None:
        self.plan, self.epoch, self.holder = plan, epoch, holder
        self.outstanding: deque[LeasedBatch] = deque()
        """Handed out and not acknowledged."""
        self.drained = False
        """Every position of the epoch was acknowledged, by whomever."""
        self.open_segments = 0
        """How many were not done when this process last looked at all of them."""
        self.counts: Counter[str] = Counter()
        self.events: list[dict[str, Any]] = []
        self.replay = replay
        self._ttl, self._want = ttl_seconds, want
        self._held: dict[tuple[int, int], HeldLease] = {}
        self._seen: dict[tuple[int, int], tuple[int, float]] = {}
        self._fresh_left = True
        self._grants = 0
        self._low = 0
        self._look_again_at = 0.0
        self._previous_is_drained: bool | None = None
        self._random = random.Random(holder)

    # What the sampler asks for.

    def draw(self, now: float) -> Steps[LeasedBatch | None]:
        """Hand out the next batch; None if there is nothing to take now, and nothing ever if `drained`."""
        while not self.drained:
            if 0 < self._undrawn() < self._want:
                yield from self._take_fresh(now)
            for held in list(self._held.values()):
                batch = yield from self._draw_from(held)
                if batch is not None:
                    return batch
            if now < self._look_again_at or not (yield from self.acquire(now)):
                break
        return None

    def acknowledge(self, count: int) -> Steps[int]:
        """The oldest `count` batches in hand were consumed.

        Returns:
            How many of them had been taken over by others, to whom they count.
        """
        late = 0
        while count:
            first = self.outstanding[0]
            of_lease = list(itertools.takewhile(first.is_of_lease, itertools.islice(self.outstanding, count)))
            held = self._held.get((first.segment, first.token))
            lease = None if held is None else (yield from self._advance(held, of_lease[-1].end))
            if lease is None:
                late += len(of_lease)
            else:
                self.counts["acknowledged_batches"] += len(of_lease)
                self.counts["acknowledged_samples"] += of_lease[-1].end - first.begin
                self._tell("progress", first.segment, lease, acknowledged=of_lease[-1].end - first.begin)
            for _ in of_lease:
                self.outstanding.popleft()
            count -= len(of_lease)
        self.counts["late_batches"] += late
        return late

    def renew(self) -> Steps[None]:
        """Say that this process lives, for each lease that has not changed since the last call."""
        for held in list(self._held.values()):
            if not held.fresh:
                yield from self._change(held, lambda lease: lease)
                self.counts["heartbeats"] += 1
            held.fresh = False

    def release(self) -> Steps[None]:
        """Give up all leases; others hand out again what was not acknowledged."""
        for held in list(self._held.values()):
            while held.key in self._held:
                value = held.segment.released(held.lease).encode()
                current = yield self._compare_set(held.number, held.value, value)
                if current == value:
                    del self._held[held.key]
                    self._tell("range_requeued", held.number, held.lease.freed())
                    self.counts["ranges_requeued"] += 1
                else:
                    self._follow(held, current)
        self.outstanding.clear()

    def acquire(self, now: float) -> Steps[bool]:
        """Take a lease, whatever it comes from; False if there is none to take, and `drained` is set if it is over."""
        if (yield from self._take_fresh(now)) or (yield from self._take_open(now)):
            return True
        # A loader with batches in hand asks with each of them, and to look costs a reading of all open segments.
        self._look_again_at = now + min(max(self._ttl / 100, self.open_segments / 1000), self._ttl / 5)
        return False

    def forget(self) -> None:
        """Begin anew to watch the beats of others, after a time in which the store could not be asked."""
        self._seen.clear()

    def has_lost(self, batch: LeasedBatch) -> bool:
        """Whether a batch in hand belongs to somebody else by now, as far as is known."""
        return (batch.segment, batch.token) not in self._held

    @property
    def active_leases(self) -> int:
        """Leases that this process holds."""
        return len(self._held)

    # Own leases.

    def _undrawn(self) -> int:
        return sum(held.lease.drawn < held.lease.end for held in self._held.values())

    def _draw_from(self, held: HeldLease) -> Steps[LeasedBatch | None]:
        def step(lease: Lease) -> Lease | None:
            drawn = min(lease.drawn + self.plan.batch_size, lease.end)
            if drawn == lease.drawn:
                return None
            return replace(lease, drawn=drawn, position=lease.position if self.replay else drawn)

        lease = yield from self._change(held, step)
        if lease is None:
            return None
        # The end of an epoch may cut a batch short, so its begin is found on the grid of batches.
        begin = (lease.drawn - 1) // self.plan.batch_size * self.plan.batch_size
        batch = LeasedBatch(held.number, lease.token, begin, lease.drawn, self.replay and begin < lease.replayed)
        if self.replay:
            self.outstanding.append(batch)
        self.counts["batches"] += 1
        self.counts["samples"] += batch.end - begin
        self.counts["replayed_batches"] += batch.replayed
        return batch

    def _advance(self, held: HeldLease, position: int) -> Steps[Lease | None]:
        return (yield from self._change(held, lambda lease: replace(lease, position=position)))

    def _change(self, held: HeldLease, step: Callable[[Lease], Lease | None]) -> Steps[Lease | None]:
        """Change a lease of ours; None if `step` says so, or if it is no longer ours."""
        while held.key in self._held:
            wanted = step(held.lease)
            if wanted is None:
                return None
            wanted = replace(wanted, beat=held.lease.beat + 1)
            segment = held.segment.changed(wanted)
            value = segment.encode()
            current = yield self._compare_set(held.number, held.value, value)
            if current == value:
                held.value, held.segment, held.lease = value, segment, wanted
            else:
                self._follow(held, current)
            # The beat, which only we change, tells whether a change has come through whose reply was lost.
            if held.lease.beat == wanted.beat:
                held.fresh = True
                if held.lease.position >= held.lease.end:
                    yield from self._complete(held)
                return held.lease
        return None

    def _follow(self, held: HeldLease, value: bytes | None) -> None:
        """Another process has changed the segment: a part of our lease is gone, or all of it."""
        if value is not None:
            segment = Segment.decode(value)
            lease = segment.find(held.lease.token)
            if lease is not None:
                held.value, held.segment, held.lease = value, segment, lease
                return
        del self._held[held.key]
        self.counts["leases_lost"] += 1
        self._tell("lease_lost", held.number, held.lease)

    def _complete(self, held: HeldLease) -> Steps[None]:
        del self._held[held.key]
        self.counts["leases_completed"] += 1
        self._tell("lease_completed", held.number, held.lease)
        if held.segment.is_done and self.epoch:
            if self._previous_is_drained is None:
                low = yield from self._read_low(self.epoch - 1)
                self._previous_is_drained = low >= self.plan.segments
            if self._previous_is_drained:
                # Nobody needs the last epoch's record any more: the store does not grow with the epochs.
                yield Request("delete", (self._key(held.number, self.epoch - 1),))

    # Other leases.

    def _take_fresh(self, now: float) -> Steps[bool]:
        """A segment that nobody has begun; now and then one that was left behind."""
        while self._fresh_left:
            self._grants += 1
            if self._grants % _LOOK_BEHIND_EVERY == 0 and (yield from self._take_left_behind(now)):
                return True
            number = (yield Request("add", (f"{self.epoch}/next", 1))) - 1
            if number >= self.plan.segments:
                self._fresh_left = False
            elif (yield from self._begin(number)):
                return True
        return False

    def _begin(self, number: int) -> Steps[bool]:
        segment = Segment.whole(*self.plan.bounds(number))
        if not (yield from self._grant(number, None, *segment.granted(segment.leases[0], self.holder))):
            return False
        # Records of an epoch that is over are deleted. Whoever slept through that finds no record either, but this:
        if number < (yield from self._read_low(self.epoch)):
            yield Request("delete", (self._key(number),))
            self._held.popitem()
            return False
        return True

    def _take_left_behind(self, now: float) -> Steps[bool]:
        self._low = yield from self._read_low(self.epoch)
        until = min(self._low + _LOOK_BEHIND_SEGMENTS, self.plan.segments)
        open_segments = yield from self._read_open(range(self._low, until))
        started = [(number, value) for number, value in open_segments if value is not None]
        return (yield from self._take_idle(started, now))

    def _take_open(self, now: float) -> Steps[bool]:
        """Any lease that can be had when all segments have begun."""
        self._low = yield from self._read_low(self.epoch)
        numbers = range(self._low, self.plan.segments)
        if len(numbers) > 2 * _LOOK_AROUND_SEGMENTS:
            # Many ranks come here at the same time: a few of the open segments have enough for one of them.
            sample = self._random.sample(numbers, _LOOK_AROUND_SEGMENTS)
            some = yield from self._read(sample)
            if (yield from self._take_idle(some, now)) or (yield from self._split(some)):
                return True
        open_segments = yield from self._read_open(numbers)
        self.open_segments = len(open_segments)
        if not open_segments:
            self.drained = True
            if (yield Request("add", (f"{self.epoch}/drained", 1))) == 1:
                self.events.append({"event": "job_drained", "holder": self.holder, "epoch": self.epoch})
            return False
        if (yield from self._take_idle(open_segments, now)):
            return True
        return (yield from self._split(open_segments))

    def _read_open(self, numbers: range) -> Steps[list[tuple[int, bytes | None]]]:
        """The records of the segments that are not done; notes where the first of them is."""
        found = []
        for start in range(0, len(numbers), 1024):
            found += yield from self._read(numbers[start : start + 1024])
        low = found[0][0] if found else numbers.stop
        if low > self._low:
            yield from self._raise_low(low)
        return found

    def _read(self, numbers: Sequence[int]) -> Steps[list[tuple[int, bytes | None]]]:
        """The records of those of some segments that are not done."""
        values = yield Request("read_many", ([self._key(number) for number in numbers],))
        return [
            (number, value)
            for number, value in zip(numbers, values, strict=True)
            if value is None or not Segment.decode(value).is_done
        ]

    def _take_idle(self, segments: Iterable[tuple[int, bytes | None]], now: float) -> Steps[bool]:
        """A lease of nobody or of a dead holder."""
        idle: list[tuple[int, bytes | None, Segment, Lease]] = []
        for number, value in segments:
            if value is None:
                whole = Segment.whole(*self.plan.bounds(number))
                idle.append((number, None, whole, whole.leases[0]))
                continue
            segment = Segment.decode(value)
            idle += [
                (number, value, segment, lease)
                for lease in segment.leases
                if lease.is_free or (not lease.is_done and self._is_dead(number, lease, now))
            ]
        # Not the first for all: everybody else is looking at the same ones.
        self._random.shuffle(idle)
        for number, value, segment, lease in idle:
            if value is None:
                if (yield from self._begin(number)):
                    return True
                continue
            if (yield from self._grant(number, value, *segment.granted(lease, self.holder))):
                if not lease.is_free:
                    self.counts["leases_expired"] += 1
                    self.counts["ranges_requeued"] += 1
                    self._tell("lease_expired", number, lease)
                    self._tell("range_requeued", number, lease.freed())
                return True
        return False

    def _split(self, segments: Iterable[tuple[int, bytes | None]]) -> Steps[bool]:
        """Half of the largest remaining lease of another process."""
        size = self.plan.batch_size
        candidates: list[tuple[int, int, bytes, Segment, Lease]] = []
        for number, value in segments:
            if value is not None:
                segment = Segment.decode(value)
                for lease in segment.leases:
                    batches = -(-(lease.end - lease.drawn) // size)
                    if batches > 1 and lease.holder not in ("", self.holder):
                        candidates.append((batches, number, value, segment, lease))
        largest = max((each[0] for each in candidates), default=0)
        # Any of the large ones: many processes come to the end at the same time.
        large = [each for each in candidates if 2 * each[0] > largest]
        self._random.shuffle(large)
        for batches, number, value, segment, lease in large:
            at = lease.drawn + (batches - batches // 2) * size
            if (yield from self._grant(number, value, *segment.split(lease, at, self.holder))):
                self.counts["leases_split"] += 1
                self._tell("lease_split", number, lease, at=at)
                return True
        return False

    def _grant(self, number: int, old: bytes | None, segment: Segment, lease: Lease) -> Steps[bool]:
        value = segment.encode()
        current = yield self._compare_set(number, old, value)
        if current != value:
            return False
        held = HeldLease(number, value, segment, lease)
        self._held[held.key] = held
        self.counts["leases_granted"] += 1
        self._tell("lease_granted", number, lease)
        return True

    def _is_dead(self, number: int, lease: Lease, now: float) -> bool:
        """Whether the beat has stood still for the time to live, on our own clock, since we first saw it so."""
        beat, since = self._seen.get((number, lease.token), (None, now))
        if beat != lease.beat:
            self._seen[number, lease.token] = lease.beat, now
            return False
        return lease.holder != self.holder and now - since >= self._ttl

    # The store.

    def _key(self, number: int, epoch: int | None = None) -> str:
        return f"{self.epoch if epoch is None else epoch}/{number}"

    def _compare_set(self, number: int, old: bytes | None, new: bytes) -> Request:
        return Request("compare_set", (self._key(number), old, new))

    def _read_low(self, epoch: int) -> Steps[int]:
        """A number below which every segment is done."""
        (value,) = yield Request("read_many", ([f"{epoch}/low"],))
        return 0 if value is None else int(value)

    def _raise_low(self, low: int) -> Steps[None]:
        old = b"%d" % self._low if self._low else None
        while old is None or int(old) < low:
            current = yield Request("compare_set", (f"{self.epoch}/low", old, b"%d" % low))
            old = current if current is not None else None
            if old is None:
                break
        self._low = low

    def _tell(self, event: str, number: int, lease: Lease, **more: int) -> None:
        named = {"holder": lease.holder or self.holder, "epoch": self.epoch, "segment": number, "token": lease.token}
        where = {"start": lease.position, "end": lease.end, "drawn": lease.drawn}
        self.events.append({"event": event, **named, **where, **more})

    def take_events(self) -> Iterator[dict[str, Any]]:
        """What has happened since the last call, for the log."""
        while self.events:
            yield self.events.pop(0)
