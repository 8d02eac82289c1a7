"""A mixture is one order: exact counts, bounded discrepancy, no sample twice in a pass, and it never changes."""

import itertools
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from torchslip.order import (
    Cursor,
    DistributedBatchSampler,
    MixedOrder,
    Order,
    Sequential,
    Shuffled,
    Subset,
    choose_per_source,
)

seeds = st.integers(-(2**63), 2**63)
epochs = st.integers(0, 2**32 - 1)
even = st.lists(st.integers(1, 9), min_size=1, max_size=12)
uneven = st.lists(st.sampled_from([1, 2, 3, 50, 1000, 4000]), min_size=2, max_size=5)
weight_lists = even | uneven


def positions_of(order):
    return np.arange(len(order))


def epoch_of(order, epoch=0):
    return order.at(positions_of(order), epoch=epoch)


def deviation(order, shares, epoch=0):
    """Over all windows of an epoch, the largest difference between the count of a source and its share."""
    sources = order.source_at(positions_of(order), epoch=epoch)
    worst = 0.0
    for source, share in enumerate(shares):
        excess = np.concatenate(([0], np.cumsum(sources == source))) - np.arange(len(order) + 1) * share
        worst = max(worst, excess.max() - excess.min())
    return worst


@given(weight_lists, seeds, epochs)
def test_over_any_window_a_source_differs_from_its_weight_by_less_than_the_number_of_sources(weights, seed, epoch):
    order = MixedOrder(
        [10] * len(weights), weights=weights, seed=seed, source_exhausted="repeat", epoch_size=sum(weights)
    )
    shares = np.array(weights) / sum(weights)
    assert order.bound <= len(weights)
    assert deviation(order, shares, epoch) < max(order.bound, 1e-9)


@given(weight_lists, st.integers(1, 3000), seeds)
def test_rounding_the_weights_to_whole_samples_adds_less_than_one(weights, length, seed):
    order = MixedOrder([10] * len(weights), weights=weights, seed=seed, source_exhausted="repeat", epoch_size=length)
    shares = np.array(weights) / sum(weights)
    assert (abs(order.counts(epoch=0) - length * shares) < 1).all()
    assert deviation(order, shares) < order.bound + 1


def test_the_bound_holds_across_epochs():
    order = MixedOrder([9, 9, 9], weights=[5, 3, 2], source_exhausted="repeat", epoch_size=10)
    sources = np.concatenate([order.source_at(range(10), epoch=epoch) for epoch in range(300)])
    for source, share in enumerate([0.5, 0.3, 0.2]):
        excess = np.concatenate(([0], np.cumsum(sources == source))) - np.arange(3001) * share
        assert excess.max() - excess.min() < order.bound <= 3


@given(weight_lists, seeds, epochs, st.data())
def test_counts_are_those_of_the_positions_before(weights, seed, epoch, data):
    order = MixedOrder([7] * len(weights), weights=weights, seed=seed, source_exhausted="repeat", epoch_size=500)
    position = data.draw(st.integers(0, 500))
    sources = order.source_at(range(500), epoch=epoch)
    assert (
        order.counts(epoch=epoch, position=position).tolist()
        == np.bincount(sources[:position], minlength=len(weights)).tolist()
    )


@pytest.mark.parametrize("weights", [[1, 1], [7, 1], [6, 1, 1], [15, 4, 1], [1] * 8, [0.75, 0.2, 0.05]], ids=str)
@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 16])
def test_every_rank_gets_every_source_in_its_proportion(weights, ranks):
    order = MixedOrder([10] * len(weights), weights=weights, source_exhausted="repeat", epoch_size=48_000, seed=17)
    sources = order.source_at(range(48_000), epoch=0)
    for rank, (source, share) in itertools.product(range(ranks), enumerate(np.array(weights) / sum(weights))):
        mine = (sources[rank::ranks] == source).mean()
        # Five standard deviations of independent draws.
        assert abs(mine - share) < 5 * np.sqrt(share * ranks / len(sources))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), seeds, epochs)
def test_by_default_an_epoch_has_every_sample_once(lengths, seed, epoch):
    order = MixedOrder(lengths, seed=seed)
    assert sorted(epoch_of(order, epoch)) == list(range(sum(lengths)))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.data(), seeds)
