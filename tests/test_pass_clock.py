"""The agreement of all workers on the epoch of their pass."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from torchslip.loading._clock import Pass, PassClock

ROUNDS = 3000


def _begin_many(clock: PassClock, together: object, epochs: object, row: int) -> None:
    view = np.frombuffer(epochs, np.int64).reshape(-1, ROUNDS)
    for number in range(ROUNDS):
        together.wait(timeout=60)
        view[row, number] = clock.begin().epoch


def test_processes_that_begin_a_pass_at_the_same_moment_agree_on_its_epoch():
    context = multiprocessing.get_context("fork")
    clock, together, epochs = PassClock(), context.Barrier(3), context.RawArray("q", 3 * ROUNDS)
    processes = [context.Process(target=_begin_many, args=(clock, together, epochs, row)) for row in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (np.frombuffer(epochs, np.int64).reshape(3, ROUNDS) == np.arange(ROUNDS)).all()


def test_passes_count_up_from_what_was_set():
    clock = PassClock()
    assert [clock.begin() for _ in range(2)] == [Pass(0, 0), Pass(1, 0)]
    clock.set(7, 40)

    assert clock.next == clock.latest == Pass(7, 40)
    assert [clock.begin(), clock.latest, clock.begin(), clock.latest] == [Pass(7, 40)] * 2 + [Pass(8, 0)] * 2


def test_setting_the_same_epoch_again_begins_it_again():
    clock = PassClock()
    for _ in range(300):  # beyond the count of generations
        clock.set(5, 0)
        assert clock.begin() == Pass(5, 0)


def test_a_copy_has_its_own_shared_memory_and_the_same_time():
    clock = PassClock()
    clock.set(3, 12)
    copy = pickle.loads(pickle.dumps(clock))
    copy.begin()

    assert copy.next == Pass(4, 0) and clock.next == Pass(3, 12)
    assert copy._shared.is_shared()


@pytest.mark.parametrize("epoch", [-1, 1 << 23])
def test_an_epoch_out_of_range_is_refused(epoch):
    with pytest.raises(ValueError, match=r"epoch must lie in \[0, 8388608\)"):
        PassClock().set(epoch, 0)
