"""The state machine of leases, one store operation at a time: any schedule of ranks that work, stop, die and join."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchslip.errors import StateError
from torchslip.order._lease import Lease, Segment
from torchslip.order._lease_holder import LeaseHolder
from torchslip.order._lease_plan import LeasePlan

TTL = 10.0
ACTIONS = ("step", "step", "step", "step", "ack", "renew", "tick", "kill", "leave", "join")


class DictStore:
    """What every store does, in one process."""

    def __init__(self):
        self.values = {}
        self.operations = Counter()

    def perform(self, request):
        self.operations[request.name] += 1
        return getattr(self, request.name)(*request.arguments)

    def read_many(self, keys):
        return [self.values.get(key) for key in keys]

    def compare_set(self, key, old, new):
        if self.values.get(key) == old:
            self.values[key] = new
        return self.values.get(key)

    def add(self, key, amount):
        self.values[key] = self.values.get(key, 0) + amount
        return self.values[key]

    def delete(self, key):
        self.values.pop(key, None)


class Rank:
    """A process: at most one call at a time, and one operation of it per step."""

    def __init__(self, world, name):
        self.world = world
        self.holder = LeaseHolder(
            world.plan, epoch=0, holder=name, ttl_seconds=TTL, want=world.want, replay=world.replay
        )
        self.call, self.request, self.after = None, None, None

    def begin(self, call, after=lambda result: None):
        if self.call is None:
            self.call, self.after = call, after
            self._proceed(None)

    def step(self):
        """Do the operation that is waiting, however long ago it was asked for; or begin to draw a batch."""
        if self.call is not None:
            self._proceed(self.world.store.perform(self.request))
        elif len(self.holder.outstanding) < self.world.plan.lease_batches:
            self.begin(self.holder.draw(self.world.now), self.world.handed_out)

    def ack(self):
        if self.call is None and self.holder.outstanding:
            batch = self.holder.outstanding[0]
            self.begin(self.holder.acknowledge(1), lambda late: late or self.world.committed(batch))

    def finish(self):
        while self.call is not None:
            self.step()

    def _proceed(self, reply):
        try:
            self.request = self.call.send(reply)
        except StopIteration as stop:
            self.call = None
            self.after(stop.value)


class World:
    def __init__(self, length, batch_size, lease_batches, *, want=1, replay=True, ranks=3):
        self.plan = LeasePlan(length, batch_size, lease_batches, {}, "nonce")
        self.want, self.replay = want, replay
        self.store, self.now = DictStore(), 0.0
        self.handed, self.acknowledged = Counter(), Counter()
        self.ranks, self.joined, self.gone = [], 0, 0
        for _ in range(ranks):
            self.join()

    def join(self):
        self.joined += 1
        self.ranks.append(Rank(self, f"rank-{self.joined}"))

    def handed_out(self, batch):
        if batch is not None:
            assert 0 < batch.end - batch.begin <= self.plan.batch_size
            assert batch.begin % self.plan.batch_size == 0
            positions = range(batch.begin, batch.end)
            assert {self.handed[position] > 0 for position in positions} == {batch.replayed}
            self.handed.update(positions)

    def committed(self, batch):
        self.acknowledged.update(range(batch.begin, batch.end))

    def act(self, number, action):
        rank = self.ranks[number % len(self.ranks)]
        if action == "tick":
            self.now += TTL / 3
        elif action == "join" and len(self.ranks) < 6:
            self.join()
        elif action in ("kill", "leave") and len(self.ranks) > 1:
            if action == "leave":
                rank.finish()
                rank.begin(rank.holder.release())
                rank.finish()
            self.ranks.remove(rank)
            self.gone += 1
        elif action == "renew":
            rank.begin(rank.holder.renew())
        elif action in ("step", "ack"):
            getattr(rank, action)()
        self.check()

    def check(self):
        """No position stands in two leases: `decode` refuses it within a segment, and segments have bounds."""
        for number in range(self.plan.segments):
            value = self.store.values.get(f"0/{number}")
            if value is not None:
                begin, end = self.plan.bounds(number)
                leases = Segment.decode(value).leases
                assert leases[-1].end == end
                assert leases[0].position >= begin
                tokens = [lease.token for lease in leases if lease.token]
                assert len(tokens) == len(set(tokens))

    def finish(self):
        """All that are left work until the epoch is over."""
        for _ in range(10_000):
            if all(rank.holder.drained for rank in self.ranks):
                return
            for rank in self.ranks:
                rank.finish()
                rank.begin(rank.holder.renew())
                rank.finish()
                rank.step()
                rank.finish()
                rank.ack()
                rank.finish()
            self.now += TTL / 7
        raise AssertionError("not drained")


worlds = st.builds(World, st.integers(0, 70), st.integers(1, 5), st.integers(1, 6), want=st.integers(1, 3))


def shuffled(seed):
    """A long schedule in which ranks have much in hand when something happens to them."""
    rng = random.Random(seed)
    return [(rng.randrange(6), rng.choice((*ACTIONS, *["step"] * rng.randrange(20)))) for _ in range(400)]


schedules = st.one_of(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(ACTIONS)), max_size=250),
    st.builds(shuffled, st.integers(0, 2**32)),
)


@settings(max_examples=120)
@given(worlds, schedules)
def test_every_position_is_acknowledged_exactly_once_whatever_happens(world, schedule):
    for number, action in schedule:
        world.act(number, action)
    world.finish()
    assert set(world.handed) == set(range(world.plan.length))
    assert world.acknowledged == Counter(range(world.plan.length))


@settings(max_examples=80)
@given(worlds, schedules)
def test_each_loss_of_a_rank_repeats_no_more_than_it_may_have_in_hand(world, schedule):
    lost = 0
    for number, action in schedule:
        before = {rank: len(rank.holder.outstanding) for rank in world.ranks}
        world.act(number, action)
        lost += sum(count for rank, count in before.items() if rank not in world.ranks)
        assert all(len(rank.holder.outstanding) <= world.plan.lease_batches for rank in world.ranks)
    world.finish()
    repeats = sum(count - 1 for count in world.handed.values())
    slept = sum(rank.holder.counts["late_batches"] for rank in world.ranks)
    # A batch more for each one that died amid the operation that hands it out.
    assert repeats <= (lost + slept + world.gone) * world.plan.batch_size


@given(worlds, st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["step", "ack", "renew", "join"])), max_size=300))
def test_nothing_is_repeated_while_nobody_is_lost(world, schedule):
    for number, action in schedule:
        world.act(number, action)
    world.finish()
    assert world.handed == Counter(range(world.plan.length))
    assert world.acknowledged == world.handed


@given(st.builds(World, st.integers(0, 70), st.integers(1, 5), st.integers(1, 6), replay=st.just(False)), schedules)
def test_at_most_once_hands_nothing_out_twice(world, schedule):
    for number, action in schedule:
        world.act(number, action)
    world.finish()
    assert all(count == 1 for count in world.handed.values())
    assert world.plan.length - len(world.handed) <= world.gone * world.plan.batch_size


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_no_rank_idles_while_another_has_more_than_two_batches_left(ranks):
    world = World(960, 1, 64, ranks=ranks)
    while not all(rank.holder.drained for rank in world.ranks):
        world.now += TTL / 20
        for speed, rank in enumerate(world.ranks, start=1):
            for _ in range(1 if speed == 1 else 3):
                rank.step()
                rank.finish()
                idle = not rank.holder.drained and not rank.holder.outstanding
                assert not (idle and max(remaining(world), default=0) > 2)
                rank.ack()
                rank.finish()
    assert world.handed == Counter(range(960))


def remaining(world):
    for number in range(world.plan.segments):
        for lease in Segment.decode(world.store.values[f"0/{number}"]).leases:
            yield -(-(lease.end - lease.drawn) // world.plan.batch_size)


def test_a_rank_that_slept_cannot_commit_what_others_have_taken():
    world = World(8, 2, 4, ranks=2)
    sleeper, other = world.ranks
    sleeper.step()
    sleeper.finish()
    for _ in range(2):
        other.begin(other.holder.acquire(world.now))
        other.finish()
        world.now += 2 * TTL
    late = []
    while not other.holder.drained:
        other.step()
        other.finish()
        other.ack()
        other.finish()
        world.now += 2 * TTL
    sleeper.begin(sleeper.holder.acknowledge(1), late.append)
    sleeper.finish()
    assert late == [1]
    assert [event["event"] for event in sleeper.holder.events][-1] == "lease_lost"
    assert world.handed == Counter(range(8)) + Counter(range(2))


def test_records_of_a_finished_epoch_leave_the_store():
    world = World(60, 1, 4, ranks=1)
    for epoch in range(3):
        world.ranks[0].holder = LeaseHolder(world.plan, epoch=epoch, holder=f"{epoch}", ttl_seconds=TTL)
        world.handed.clear()
        while not world.ranks[0].holder.drained:
            world.ranks[0].step()
            world.ranks[0].finish()
            world.ranks[0].ack()
            world.ranks[0].finish()
    segments = [key for key in world.store.values if key.split("/")[1].isdigit()]
    assert sorted(segments) == sorted(f"2/{number}" for number in range(15))


def test_a_rank_that_slept_through_two_epochs_does_not_begin_a_deleted_segment_again():
    world = World(60, 1, 4, ranks=2)
    sleeper, other = world.ranks
    sleeper.step()
    sleeper.step()
    assert sleeper.request.name == "compare_set"
    for epoch in range(2):
        other.holder = LeaseHolder(world.plan, epoch=epoch, holder=f"{epoch}", ttl_seconds=TTL)
        world.handed.clear()
        while not other.holder.drained:
            other.step()
            other.finish()
            other.ack()
            other.finish()
    assert "0/0" not in world.store.values
    sleeper.finish()
    assert sleeper.holder.drained
    assert not sleeper.holder.outstanding
    assert "0/0" not in world.store.values


def test_half_of_what_is_not_drawn_is_split_off():
    world = World(8, 1, 8, ranks=2)
    first, second = world.ranks
    for _ in range(6):
        first.step()
        first.finish()
    second.step()
    second.finish()
    assert [(batch.begin, batch.end) for batch in second.holder.outstanding] == [(7, 8)]


def test_a_lease_costs_three_operations_and_a_batch_two():
    world = World(6400, 1, 64, ranks=1)
    world.finish()
    grants, renewals = 100, world.ranks[0].holder.counts["heartbeats"]
    looks = grants  # for what dead ranks have left, now and then
    assert sum(world.store.operations.values()) <= 3 * grants + 2 * 6400 + renewals + looks


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"[1]", b'[2,[[0,0,0,5,"a",1,0],[4,4,4,8,"b",2,0]]]', b"[0,[[0,3,0,2]]]"]
)
def test_a_record_that_is_none_or_overlaps_is_an_error(value):
    with pytest.raises(StateError, match=r"overlap|should be"):
        Segment.decode(value)


@given(st.integers(0, 9), st.integers(1, 9), st.text(max_size=5), st.integers(0, 99))
def test_a_record_survives_the_store(begin, length, holder, beat):
    segment = Segment(beat, (Lease(begin, begin, begin, begin + length, holder, beat, beat),))
    assert Segment.decode(segment.encode()) == segment