def test_a_repeated_source_gives_every_sample_once_before_any_twice_over_all_epochs(lengths, data, seed):
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(lengths), max_size=len(lengths)))
    order = MixedOrder(lengths, weights=weights, seed=seed, source_exhausted="repeat", epoch_size=17)
    ids = np.concatenate([epoch_of(order, epoch) for epoch in range(12)])
    for begin, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
        mine = ids[(ids >= begin) & (ids < begin + length)] - begin
        for first in range(0, len(mine) - length + 1, length):
            assert sorted(mine[first : first + length]) == list(range(length))
        rest = mine[len(mine) // length * length :]
        assert len(set(rest.tolist())) == len(rest)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_orders_of_a_source_come_equally_often(length):
    order = MixedOrder([length, 9], weights=[1, 1], source_exhausted="repeat", epoch_size=2 * length * 100)
    ids = np.concatenate([epoch_of(order, epoch) for epoch in range(60)])
    _, counts = np.unique(ids[ids < length].reshape(-1, length), axis=0, return_counts=True)
    assert len(counts) == math.factorial(length)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("length", [50, 5000])
def test_every_pass_over_a_source_has_its_own_order(length):
    order = MixedOrder([length, length], weights=[3, 1], source_exhausted="repeat", epoch_size=4 * length)
    ids = epoch_of(order)
    passes = ids[ids < length].reshape(3, length)
    for first, second in itertools.combinations([*passes, ids[ids >= length] - length], 2):
        assert (first == second).sum() < 12


def test_seeds_and_epochs_change_the_sources_and_the_samples():
    def of(seed, epoch):
        order = MixedOrder([1000, 1000], weights=[1, 1], seed=seed)
        return order.source_at(positions_of(order), epoch=epoch), epoch_of(order, epoch)

    for (sources, ids), (other_sources, other_ids) in itertools.combinations(
        [of(0, 0), of(0, 1), of(1, 0), of(2, 0)], 2
    ):
        assert 0.4 < (sources == other_sources).mean() < 0.6
        assert (ids == other_ids).mean() < 0.01


@given(st.lists(st.integers(0, 60), min_size=2, max_size=5), st.data(), seeds)
def test_when_sources_may_leave_every_sample_comes_once_and_the_others_keep_their_proportions(lengths, data, seed):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths)))
    weights = [weight if length else 0 for weight, length in zip(weights, lengths, strict=True)]
    assume(any(weights))
    order = MixedOrder(lengths, weights=weights, seed=seed, source_exhausted="allow")
    assert sorted(epoch_of(order, 3)) == list(range(sum(lengths)))
    sources = order.source_at(positions_of(order), epoch=3)
    gone = {source: np.flatnonzero(sources == source).max(initial=-1) for source in range(len(lengths))}
    end = min(last for source, last in gone.items() if weights[source])
    counts = np.bincount(sources[: end + 1], minlength=len(lengths))
    assert (abs(counts - (end + 1) * np.array(weights) / sum(weights)) < order.bound + 2).all()


def test_allow_stops_where_it_is_told_to():
    order = MixedOrder([100, 1000], weights=[1, 1], source_exhausted="allow", epoch_size=300)
    assert len(order) == 300
    assert order.counts(epoch=5).tolist() == [100, 200]
    assert len(set(epoch_of(order).tolist())) == 300


def test_by_default_the_longest_epoch_that_exhausts_no_source_is_taken():
    order = MixedOrder([1000, 1000], weights=[0.7, 0.3])
    assert len(order) == 1428
    assert order.counts(epoch=0).tolist() == [1000, 428]
    assert len(set(epoch_of(order).tolist())) == 1428


def test_an_epoch_that_would_exhaust_a_source_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match=r"epoch of 2000 samples.*\n.*source 0 has 1000 samples, 1400 are needed: 400"):
        MixedOrder([1000, 1000], weights=[0.7, 0.3], epoch_size=2000)


@pytest.mark.parametrize("exhausted", ["error", "allow", "repeat"])
def test_batches_of_one_source(exhausted):
    order = MixedOrder([100, 55, 30], source_exhausted=exhausted, batching="per_source", batch_size=10, seed=3)
    batches = order.source_at(positions_of(order), epoch=1).reshape(-1, 10)
    assert (batches == batches[:, :1]).all()
    if exhausted == "repeat":
        assert len(order) == 180
    else:
        assert len(set(epoch_of(order, 1).tolist())) == len(order) == (180 if exhausted == "allow" else 160)
    assert order.counts(epoch=1, position=37).tolist() == np.bincount(batches.ravel()[:37], minlength=3).tolist()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(60, 90), seeds)
