"""The batch sampler: any topology gives the same global batches, and a resumed run is the uninterrupted one."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from torchslip.order import DistributedBatchSampler, IndexBatch, Sequential, Shuffled, Subset

WORLDS = [1, 2, 3, 4, 8]
TAILS = ["drop", "pad", "uneven"]


def samplers(order, batch_size, world_size=1, **options):
    """One sampler for each rank."""
    return [
        DistributedBatchSampler(order, batch_size=batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def passes(ranks):
    """The global batches of one pass: for each the ids of all ranks, in the order of their positions."""
    for batches in zip(*ranks, strict=True):
        rows = itertools.zip_longest(*batches)
        yield [sample for row in rows for sample in row if sample is not None]


def flat(batches):
    return [sample for batch in batches for sample in batch]


def epoch_of(order, epoch):
    return order.at(range(len(order)), epoch=epoch).tolist()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("length", [0, 5, 24, 48, 101])
def test_any_topology_gives_the_same_global_batches(length, tail):
    order = Shuffled(length, seed=17)
    batches = [list(passes(samplers(order, 24 // world, world, tail=tail))) for world in WORLDS]
    assert batches[1:] == batches[:-1]


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("order", [Sequential(50), Shuffled(50), Shuffled(50, window=3, blocks=4), Subset([9] * 50)])
def test_an_epoch_is_the_order_itself(order, world_size):
    ranks = samplers(order, 4, world_size)
    for epoch in range(3):
        assert flat(passes(ranks)) == epoch_of(order, epoch)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("world_size", WORLDS)
def test_every_rank_has_as_many_batches_as_its_length_says(world_size, tail):
    for length in (0, 1, 11, 24, 25):
        counts = {(len(rank), len(list(rank))) for rank in samplers(Shuffled(length), 3, world_size, tail=tail)}
        full, rest = divmod(length, 3 * world_size)
        count = full + (tail != "drop" and rest > 0)
        assert counts == {(count, count)}


@pytest.mark.parametrize("world_size", WORLDS)
def test_pad_marks_exactly_the_repeats(world_size):
    order = Shuffled(29, seed=17)
    batches = [batch for rank in samplers(order, 4, world_size, tail="pad") for batch in rank]
    assert all(len(batch) == len(batch.valid) == 4 for batch in batches)
    valid = [sample for batch in batches for sample, is_valid in zip(batch, batch.valid, strict=True) if is_valid]
    assert sorted(valid) == list(range(29))


@pytest.mark.parametrize("tail", ["drop", "uneven"])
def test_without_pad_there_is_no_mask(tail):
    assert {batch.valid for batch in samplers(Shuffled(29), 4, tail=tail)[0]} == {None}


def test_a_batch_knows_its_epoch_and_the_position_of_its_global_batch():
    for rank in samplers(Shuffled(24), 4, 2):
        for epoch in range(2):
            assert [(batch.epoch, batch.key) for batch in rank] == [(epoch, 0), (epoch, 8), (epoch, 16)]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
@pytest.mark.parametrize("valid", [None, np.array([True, True, False])], ids=["whole", "padded"])
def test_a_batch_survives_pickling_with_what_it_knows(valid, clone):
    batch = clone(IndexBatch(np.array([7, 2**40, 7]), epoch=3, valid=valid, key=96))
    assert batch == [7, 2**40, 7]
    assert type(batch) is IndexBatch
    assert all(type(sample) is int for sample in batch)
    assert (batch.epoch, batch.key) == (3, 96)
    np.testing.assert_array_equal(batch.valid, valid)


@pytest.mark.parametrize(("world_size", "batch_size"), [*zip(WORLDS, [4] * 5, strict=True), (1, 5), (3, 1), (2, 50)])
def test_resuming_at_any_step_continues_the_same_global_sequence(world_size, batch_size):
    order = Shuffled(61, seed=17)
    for first_world in WORLDS:
        for step in range(-(-61 // (3 * first_world)) + 1):
            first = samplers(order, 3, first_world)
            begun = [list(itertools.islice(rank, step)) for rank in first]
            states = [rank.state_dict() for rank in first]
            assert states.count(states[0]) == first_world
            second = samplers(order, batch_size, world_size)
            for rank in second:
                rank.load_state_dict(states[0])
                rank.set_epoch(0)
            done = sum(map(len, flat(begun)))
            assert flat(passes(second)) == epoch_of(order, 0)[done:]
            assert flat(passes(second)) == epoch_of(order, 1)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("with_set_epoch", [False, True])
def test_resuming_at_any_step_on_the_same_topology_gives_the_same_batches(tail, with_set_epoch):
    whole = samplers(Shuffled(50, seed=17), 4, 2, tail=tail)
    expected = [list(passes(whole)) for _ in range(3)]
    for step in range(len(expected[1])):
        first, second = (samplers(Shuffled(50, seed=17), 4, 2, tail=tail) for _ in range(2))
        for old, new in zip(first, second, strict=True):
            old.set_epoch(1)
            list(itertools.islice(old, step))
            new.load_state_dict(json.loads(json.dumps(old.state_dict())))
            if with_set_epoch:
                new.set_epoch(1)
        assert list(passes(second)) == expected[1][step:]
        assert list(passes(second)) == expected[2]


@pytest.mark.parametrize("tail", TAILS)
def test_a_resumed_run_can_be_interrupted_again(tail):
    (sampler,) = samplers(Shuffled(50, seed=17), 4, tail=tail)
    state, batches = sampler.state_dict(), []
    for _ in range(len(sampler)):
        (new,) = samplers(Shuffled(50, seed=17), 4, tail=tail)
        new.load_state_dict(state)
        batches.append(next(iter(new)))
        state = new.state_dict()
    assert batches == list(sampler)


@pytest.mark.parametrize("tail", TAILS)
def test_a_state_from_the_end_of_an_epoch_leads_to_the_next(tail):
    order = Shuffled(50, seed=17)
    old, new = samplers(order, 4, tail=tail) + samplers(order, 8, tail=tail)
    count = len(list(old))
    for state in (old.state_dict(), old.state_at(count)):
        new.load_state_dict(state)
        assert new.epoch == 0
        assert {batch.epoch for batch in new} == {1}


@pytest.mark.parametrize("tail", TAILS)
def test_a_state_from_the_end_of_an_epoch_does_not_repeat_it(tail):
    # A checkpoint after the last batch of epoch 0, then a training loop that begins with epoch 0 again.
    order = Shuffled(50, seed=17)
    old, new = samplers(order, 4, tail=tail) + samplers(order, 8, tail=tail)
    new.load_state_dict(old.state_at(len(list(old))))
    new.set_epoch(0)
    assert list(new) == []
    new.set_epoch(1)
    assert {batch.epoch for batch in new} == {1}


def test_every_pass_takes_the_next_epoch_and_set_epoch_chooses_another():
    (sampler,) = samplers(Shuffled(9, seed=17), 4)
    epochs = [{batch.epoch for batch in sampler} for _ in range(2)]
    sampler.set_epoch(7)
    assert sampler.epoch == 7
    epochs += [{batch.epoch for batch in sampler} for _ in range(2)]
    sampler.set_epoch(7)
    epochs += [{batch.epoch for batch in sampler}]
    assert epochs == [{0}, {1}, {7}, {8}, {7}]


def test_a_pass_that_is_left_early_still_leads_to_the_next_epoch():
    (sampler,) = samplers(Shuffled(9, seed=17), 4)
    next(iter(sampler))
    assert {batch.epoch for batch in sampler} == {1}


def test_set_epoch_starts_a_begun_epoch_again():
    (sampler,) = samplers(Shuffled(9, seed=17), 4)
    first = next(iter(sampler))
    sampler.set_epoch(0)
    assert next(iter(sampler)) == first


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_only():
    order = Shuffled(9, seed=17)
    old, new = samplers(order, 4) + samplers(order, 4)
    next(iter(old))
    new.load_state_dict(old.state_dict())
    new.set_epoch(0)
    new.set_epoch(0)
    assert flat(new) == epoch_of(order, 0)[4:]
    new.load_state_dict(old.state_dict())
    new.set_epoch(1)
    assert flat(new) == epoch_of(order, 1)


def test_a_loaded_state_is_the_state():
    order = Shuffled(50, seed=17)
    old, new = samplers(order, 4) + samplers(order, 8)
    list(itertools.islice(old, 3))
    new.load_state_dict(old.state_dict())
    assert new.state_dict() == old.state_dict()


@pytest.mark.parametrize("tail", TAILS)
def test_state_at_equals_the_state_when_so_many_batches_were_handed_out(tail):
    order = Shuffled(50, seed=17)
    (sampler,) = samplers(order, 4, tail=tail)
    states = [sampler.state_dict()] + [sampler.state_dict() for _ in sampler]
    assert [sampler.state_at(number) for number in range(len(states))] == states
    resumed = samplers(order, 8, tail=tail)[0]
    resumed.load_state_dict(states[2])
    handed_out = [resumed.state_dict() for _ in resumed]
    assert [resumed.state_at(number + 1) for number in range(len(handed_out))] == handed_out


class Ids(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return index


class Batches(torch.utils.data.Dataset):
    """Reports what reaches a worker with the ids."""

    def __getitems__(self, batch):
        return [(batch.epoch, batch.key, batch.valid.tolist())]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_dataloader_yields_the_order(num_workers):
    order = Shuffled(50, seed=17)
    loader = DataLoader(Ids(), batch_sampler=samplers(order, 4)[0], num_workers=num_workers)
    assert len(loader) == 13
    for epoch in range(2):
        assert torch.cat(list(loader)).tolist() == epoch_of(order, epoch)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_state_at_resumes_a_plain_dataloader_after_any_batch(num_workers):
    order = Shuffled(50, seed=17)
    (sampler,) = samplers(order, 4)
    loader = DataLoader(Ids(), batch_sampler=sampler, num_workers=num_workers)
    delivered = []
    for number, batch in enumerate(loader, start=1):
        delivered += batch.tolist()
        # The workers have prefetched, so the sampler is ahead of this loop, at last even through with the epoch.
        (resumed,) = samplers(order, 8)
        resumed.load_state_dict(sampler.state_at(number))
        resumed.set_epoch(0)
        assert delivered + flat(resumed) == epoch_of(order, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epoch_key_and_mask_reach_the_workers(num_workers):
    (sampler,) = samplers(Shuffled(10, seed=17), 4, tail="pad")
    sampler.set_epoch(5)
    loader = DataLoader(Batches(), batch_sampler=sampler, num_workers=num_workers, collate_fn=list)
    expected = [(5, 0, [True] * 4), (5, 4, [True] * 4), (5, 8, [True, True, False, False])]
    assert flat(loader) == expected


def test_the_topology_is_that_of_torch_distributed(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        by_default = DistributedBatchSampler(Shuffled(50, seed=17), batch_size=4)
        assert list(by_default) == list(samplers(Shuffled(50, seed=17), 4)[0])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "tail": "keep"}, "tail must be one of drop, pad, uneven; got 'keep'"),
        ({"batch_size": 4, "rank": 0}, "Give both rank and world_size, or neither"),
        ({"batch_size": 4, "world_size": 2}, "Give both rank and world_size, or neither"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "got rank=2 and world_size=2"),
    ],
)
def test_an_impossible_argument_is_an_error_when_the_sampler_is_made(options, text):
    with pytest.raises(ValueError, match=text):
        DistributedBatchSampler(Shuffled(9), **options)


def test_an_epoch_is_zero_or_more():
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        samplers(Shuffled(9), 4)[0].set_epoch(-1)
