"""Batches of bounded size: which samples they hold, and how the band follows the spread of sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchslip.loading._byte_plan import Band, ByteShare, jitter, plan_batches, plan_counts
from torchslip.order import Topology

SIZES = st.lists(st.integers(0, 400), max_size=300).map(lambda sizes: np.array(sizes, np.int64))


def plan(sizes, batch_size=16, target=900, most=1000):
    return plan_batches(np.asarray(sizes, np.int64), batch_size=batch_size, target_bytes=target, max_bytes=most)


def rule_by_rule(sizes, batch_size, target, most, lower=85, upper=115):
    """The rules for closing a batch as they are written, one sample at a time."""
    ends, count, held = [], 0, 0
    low, high = min(target * lower // 100, most), min(target * upper // 100, most)
    for position, size in enumerate(sizes):
        if count and (
            count >= batch_size or held >= target or held + size > most or (held >= low and held + size > high)
        ):
            ends.append(position)
            count = held = 0
        count, held = count + 1, held + size
    return [*ends, len(sizes)] if len(sizes) else []


@given(SIZES, st.integers(1, 40), st.integers(50, 3000))
def test_a_plan_closes_batches_by_the_rules(sizes, batch_size, target):
    found = plan(sizes[:120], batch_size, target, target * 10 // 9)
    assert found.ends.tolist() == rule_by_rule(sizes[:120].tolist(), batch_size, target, target * 10 // 9)


@given(SIZES, st.integers(1, 40))
def test_a_plan_covers_every_position_once_within_its_bounds(sizes, batch_size):
    found = plan(sizes, batch_size)
    counts = np.diff(found.ends, prepend=0)
    assert counts.sum() == len(sizes)
    assert ((counts >= 1) & (counts <= batch_size)).all()
    assert found.sizes.sum() == sizes.sum()
    assert (found.sizes <= 1000).all()


def test_a_sample_above_the_maximum_forms_a_batch_alone():
    found = plan([10, 5000, 10, 10])
    assert found.ends.tolist() == [1, 2, 4]
    assert found.sizes.tolist() == [10, 5000, 20]


def test_the_band_gets_narrower_from_the_very_next_batch_on():
    """The original planned everything ahead, so that what it measured changed nothing."""
    rng = np.random.default_rng(7)
    sizes = rng.integers(50, 500, 3_000)
    found = plan(sizes, batch_size=64, target=600, most=1000)
    narrower = next(band for band in found.bands if band.breached)
    assert (narrower.lower_pct, narrower.upper_pct) == (87, 113)
    assert narrower.batch == 127  # the first full window
    begin = int(found.ends[narrower.batch])
    fixed = np.array(rule_by_rule(sizes[begin:], 64, 600, 1000)) + begin
    moved = np.array(rule_by_rule(sizes[begin:], 64, 600, 1000, 87, 113)) + begin
    after = found.ends[narrower.batch + 1 :][:16]  # until the band may move again
    assert after.tolist() == moved[:16].tolist()
    assert after.tolist() != fixed[:16].tolist()


def test_the_band_stays_within_its_bounds_and_returns():
    band = Band(-1, 85, 115)
    for number in range(100):
        band = band.after(number, 2.0)
    assert (band.lower_pct, band.upper_pct, band.breached) == (95, 105, True)
    for number in range(100):
        band = band.after(number, 1.0)
    assert (band.lower_pct, band.upper_pct, band.breached) == (85, 115, False)
    assert band.after(0, 1.2).same_edges(band)


def test_steady_sizes_never_move_the_band():
    assert len(plan(np.full(20_000, 100)).bands) == 1


def test_percentiles_are_those_of_the_sorted_window():
    assert jitter(np.arange(128, 0, -1)) == (64, 121)
    assert jitter(np.array([7])) == (7, 7)
    assert jitter(np.zeros(0, np.int64)) == (0, 0)


@given(SIZES, st.integers(1, 5), st.integers(0, 400), st.sampled_from(["uneven", "pad", "drop"]))
def test_any_number_of_ranks_gets_the_same_batches_from_any_position(sizes, world_size, start, tail):
    found, start = plan(sizes), min(start, len(sizes))
    shares = [ByteShare(found, len(sizes), Topology(rank, world_size), tail) for rank in range(world_size)]
    steps = shares[0].count(start)
    parts = [share.batch(start, step) for step in range(steps) for share in shares]
    positions = np.concatenate([np.zeros(0, np.int64), *(part.positions[part.valid] for part in parts)])
    assert positions.tolist() == list(range(start, start + len(positions)))
    if tail != "drop":
        assert start + len(positions) == len(sizes)
    ends = np.cumsum([len(part.positions[part.valid]) for part in parts]) + start
    assert set(ends.tolist()) <= {start, *found.ends.tolist()}  # cut once, at `start`, then as always
    for step in range(steps + 1):
        done = sum(part.valid.sum() for part in parts[: step * world_size])
        assert {share.end(start, step) for share in shares} in ({start + done}, {len(sizes)})


def test_without_sizes_batches_have_their_number_of_samples():
    assert plan_counts(10, batch_size=4).ends.tolist() == [4, 8, 10]
    assert plan_counts(0, batch_size=4).ends.tolist() == []
    assert plan_counts(8, batch_size=4).ends.tolist() == [4, 8]


def test_a_refused_sample_is_named_before_anything_is_read():
    def refuse(position):
        raise LookupError(position)

    with pytest.raises(LookupError, match="1"):
        plan_batches(np.array([5, 50]), batch_size=2, target_bytes=9, max_bytes=10, refuse=refuse)