def test_stratified_batches_all_have_the_composition_of_the_weights_within_one_sample(weights, batch_size, seed):
    sizes = [100 * weight for weight in weights]
    order = MixedOrder(sizes, seed=seed, batching="stratified", batch_size=batch_size)
    batches = order.source_at(positions_of(order), epoch=2).reshape(-1, batch_size)
    for source, weight in enumerate(weights):
        in_batch = (batches == source).sum(axis=1)
        assert (abs(in_batch - batch_size * weight / sum(weights)) < 1).all()
        assert len(set(in_batch.tolist())) == 1
    assert len(set(epoch_of(order, 2).tolist())) == len(order)


def test_stratified_batches_are_arranged_differently():
    order = MixedOrder([500, 500], batching="stratified", batch_size=10)
    batches = order.source_at(positions_of(order), epoch=0).reshape(-1, 10)
    assert len({tuple(batch) for batch in batches.tolist()}) > 25


def test_when_sources_may_leave_stratified_batches_go_on_without_them():
    order = MixedOrder([10, 100, 100], weights=[1, 1, 2], batching="stratified", batch_size=8, source_exhausted="allow")
    batches = order.source_at(positions_of(order), epoch=0).reshape(-1, 8)
    compositions = [tuple(np.bincount(batch, minlength=3).tolist()) for batch in batches]
    assert [(each, len(list(group))) for each, group in itertools.groupby(compositions)] == [
        ((2, 2, 4), 5),
        ((0, 3, 5), 16),
        ((0, 8, 0), 5),
    ]
    assert len(set(epoch_of(order).tolist())) == len(order) == 208


SCHEDULE = [(0, [1, 0]), ((2, 40), [1, 1]), (5, [1, 3])]


@pytest.mark.parametrize(
    ("batching", "mixed", "last"),
    [("random", [60, 20], [20, 60]), ("stratified", [60, 20], [20, 60]), ("per_source", [64, 16], [24, 56])],
)
def test_weights_change_where_the_schedule_says(batching, mixed, last):
    order = MixedOrder(
        [90, 90], schedule=SCHEDULE, epoch_size=80, source_exhausted="repeat", batching=batching, batch_size=8
    )
    counts = [order.counts(epoch=epoch).tolist() for epoch in range(7)]
    assert counts == [[80, 0], [80, 0], mixed, [40, 40], [40, 40], last, last]
    assert order.counts(epoch=2, position=40).tolist() == [40, 0]
    assert [order.weights_at(epoch=2, position=p) for p in (39, 40)] == [[1, 0], [0.5, 0.5]]
    ids = np.concatenate([epoch_of(order, epoch) for epoch in range(7)])
    assert sorted(ids[ids < 90][:90]) == list(range(90))
    assert sorted(ids[ids >= 90][:90]) == list(range(90, 180))


@pytest.mark.parametrize("exhausted", ["error", "allow"])
def test_a_schedule_respects_exhaustion(exhausted):
    order = MixedOrder([100, 100], schedule=[(0, [3, 1]), ((1, 10), [1, 1])], source_exhausted=exhausted)
    for epoch in range(3):
        assert len(set(epoch_of(order, epoch).tolist())) == len(order)
    assert len(order) == (132 if exhausted == "error" else 200)


@given(epochs, st.integers(0, 99))
def test_progress_tells_passes_and_samples(epoch, position):
    order = MixedOrder([7, 1000], weights=[1, 1], source_exhausted="repeat", epoch_size=100)
    passes, samples = order.progress(epoch=epoch, position=position)
    first = order.counts(epoch=epoch, position=position)
    assert (passes * [7, 1000] + samples).tolist() == [epoch * 50 + count for count in first.tolist()]
    assert (samples < [7, 1000]).all()


block_lists = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4)


def windowed(block_sizes, window, seed, **options):
    lengths = [sum(sizes) for sizes in block_sizes]
    assume(any(lengths))
    weights = [1 + i if length else 0 for i, length in enumerate(lengths)]
    options = {"source_exhausted": "repeat", "epoch_size": 2 * sum(lengths)} | options
    return MixedOrder(lengths, weights=weights, seed=seed, window=window, blocks=block_sizes, **options)


