"""Counter-based random numbers: the published vectors, the distribution, and what they depend on."""

import numpy as np
import pytest
from scipy import stats

from torchslip.random import derive_key, philox4x32, uniform

IDS = np.arange(40_000)
KEY = derive_key(17, "crop")


@pytest.mark.parametrize(
    ("counter", "key_words", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_agrees_with_the_published_vectors(counter, key_words, words):
    # "philox4x32 10" in kat_vectors of the authors' library Random123
    low, high = (int(word, 16) for word in key_words.split())
    given = np.array([int(word, 16) for word in counter.split()], np.uint32)
    result = philox4x32(given, low | high << 32)
    assert [f"{word:08x}" for word in result] == words.split()


def test_philox_keeps_the_shape_and_counts_each_counter_alone():
    counters = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    words = philox4x32(counters, KEY)
    assert words.shape == (2, 3, 4)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(words[1, 2], philox4x32(counters[1, 2], KEY))


def test_keys_never_change():
    # A key that changes gives every crop and every order of every user another value: never edit these numbers.
    assert derive_key() == 0xC765742576758571
    assert derive_key(17) == 0xE7A3584B608F9E26
    assert derive_key(17, "crop", "image") == 0xB95431D90403CCC7
    assert derive_key(-1, 2**70) == 0xE11E08B7C64262A0


def test_keys_tell_types_and_boundaries_apart():
    parts = [(1,), ("1",), (None,), ("null",), (), ("",), (1, 2), ("1,2",), (12,), (2, 1), ("a", "b"), ("ab",)]
    assert len({derive_key(*each) for each in parts}) == len(parts)


def test_uniform_never_changes():
    # Every crop of every user comes from these: never edit them.
    expected = [
        [0.20666207117028534, 0.871726090554148, 0.6457734340801835, 0.7450589798390865],
        [0.861674600513652, 0.8069366249255836, 0.3232848891057074, 0.29204209125600755],
    ]
    assert uniform(np.array([0, 2**40]), key=KEY, epoch=3, block=1).tolist() == expected


def test_uniform_of_a_sample_does_not_depend_on_the_batch():
    ids = np.array([9, 3, 2**62, 3])
    batch = uniform(ids, key=KEY, epoch=5)
    alone = [uniform(ids[i : i + 1], key=KEY, epoch=5)[0] for i in range(4)]
    np.testing.assert_array_equal(batch, alone)
    assert uniform(ids[:0], key=KEY, epoch=5).shape == (0, 4)


def test_uniform_fills_the_unit_interval_evenly():
    values = uniform(IDS, key=KEY, epoch=0)
    assert values.dtype == np.float64
    assert values.min() >= 0
    assert values.max() < 1
    assert (values * 2**32 % 1 == 0).all()
    for column in values.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    # The standard error of the mean of 160,000 numbers is 0.0007, that of their variance 0.0002.
    assert abs(values.mean() - 1 / 2) < 0.003
    assert abs(values.var() - 1 / 12) < 0.001


@pytest.mark.parametrize(
    "other",
    [
        lambda ids: uniform(ids + 1, key=KEY, epoch=0),
        lambda ids: uniform(ids + 2**32, key=KEY, epoch=0),
        lambda ids: uniform(ids, key=KEY, epoch=1),
        lambda ids: uniform(ids, key=KEY, epoch=0, block=1),
        lambda ids: uniform(ids, key=derive_key(18, "crop"), epoch=0),
        lambda ids: uniform(ids, key=derive_key(17, "flip"), epoch=0),
        lambda ids: uniform(ids, key=KEY, epoch=0)[:, [1, 2, 3, 0]],
    ],
    ids=["neighbour", "distant id", "next epoch", "next block", "next seed", "other operation", "other word"],
)
def test_uniform_is_independent_of_its_neighbours(other):
    values, others = uniform(IDS, key=KEY, epoch=0), other(IDS)
    for first, second in zip(values.T, others.T, strict=True):
        table, _, _ = np.histogram2d(first, second, bins=16, range=[[0, 1], [0, 1]])
        assert stats.chisquare(table.ravel()).pvalue > 0.001
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_that_does_not_fit_the_counter_is_an_error(epoch):
    with pytest.raises(OverflowError):
        uniform(IDS[:1], key=KEY, epoch=epoch)
