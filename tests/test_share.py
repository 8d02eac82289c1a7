"""Shares: how global batches are divided over ranks, and what becomes of the tail."""

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st

from torchslip.order import Share, Topology

WORLDS = [1, 2, 3, 4, 8]
lengths = st.integers(0, 200)
batch_sizes = st.integers(1, 20)
worlds = st.sampled_from(WORLDS)
tails = st.sampled_from(["drop", "pad", "uneven"])
starts = st.integers(0, 200)


def shares(length, batch_size, world_size, tail="uneven"):
    return [Share(length, batch_size, Topology(rank, world_size), tail) for rank in range(world_size)]


def global_batches(ranks, start=0):
    """The slices of all ranks for each batch from `start` to the end."""
    return [[share.batch(start, number) for share in ranks] for number in range(ranks[0].count(start))]


def positions_of(slices):
    return np.sort(np.concatenate([part.positions for part in slices])).tolist()


@given(lengths, batch_sizes, worlds, tails, starts)
def test_every_rank_has_the_same_number_of_batches(length, batch_size, world_size, tail, start):
    counts = {share.count(start) for share in shares(length, batch_size, world_size, tail)}
    left, global_batch = max(length - start, 0), batch_size * world_size
    assert counts == {left // global_batch if tail == "drop" else -(-left // global_batch)}


@given(lengths, st.integers(1, 5), tails, starts)
def test_any_topology_gives_the_same_global_batches(length, multiple, tail, start):
    size = 24 * multiple
    batches = [
        [positions_of(slices) for slices in global_batches(shares(length, size // world, world, tail), start)]
        for world in WORLDS
    ]
    assert batches[1:] == batches[:-1]


@given(lengths, batch_sizes, worlds, starts)
def test_uneven_takes_every_position_once(length, batch_size, world_size, start):
    batches = global_batches(shares(length, batch_size, world_size, "uneven"), start)
    assert [p for slices in batches for p in positions_of(slices)] == list(range(start, length))
    for slices in batches:
        sizes = [len(part.positions) for part in slices]
        assert max(sizes) - min(sizes) <= 1
        assert all(part.valid.all() for part in slices)


@given(lengths, batch_sizes, worlds, starts)
def test_drop_takes_whole_batches_and_leaves_less_than_one(length, batch_size, world_size, start):
    batches = global_batches(shares(length, batch_size, world_size, "drop"), start)
    taken = [p for slices in batches for p in positions_of(slices)]
    assert taken == list(range(start, start + len(taken)))
    assert all(len(part.positions) == batch_size for slices in batches for part in slices)
    assert 0 <= max(length - start, 0) - len(taken) < batch_size * world_size


@given(lengths, batch_sizes, worlds, starts)
def test_pad_takes_whole_batches_and_marks_exactly_the_repeats(length, batch_size, world_size, start):
    batches = global_batches(shares(length, batch_size, world_size, "pad"), start)
    parts = [part for slices in batches for part in slices]
    assert all(len(part.positions) == len(part.valid) == batch_size for part in parts)
    valid = [p for part in parts for p in part.positions[part.valid].tolist()]
    assert sorted(valid) == list(range(start, length))
    repeats = [p for part in parts for p in part.positions[~part.valid].tolist()]
    assert sorted(repeats) == sorted(np.arange(len(repeats)) % max(length, 1))


@given(lengths, batch_sizes, worlds, tails, starts)
def test_the_end_of_a_batch_is_the_start_of_the_next(length, batch_size, world_size, tail, start):
    ranks = shares(length, batch_size, world_size, tail)
    batches = global_batches(ranks, start)
    for number in range(len(batches)):
        position = ranks[0].end(start, number)
        assert ranks[0].first_position(start, number) == position
        rest = [positions_of(slices) for slices in global_batches(ranks, position)]
        assert rest == [positions_of(slices) for slices in batches[number:]]


@given(lengths, batch_sizes, worlds, tails, starts)
def test_after_the_last_batch_comes_the_end_of_the_epoch(length, batch_size, world_size, tail, start):
    share = shares(length, batch_size, world_size, tail)[-1]
    assert share.end(start, share.count(start)) == max(length, start)


@pytest.mark.parametrize("tail", ["drop", "pad", "uneven"])
def test_an_empty_epoch_has_no_batches(tail):
    assert all(share.count() == 0 for share in shares(0, 4, 3, tail))


def test_fewer_samples_than_a_global_batch():
    def parts(tail):
        batches = global_batches(shares(3, 2, 4, tail))
        return [[part.positions.tolist() for part in slices] for slices in batches]

    assert parts("drop") == []
    assert parts("uneven") == [[[0], [1], [2], []]]
    assert parts("pad") == [[[0, 1], [1, 2], [2, 0], [0, 1]]]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_sample(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        Share(9, batch_size, Topology(0, 1))


def test_an_unknown_tail_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="one of drop, pad, uneven; got 'keep'"):
        Share(9, 4, Topology(0, 1), "keep")


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_lies_within_the_world(rank, world_size):
    with pytest.raises(ValueError, match=f"got rank={rank} and world_size={world_size}"):
        Topology.resolve(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2)])
def test_rank_and_world_size_come_together(rank, world_size):
    with pytest.raises(ValueError, match="Give both rank and world_size, or neither"):
        Topology.resolve(rank, world_size)


def test_without_torch_distributed_there_is_one_rank():
    assert Topology.resolve(None, None) == Topology(0, 1)
    assert not torch.distributed.is_initialized()


def test_with_torch_distributed_the_topology_is_that_of_the_group(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert Topology.resolve(None, None) == Topology(0, 1)
        assert Topology.resolve(1, 3) == Topology(1, 3)
    finally:
        torch.distributed.destroy_process_group()


def test_every_process_of_a_group_finds_its_rank(tmp_path):
    torch.multiprocessing.spawn(_check_topology, (2, str(tmp_path / "store")), nprocs=2)


def _check_topology(rank, world_size, path):
    store = torch.distributed.FileStore(path, world_size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        assert Topology.resolve(None, None) == Topology(rank, world_size)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