@given(block_lists, st.integers(1, 5), seeds)
def test_a_window_shuffles_each_source_within_so_many_blocks_at_a_time(block_sizes, window, seed):
    order = windowed(block_sizes, window, seed)
    ids = np.concatenate([epoch_of(order, epoch) for epoch in range(4)])
    begin = 0
    for sizes in block_sizes:
        length, block_of = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
        mine = ids[(ids >= begin) & (ids < begin + length)] - begin
        for one_pass in mine[: len(mine) // max(length, 1) * length].reshape(-1, max(length, 1)):
            assert sorted(one_pass) == list(range(length))
            left, begun = list(sizes), set()
            for block in block_of[one_pass].tolist():
                begun.add(block)
                assert len(begun) <= window
                left[block] -= 1
                begun -= set() if left[block] else {block}
        begin += length


@given(block_lists, st.integers(1, 3), seeds, st.data())
def test_positions_of_a_windowed_mixture_can_be_asked_alone_and_in_any_sequence(block_sizes, window, seed, data):
    order = windowed(block_sizes, window, seed)
    whole = [epoch_of(order, epoch).tolist() for epoch in range(3)]
    places = st.lists(st.tuples(st.integers(0, 2), st.integers(0, len(order) - 1)), max_size=20)
    for epoch, position in data.draw(places):
        assert order.at(position, epoch=epoch) == whole[epoch][position]


def test_windowed_passes_and_sources_have_orders_of_their_own():
    order = MixedOrder(
        [4000] * 2, weights=[2, 1], window=2, blocks=[100, 100], source_exhausted="repeat", epoch_size=12_000
    )
    ids = epoch_of(order)
    first, second = ids[ids < 4000].reshape(2, 4000)
    third = ids[ids >= 4000] - 4000
    for one, other in itertools.combinations([first, second, third], 2):
        assert (one == other).sum() < 12
        assert (one[:200] // 100 != other[:200] // 100).any()


def test_a_windowed_mixture_never_changes():
    order = MixedOrder([12, 9], seed=17, window=2, blocks=[3, [4, 0, 2, 3]])
    # fmt: off
    assert [epoch_of(order, epoch).tolist() for epoch in (0, 1)] == [
        [18, 11, 10, 19, 9, 3, 20, 5, 4, 17, 13, 8, 14, 1, 6, 7, 12, 2, 15, 0, 16],
        [2, 0, 16, 17, 1, 13, 4, 18, 5, 3, 14, 11, 20, 9, 8, 12, 10, 15, 6, 19, 7],
    ]
    # fmt: on


def test_sources_may_be_orders_which_see_the_number_of_the_pass():
    shuffled = Shuffled(30, seed=5, window=2, blocks=4)
    order = MixedOrder(
        [Sequential(20), shuffled, Subset([5, 3])], weights=[20, 60, 4], source_exhausted="repeat", epoch_size=84,
        starts=[0, 100, 200],
    )  # fmt: skip
    ids = epoch_of(order, 1)
    assert ids[ids < 100].tolist() == list(range(20))
    expected = [shuffled.at(range(30), epoch=number) + 100 for number in (2, 3)]
    assert ids[(ids >= 100) & (ids < 200)].tolist() == np.concatenate(expected).tolist()
    assert ids[ids >= 200].tolist() == [205, 203, 205, 203]


def test_a_mixture_of_mixtures_is_a_mixture():
    inner = MixedOrder([10, 10], weights=[3, 1], source_exhausted="repeat", epoch_size=20)
    order = MixedOrder([inner, 20], weights=[1, 1], source_exhausted="repeat", epoch_size=40, starts=[0, 20])
    ids = epoch_of(order)
    assert ids[ids < 20].tolist() == epoch_of(inner).tolist()


# Running trainings go by these orders: never edit them, an order never changes between versions.
# fmt: off
PINNED = {
    "random": (
        {"weights": [5, 3, 2], "source_exhausted": "repeat", "epoch_size": 100},
        [0, 2014, 698, 11, 10, 460, 7, 2015, 3, 1934, 5, 1973, 1487, 1, 2, 2012, 6, 1879, 4, 2013, 1901, 8, 9, 2016],
        [1637, 1, 2, 1868, 0, 2012, 2016, 9, 600, 11, 8, 1321, 3, 2013, 10, 1714, 4, 2014, 5, 1605, 434, 6, 4, 2015],
    ),
    "allow": (
        {"weights": [5, 1, 1], "source_exhausted": "allow"},
        [0, 698, 11, 10, 7, 3, 5, 2014, 460, 1, 2, 6, 4, 2015, 8, 9, 2012, 1934, 1973, 2013, 2016, 1487, 1879, 1901],
        [11, 2, 9, 2015, 7, 1766, 5, 10, 181, 3, 1, 4, 6, 0, 8, 2012, 2016, 1023, 175, 2014, 940, 2013, 476, 1908],
    ),
    "stratified": (
        {"weights": [5, 3, 2], "source_exhausted": "repeat", "batching": "stratified", "batch_size": 8},
        [0, 698, 2014, 11, 10, 460, 7, 2015, 3, 2012, 5, 1934, 2013, 1, 2, 1973, 6, 1487, 4, 2016, 1879, 8, 9, 2015],
        [2015, 0, 1, 1390, 2, 150, 2016, 8, 323, 7, 11, 2013, 6, 1754, 3, 2015, 10, 897, 5, 2014, 156, 9, 4, 2012],
    ),
    "per source": (
        {"weights": [5, 3, 2], "source_exhausted": "repeat", "batching": "per_source", "batch_size": 3},
        [0, 11, 10, 2014, 2015, 2012, 698, 460, 1934, 7, 3, 5, 1, 2, 6, 1973, 1487, 1879, 4, 8, 9, 2013, 2016, 2015],
        [1853, 1717, 1224, 0, 1, 2, 8, 7, 11, 1560, 95, 573, 6, 3, 10, 2013, 2015, 2014, 2012, 2015, 2013, 5, 9, 4],
    ),
    "schedule": (
        {"schedule": [(0, [1, 1, 1]), ((1, 12), [0, 1, 1])], "source_exhausted": "repeat", "epoch_size": 24},
        [0, 2014, 698, 11, 460, 2015, 2012, 1934, 10, 2013, 1973, 7, 3, 2016, 1487, 2015, 5, 1879, 1901, 1, 2012, 595,
         2016, 2],
        [828, 6, 2014, 4, 2013, 1347, 2014, 8, 1186, 9, 931, 2015, 2012, 651, 1286, 2013, 1058, 2016, 1290, 2016,
         2012, 707, 1031, 2014],
    ),
}
# fmt: on


@pytest.mark.parametrize("name", PINNED)
def test_an_order_never_changes(name):
    options, *expected = PINNED[name]
    order = MixedOrder([12, 2000, 5], seed=17, **options)
    assert [order.at(range(24), epoch=epoch).tolist() for epoch in (0, 1)] == expected


def test_the_words_of_long_epochs_never_change():
    order = MixedOrder([10**12, 10**9, 10**6], weights=[0.5, 0.3, 0.2], source_exhausted="repeat", epoch_size=2**41)
    positions = np.arange(6) + 10**12
    assert order.at(positions, epoch=10**9).tolist() == [
        66733878112,
        1001000454926,
        1001000553038,
        7104457461,
        1000354679521,
        548334890946,
    ]


def test_positions_and_counts_agree_where_products_need_more_than_64_bits():
    order = MixedOrder([10**12] * 5, weights=[7, 5, 3, 3, 1], source_exhausted="repeat", epoch_size=2**41)
    for first in (0, 10**12, 2**41 - 40):
        sources = order.source_at(np.arange(40) + first, epoch=1)
        counts = [order.counts(epoch=1, position=first + i).tolist() for i in range(41)]
        assert np.diff(counts, axis=0).argmax(axis=1).tolist() == sources.tolist()
        assert np.allclose(counts[0], first * np.array([7, 5, 3, 3, 1]) / 19, rtol=0, atol=4)


ORDERS = {
    "mixed": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120),
    "seed": lambda: MixedOrder([100, 40], weights=[3, 1], seed=18, epoch_size=120),
    "weights": lambda: MixedOrder([100, 40], weights=[4, 1], seed=17, epoch_size=120),
    "length": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=121),
    "sources": lambda: MixedOrder([101, 40], weights=[3, 1], seed=17, epoch_size=120),
    "kind of source": lambda: MixedOrder([Sequential(100), 40], weights=[3, 1], seed=17, epoch_size=120),
    "allow": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, source_exhausted="allow"),
    "repeat": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, source_exhausted="repeat"),
    "stratified": lambda: MixedOrder(
        [100, 40], weights=[3, 1], seed=17, epoch_size=120, batching="stratified", batch_size=8
    ),
    "batch size": lambda: MixedOrder(
        [100, 40], weights=[3, 1], seed=17, epoch_size=120, batching="stratified", batch_size=4
    ),
    "per source": lambda: MixedOrder(
        [100, 40], weights=[3, 1], seed=17, epoch_size=120, batching="per_source", batch_size=8
    ),
    "schedule": lambda: MixedOrder([100, 40], seed=17, epoch_size=120, schedule=[(0, [3, 1]), (1, [4, 1])]),
    "later": lambda: MixedOrder([100, 40], seed=17, epoch_size=120, schedule=[(0, [3, 1]), (2, [4, 1])]),
    "windowed": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, window=2, blocks=[8, 20]),
    "window": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, window=3, blocks=[8, 20]),
    "blocks": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, window=2, blocks=[9, 20]),
    "starts": lambda: MixedOrder([100, 40], weights=[3, 1], seed=17, epoch_size=120, starts=[0, 200]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_fingerprints_are_equal_for_the_same_order_only(name):
    fingerprint = ORDERS[name]().fingerprint
    assert [other for other in ORDERS if ORDERS[other]().fingerprint == fingerprint] == [name]
    assert all(isinstance(value, int | str | None) for value in fingerprint.values())


def test_a_state_of_other_weights_is_refused_with_both():
    state = Cursor(1, 64, ORDERS["mixed"]().fingerprint).state_dict()
    with pytest.raises(ValueError, match="weights: '3:1' in the state, '4:1' here"):
        Cursor.from_state_dict(state, expected=ORDERS["weights"]().fingerprint)


@pytest.mark.parametrize("name", ORDERS)
def test_any_positions_in_any_shape_can_be_asked_alone_also_from_a_copy(name):
    order = ORDERS[name]()
    whole = epoch_of(order, 2)
    copy = pickle.loads(pickle.dumps(order))
    positions = np.array([[119, 0, 7], [7, 3, 100]])
    assert isinstance(copy, Order)
    assert copy.at(positions, epoch=2).tolist() == whole[positions].tolist()
    assert copy.at(5, epoch=2).shape == ()
    assert copy.at([], epoch=2).tolist() == []
    assert copy.fingerprint == order.fingerprint and repr(copy) == repr(order)


def test_a_mixture_of_a_hundred_sources_with_a_billion_samples_needs_no_memory():
    tracemalloc.start()
    order = MixedOrder([10**7] * 100, weights=range(1, 101), source_exhausted="repeat", epoch_size=10**9)
    ids = order.at(np.arange(256) + 10**8, epoch=3)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(ids)) == 256
    assert peak_bytes < 1 << 20


