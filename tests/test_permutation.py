"""The keyed permutation: a bijection at any size, uniform over all permutations, and the same for ever."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torchslip.order import Permutation

MIXED_SIZES = [10, 100, 1000, 12345]


def values(n, *key):
    return Permutation(n, *key)(np.arange(n))


@pytest.mark.parametrize("n", [*range(1, 201), 1023, 1024, 1025, 65_536, 65_537, 300_007])
def test_a_permutation_holds_every_value_once(n):
    permuted = values(n, 17, "bijection")
    assert permuted.dtype == np.int64
    np.testing.assert_array_equal(np.sort(permuted), np.arange(n))


@given(st.integers(1, 2**62), st.integers(), st.data())
def test_inverse_leads_back(n, seed, data):
    permutation = Permutation(n, seed)
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=20))
    permuted = permutation(positions)
    assert ((permuted >= 0) & (permuted < n)).all()
    assert permutation.inverse(permuted).tolist() == positions
    assert permutation(permutation.inverse(positions)).tolist() == positions


@pytest.mark.parametrize("n", [7, 1000, 12345, 10**12])
def test_a_position_alone_equals_the_position_in_a_batch(n):
    permutation = Permutation(n, 17)
    positions = np.linspace(0, n - 1, 12, dtype=np.int64).reshape(3, 4)
    batch = permutation(positions)
    assert batch.shape == (3, 4)
    assert batch.tolist() == [[int(permutation(position)) for position in row] for row in positions]


# Orders of running trainings are made of these: never edit them, an order never changes between versions.
PINNED = {
    1: [0],
    2: [0, 1],
    7: [2, 5, 4, 1, 6, 3, 0],
    16: [13, 11, 12, 1, 5, 0, 3, 6, 10, 8, 15, 7, 2, 14, 9, 4],
    1000: [392, 954, 855, 907, 782, 192, 425, 810],
    10**6: [109333, 206824, 857163, 779169, 704226, 726657, 364783, 908054],
    10**12: [886574658529, 376427995999, 64269610992, 842250888540, 227481684400, 961396038073],
    2**62: [3972562622159645946, 2955959562280345934, 1317936083897994525, 2564052091857688841],
}


@pytest.mark.parametrize("n", PINNED)
def test_a_permutation_never_changes(n):
    assert Permutation(n, 17, 0, "samples")(np.arange(len(PINNED[n]))).tolist() == PINNED[n]


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_all_permutations_of_a_small_set_come_out_equally_often(n):
    keys = max(400, 10 * math.factorial(n))
    counts = dict.fromkeys(itertools.permutations(range(n)), 0)
    for key in range(keys):
        counts[tuple(values(n, key).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("n", [33, 1056])
def test_even_and_odd_permutations_come_out_equally_often(n):
    odd = sum(_is_odd(values(n, key)) for key in range(400))
    assert stats.binomtest(odd, 400).pvalue > 0.001


def _is_odd(permuted):
    left, cycles = set(range(len(permuted))), 0
    while left:
        value, cycles = left.pop(), cycles + 1
        while (value := int(permuted[value])) in left:
            left.remove(value)
    return (len(permuted) - cycles) % 2 == 1


@pytest.mark.parametrize("n", MIXED_SIZES)
def test_values_are_independent_of_positions(n):
    bins = min(n, 20)
    table = np.zeros((bins, bins))
    for key in range(max(3, 20_000 // n)):
        np.add.at(table, (np.arange(n) * bins // n, values(n, key) * bins // n), 1)
    assert _independent(table)


@pytest.mark.parametrize("n", MIXED_SIZES)
@pytest.mark.parametrize("step", [1, 2, "row"])
def test_differences_of_neighbours_are_uniform(n, step):
    # A row is the step at which positions share one half in the Feistel network.
    step = math.isqrt(n) if step == "row" else step
    counts = np.zeros(n - 1)
    for key in range(max(3, 20_000 // n)):
        permuted = values(n, key)
        counts += np.bincount((permuted[step:] - permuted[:-step]) % n, minlength=n)[1:]
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("n", MIXED_SIZES)
def test_successive_values_are_independent(n):
    bins = min(n, 20)
    table = np.zeros((bins, bins))
    for key in range(max(3, 20_000 // n)):
        binned = values(n, key) * bins // n
        # Every other pair, so that the pairs don't overlap.
        np.add.at(table, (binned[:-1:2], binned[1::2]), 1)
    # Two values of one permutation differ, which empties the diagonal where a bin holds only one value.
    assert _independent(table, without_diagonal=bins == n)


def _independent(table, *, without_diagonal=False):
    kept = ~np.eye(len(table), dtype=bool) if without_diagonal else np.ones(table.shape, bool)
    return stats.chisquare(table[kept]).pvalue > 0.001


@pytest.mark.parametrize("other_key", [(18, 0), (17, 1), (17, 2), (-17, 0)])
def test_neighbouring_seeds_and_epochs_are_uncorrelated(other_key):
    n = 100_000
    first, second = values(n, 17, 0), values(n, *other_key)
    table, _, _ = np.histogram2d(first, second, bins=20)
    assert stats.chisquare(table.ravel()).pvalue > 0.001
    # The correlation of two random permutations has a standard deviation of 1 / sqrt(n) = 0.003; one fixed point is
    # expected.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.012
    assert (first == second).sum() < 10


def test_a_trillion_samples_need_no_memory():
    tracemalloc.start()
    permuted = Permutation(10**12, 17)(np.arange(256) + 10**11)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(permuted)) == 256
    assert peak_bytes < 100_000


@pytest.mark.parametrize("n", [0, -1, 2**62 + 1])
def test_a_size_out_of_range_is_an_error(n):
    with pytest.raises(ValueError, match=r"needs 1 <= n <= 2\*\*62, got n="):
        Permutation(n, 17)


@pytest.mark.parametrize("position", [-1, 10, 2**62])
def test_a_position_out_of_range_is_an_error(position):
    permutation = Permutation(10, 17)
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        permutation([0, position])
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        permutation.inverse([0, position])
