"""Orders: an epoch is a permutation, a window bounds what is mixed, and neither ever changes."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchslip.order import Order, Sequential, Shuffled, Subset

lengths = st.integers(0, 300)
seeds = st.integers(-(2**63), 2**63)
epochs = st.integers(0, 2**32 - 1)
windows = st.integers(1, 20)


def epoch_of(order, epoch=0):
    return order.at(np.arange(len(order)), epoch=epoch).tolist()


@given(lengths, epochs)
def test_sequential_keeps_the_stored_order(length, epoch):
    assert epoch_of(Sequential(length), epoch) == list(range(length))


@given(st.lists(st.integers(0, 99)), epochs)
def test_a_subset_keeps_the_given_order_and_repeats(indices, epoch):
    assert epoch_of(Subset(indices), epoch) == indices


@given(lengths, seeds, epochs)
def test_a_shuffled_epoch_is_a_permutation(length, seed, epoch):
    order = Shuffled(length, seed=seed)
    assert len(order) == length
    assert sorted(epoch_of(order, epoch)) == list(range(length))


@given(lengths, seeds, epochs, windows, st.integers(1, 50))
def test_a_windowed_epoch_of_equal_blocks_is_a_permutation(length, seed, epoch, window, block_size):
    order = Shuffled(length, seed=seed, window=window, blocks=block_size)
    assert sorted(epoch_of(order, epoch)) == list(range(length))


@given(st.lists(st.integers(0, 20), max_size=20), seeds, epochs, windows)
def test_a_windowed_epoch_of_listed_blocks_is_a_permutation(sizes, seed, epoch, window):
    order = Shuffled(sum(sizes), seed=seed, window=window, blocks=sizes)
    assert sorted(epoch_of(order, epoch)) == list(range(sum(sizes)))


@given(st.integers(1, 300), st.integers(1, 50), windows, seeds)
def test_a_window_over_equal_blocks_takes_all_of_its_blocks_and_no_other(length, block_size, window, seed):
    ids = np.array(epoch_of(Shuffled(length, seed=seed, window=window, blocks=block_size)))
    sizes = [min(block_size, length - first) for first in range(0, length, block_size)]
    _check_windows((ids // block_size).tolist(), sizes, window)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), windows, seeds)
def test_a_window_over_listed_blocks_takes_all_of_its_blocks_and_no_other(sizes, window, seed):
    ids = epoch_of(Shuffled(sum(sizes), seed=seed, window=window, blocks=sizes))
    _check_windows(np.repeat(np.arange(len(sizes)), sizes)[ids].tolist(), sizes, window)


def _check_windows(blocks, sizes, window):
    last_position = {block: position for position, block in enumerate(blocks)}
    finished = sorted(last_position, key=last_position.__getitem__)
    begin = 0
    for first in range(0, len(sizes), window):
        group = finished[first : first + window]
        end = begin + sum(sizes[block] for block in group)
        assert set(blocks[begin:end]) == set(group)
        begin = end


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), windows, seeds)
def test_never_more_than_window_blocks_are_begun_and_not_finished(sizes, window, seed):
    ids = epoch_of(Shuffled(sum(sizes), seed=seed, window=window, blocks=sizes))
    blocks = np.repeat(np.arange(len(sizes)), sizes)[ids].tolist()
    left, begun = list(sizes), set()
    for block in blocks:
        begun.add(block)
        assert len(begun) <= window
        left[block] -= 1
        begun -= set() if left[block] else {block}


def test_a_window_mixes_its_blocks_evenly():
    ids = np.array(epoch_of(Shuffled(100_000, seed=17, window=10, blocks=1000)))
    for window in ids.reshape(10, 10_000):
        _, blocks = np.unique(window // 1000, return_inverse=True)
        table = np.zeros((10, 10))
        np.add.at(table, (np.arange(10_000) // 1000, blocks), 1)
        assert stats.chisquare(table.ravel()).pvalue > 0.001


def test_windows_are_shuffled_independently():
    ids = np.array(epoch_of(Shuffled(2000, seed=17, window=1, blocks=1000)))
    first, second = ids.reshape(2, 1000) % 1000
    # Two random permutations agree in one place on average.
    assert (first == second).sum() < 10
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.15


@pytest.mark.parametrize("options", [{}, {"window": 3, "blocks": 50}], ids=["whole", "windowed"])
def test_epochs_and_seeds_give_unrelated_orders(options):
    orders = [np.array(epoch_of(Shuffled(2000, seed=seed, **options), epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 15
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.4


@given(st.lists(st.integers(0, 99)), seeds, st.sampled_from([None, 1, 3]))
def test_a_shuffled_subset_yields_that_subset(indices, seed, window):
    order = Shuffled(Subset(indices), seed=seed, window=window, blocks=4)
    assert sorted(epoch_of(order)) == sorted(indices)


# Running trainings go by these orders: never edit them, an order never changes between versions.
# fmt: off
PINNED = {
    "whole": (
        {},
        [5, 3, 6, 13, 18, 4, 0, 10, 11, 1, 2, 7, 8, 15, 14, 9, 12, 16, 19, 17],
        [10, 8, 15, 16, 12, 4, 18, 14, 13, 11, 1, 19, 9, 6, 7, 2, 0, 17, 5, 3],
    ),
    "equal blocks": (
        {"window": 2, "blocks": 3},
        [1, 0, 2, 6, 7, 8, 10, 19, 11, 9, 18, 15, 16, 5, 17, 3, 4, 14, 12, 13],
        [4, 16, 3, 15, 17, 5, 1, 19, 18, 2, 0, 9, 11, 7, 10, 8, 6, 14, 12, 13],
    ),
    "listed blocks": (
        {"window": 2, "blocks": [5, 0, 7, 1, 0, 4, 3]},
        [5, 2, 7, 1, 10, 6, 3, 0, 8, 4, 11, 9, 17, 19, 18, 12, 15, 16, 14, 13],
        [16, 14, 13, 15, 3, 18, 17, 1, 4, 2, 0, 19, 8, 10, 6, 11, 12, 5, 9, 7],
    ),
}
# fmt: on


@pytest.mark.parametrize("name", PINNED)
def test_an_order_never_changes(name):
    options, *expected = PINNED[name]
    order = Shuffled(20, seed=17, **options)
    assert [epoch_of(order, epoch) for epoch in (0, 1)] == expected


ORDERS = {
    "sequential": lambda: Sequential(20),
    "sequential 21": lambda: Sequential(21),
    "subset": lambda: Subset(range(20)),
    "subset reversed": lambda: Subset(range(20)[::-1]),
    "shuffled": lambda: Shuffled(20, seed=17),
    "seed": lambda: Shuffled(20, seed=18),
    "length": lambda: Shuffled(21, seed=17),
    "subset shuffled": lambda: Shuffled(Subset(range(20)), seed=17),
    "other subset shuffled": lambda: Shuffled(Subset(range(1, 21)), seed=17),
    "shuffled twice": lambda: Shuffled(Shuffled(20, seed=17), seed=17),
    "windowed": lambda: Shuffled(20, seed=17, window=2, blocks=3),
    "window": lambda: Shuffled(20, seed=17, window=3, blocks=3),
    "block size": lambda: Shuffled(20, seed=17, window=2, blocks=4),
    "listed": lambda: Shuffled(20, seed=17, window=2, blocks=[5, 5, 10]),
    "listed otherwise": lambda: Shuffled(20, seed=17, window=2, blocks=[5, 10, 5]),
}


@pytest.mark.parametrize("name", ORDERS)
def test_fingerprints_are_equal_for_the_same_order_only(name):
    fingerprint = ORDERS[name]().fingerprint
    assert [other for other in ORDERS if ORDERS[other]().fingerprint == fingerprint] == [name]
    assert all(isinstance(value, int | str | None) for value in fingerprint.values())


def test_what_does_not_change_the_order_does_not_change_the_fingerprint():
    one = Shuffled(20, seed=17)
    for same in (Shuffled(range(20), seed=17), Shuffled(Sequential(20), seed=17), Shuffled(20, seed=17, blocks=3)):
        assert same.fingerprint == one.fingerprint
        assert epoch_of(same) == epoch_of(one)
    assert Subset(np.arange(3, dtype=np.uint8)).fingerprint == Subset([0, 1, 2]).fingerprint


@pytest.mark.parametrize("name", ORDERS)
def test_orders_survive_pickling(name):
    order = ORDERS[name]()
    copy = pickle.loads(pickle.dumps(order))
    assert isinstance(copy, Order)
    assert copy.fingerprint == order.fingerprint
    assert epoch_of(copy, 3) == epoch_of(order, 3)
    assert repr(copy) == repr(order)


@pytest.mark.parametrize("name", ORDERS)
def test_any_positions_in_any_shape_can_be_asked_alone(name):
    order = ORDERS[name]()
    positions = np.array([[19, 0, 7], [7, 3, 19]])
    whole = epoch_of(order, 2)
    assert order.at(positions, epoch=2).tolist() == [[whole[p] for p in row] for row in positions]
    assert order.at(5, epoch=2).shape == ()
    assert order.at([], epoch=2).tolist() == []


@pytest.mark.parametrize("name", ORDERS)
def test_ids_belong_to_the_caller(name):
    order, positions = ORDERS[name](), np.arange(20)
    ids = order.at(positions, epoch=0)
    kept = ids.copy()
    ids[:] = 0
    assert positions.tolist() == list(range(20))
    assert order.at(positions, epoch=0).tolist() == kept.tolist()


@pytest.mark.parametrize("epoch", [3, np.int64(3), torch.tensor(3)], ids=lambda epoch: type(epoch).__name__)
def test_an_epoch_is_a_number_whatever_its_type(epoch):
    assert Shuffled(20, seed=np.int64(17)).at(range(20), epoch=epoch).tolist() == epoch_of(Shuffled(20, seed=17), 3)


@pytest.mark.parametrize("base", [5, np.int64(5), [0] * 5, np.zeros((5, 2)), torch.zeros(5, 2), Sequential(5)])
def test_a_length_is_a_number_or_anything_with_a_length(base):
    assert sorted(epoch_of(Shuffled(base))) == list(range(5))


@pytest.mark.parametrize("options", [{}, {"window": 16, "blocks": 1024}], ids=["whole", "windowed"])
def test_the_order_of_a_billion_samples_needs_no_memory(options):
    tracemalloc.start()
    ids = Shuffled(10**9, seed=17, **options).at(np.arange(256) + 10**8, epoch=3)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(ids)) == 256
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("position", [-1, 21])
def test_a_position_outside_the_epoch_is_an_error(name, position):
    with pytest.raises(IndexError, match=rf"Positions must lie in \[0, 2[01]\), got .*{position}"):
        ORDERS[name]().at([3, position], epoch=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sequential(-1), "length must be 0 or more, got -1"),
        (lambda: Subset([1, -2]), "indices must be 0 or more, got -2"),
        (lambda: Subset([[1, 2]]), r"flat list of integers, got int64 \[1, 2\]"),
        (lambda: Subset([0.5]), "flat list of integers, got float64"),
        (lambda: Subset([True, False]), "flat list of integers, got bool"),
        (lambda: Shuffled(9, window=0), "window must be at least 1 block, or None"),
        (lambda: Shuffled(9, window=2, blocks=0), "blocks must be at least 1 sample each, got 0"),
        (lambda: Shuffled(9, window=2, blocks=[4, 4]), "add up to the 9 samples; got 2 sizes, sum 8"),
        (lambda: Shuffled(9, window=2, blocks=[10, -1]), "sizes >= 0"),
    ],
)
def test_an_impossible_order_is_an_error_that_names_the_rule(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("options", [{"seed": 1.5}, {"seed": "17"}, {"window": 2.0}, {"window": 2, "blocks": 4.0}])
def test_seeds_windows_and_blocks_are_integers(options):
    with pytest.raises(TypeError):
        Shuffled(9, **options)