def test_windows_of_a_billion_positions_keep_the_bound():
    order = MixedOrder([10**9] * 3, weights=[0.6, 0.39, 0.01], source_exhausted="repeat", epoch_size=10**10)
    at = [order.counts(epoch=0, position=position) for position in range(0, 10**10 + 1, 10**9 - 1)]
    for (i, first), (j, second) in itertools.combinations(enumerate(at), 2):
        assert (abs(second - first - (j - i) * (10**9 - 1) * np.array([0.6, 0.39, 0.01])) < order.bound).all()


@pytest.mark.parametrize("name", ["stratified", "per source"])
def test_a_sampler_with_other_global_batches_is_refused(name):
    assert len(list(DistributedBatchSampler(ORDERS[name](), batch_size=2, rank=3, world_size=4))) == 15
    with pytest.raises(ValueError, match="global batches of 8 samples, but here they have 16"):
        next(iter(DistributedBatchSampler(ORDERS[name](), batch_size=4, rank=3, world_size=4)))


LENGTHS = [1000, 400, 77]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1000, 400, 77]),
        ({"epoch_size": 500}, [339, 135, 26]),
        ({"proportion": [2, 1, 1]}, [739, 369, 369]),
        ({"proportion": [0.5, 0.25, 0.25], "epoch_size": 4000}, [2000, 1000, 1000]),
        ({"repeat": [0.5, 2.5, None]}, [500, 1000, 77]),
        ({"repeat": [1.001, 1 / 3, 0.1]}, [1000, 133, 7]),
        ({"choose": [10, 2000, None]}, [10, 2000, 77]),
        ({"choose": [10, None, None], "repeat": [None, 3, None]}, [10, 1200, 77]),
    ],
)
def test_streams_are_chosen_as_by_mosaicml(options, expected):
    counts = choose_per_source(LENGTHS, **options)
    assert sum(counts) == sum(expected)
    relative = "repeat" not in options and "choose" not in options
    # The original draws by numpy's random numbers which streams get one more.
    assert all(abs(count - each) <= relative for count, each in zip(counts, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"proportion": [1, 1, 1], "repeat": [1, 1, 1]}, "proportion is relative, repeat and choose are absolute"),
        ({"repeat": [1, 1, 1], "epoch_size": 100}, "leave out epoch_size=100"),
        ({"repeat": [1, 1, 1], "choose": [5, None, None]}, "Source 0 has repeat=1 and choose=5"),
        ({"choose": [-1, 1, 1]}, "must be 0 or more"),
        ({"proportion": [1, 1]}, "proportion must have one entry per source, 3; got 2"),
    ],
)
def test_streams_with_contradictory_weights_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        choose_per_source(LENGTHS, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": [1]}, "one number per source, 2; got 1"),
        ({"weights": [1, -1]}, "finite numbers >= 0"),
        ({"weights": [1, float("nan")]}, "finite numbers >= 0"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"source_exhausted": "stop"}, "source_exhausted must be one of error, allow, repeat; got 'stop'"),
        ({"batching": "device"}, "batching must be one of random, stratified, per_source; got 'device'"),
        ({"batching": "stratified"}, "needs batch_size=, the samples of a global batch"),
        ({"batching": "per_source", "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batching": "stratified", "batch_size": 8, "weights": [99, 1]}, "Source 1 has a share of 0.01.*a batch of 8"),
        ({"batching": "per_source", "batch_size": 500}, "no batch of 500 samples"),
        (
            {"batching": "per_source", "batch_size": 120, "source_exhausted": "allow"},
            r"no batch of 120 samples; the sources have \[100, 40\]",
        ),
        ({"epoch_size": 0}, "epoch_size must be at least 1 sample, got 0"),
        ({"epoch_size": 2**42, "source_exhausted": "repeat"}, r"at most 2\*\*41 samples"),
        ({"epoch_size": 141, "source_exhausted": "allow"}, "exhausted after 140 samples, epoch_size is 141"),
        ({"schedule": []}, "begins at epoch 0"),
        ({"schedule": [(1, [1, 1])]}, "begins at epoch 0"),
        ({"schedule": [(0, [1, 1]), ((3, 5), [1, 1]), (3, [1, 2])]}, "goes on in time"),
        ({"schedule": [(0, [1, 1]), ((3, 140), [1, 1])], "epoch_size": 20}, r"position 140 of epoch 3.*\[0, 20\)"),
        ({"schedule": [(0, [1, 1])], "weights": [1, 1]}, "either weights or a schedule"),
        ({"window": 0}, "window must be at least 1 block, or None"),
        ({"window": 2, "blocks": [5]}, "blocks must have one entry per source, 2; got 1"),
        ({"window": 2, "blocks": [5, [30, 20]]}, "add up to its 40 samples; got 2 sizes, sum 50"),
        ({"window": 2, "blocks": [0, 10]}, "a size >= 1, or list sizes >= 0.*; got 0"),
        ({"starts": [0]}, "starts must have one id per source, 2; got 1"),
    ],
)
def test_an_impossible_mixture_is_an_error_that_names_the_rule(options, text):
    with pytest.raises(ValueError, match=text):
        MixedOrder([100, 40], **options)


@pytest.mark.parametrize(
    ("sources", "text"),
    [([], "at least one source"), ([0, 0], "All sources are empty"), ([-1, 3], "0 or more, got -1")],
)
def test_impossible_sources_are_errors(sources, text):
    with pytest.raises(ValueError, match=text):
        MixedOrder(sources)


def test_an_empty_source_needs_weight_zero():
    assert sorted(epoch_of(MixedOrder([0, 5]))) == list(range(5))
    with pytest.raises(ValueError, match="Source 0 has no samples, but a weight"):
        MixedOrder([0, 5], weights=[1, 1])


@pytest.mark.parametrize("position", [-1, 120])
def test_a_position_outside_the_epoch_is_an_error(position):
    order = ORDERS["mixed"]()
    for ask in (order.at, order.source_at):
        with pytest.raises(IndexError, match=rf"Positions must lie in \[0, 120\), got .*{position}"):
            ask([3, position], epoch=0)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        order.at([3], epoch=-1)
