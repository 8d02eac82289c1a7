"""A run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import torchslip as ts
from torchslip.errors import StateError

PIECES = 42


def make(folder: Path, **options: object) -> ts.ImageDataset:
    arguments = {"views": ts.RandomResizedCrop(8), "batch_size": 4, "shuffle": True, "seed": 17} | options
    return ts.ImageDataset(folder, **arguments)


def ids_of(batches: object) -> list[int]:
    return [sample for batch in batches for sample in batch["sample_id"].tolist()]


@pytest.fixture(scope="module")
def epoch_ids(picture_folder) -> list[list[int]]:
    dataset = make(picture_folder)
    return [ids_of(dataset), ids_of(dataset)]


def global_ids(ranks: list[list[list[int]]]) -> list[int]:
    """The global sequence from the batches of every rank: samples are dealt one by one."""
    sequence = []
    for batches in itertools.zip_longest(*ranks, fillvalue=[]):
        sequence += [i for row in itertools.zip_longest(*batches) for i in row if i is not None]
    return sequence


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_resume_at_every_step_on_any_number_of_ranks_equals_no_interruption(picture_folder, epoch_ids, world):
    # Six samples per rank here, whatever the batch size of the interrupted run: the position counts samples.
    for step in range(12):
        loader = ts.DataLoader(make(picture_folder))
        before = ids_of(itertools.islice(loader, step))
        state = json.loads(json.dumps(loader.state_dict()))

        ranks = []
        for rank in range(world):
            again = ts.DataLoader(make(picture_folder, batch_size=6, rank=rank, world_size=world))
            again.load_state_dict(state)
            ranks.append([batch["sample_id"].tolist() for batch in again])
            # at the end of an epoch, the next pass is the next epoch
        after = global_ids(ranks)
        expected = epoch_ids[0] if len(before) < PIECES else epoch_ids[0] + epoch_ids[1]
        assert before + after == expected, step


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 4), (4, 1), (2, 3)])
def test_resume_with_real_workers_on_any_number_of_them_equals_no_interruption(
    picture_folder, epoch_ids, before, after
):
    for step in (1, 5, 10):
        loader = ts.DataLoader(make(picture_folder), num_workers=before)
        batches = iter(loader)
        first = ids_of(itertools.islice(batches, step))
        state = loader.state_dict()
        del batches

        again = ts.DataLoader(make(picture_folder), num_workers=after)
        again.load_state_dict(state)
        assert first + ids_of(again) == epoch_ids[0]
        assert ids_of(again) == epoch_ids[1]


def test_the_state_is_equal_on_all_ranks_and_plain_data(picture_folder):
    states = []
    for rank in range(3):
        loader = ts.DataLoader(make(picture_folder, rank=rank, world_size=3))
        next(iter(loader))
        states.append(loader.state_dict())

    assert states[0] == states[1] == states[2] == json.loads(json.dumps(states[0]))
    assert (states[0]["epoch"], states[0]["position"]) == (0, 12)


def test_prefetched_batches_do_not_count(picture_folder):
    loader = ts.DataLoader(make(picture_folder), num_workers=2, prefetch_factor=4)
    batches = iter(loader)
    next(batches)

    assert loader.state_dict()["position"] == 4


def test_crops_go_on_as_well(picture_folder):
    whole = list(make(picture_folder))
    loader = ts.DataLoader(make(picture_folder))
    loader.load_state_dict(ts.DataLoader(make(picture_folder)).state_dict() | {"position": 12})

    for one, two in zip(whole[3:], loader, strict=True):
        assert torch.equal(one["image"], two["image"])


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_stateful_dataloader_resumes_at_every_step(picture_folder, epoch_ids, workers):
    steps = range(11) if workers == 0 else (0, 1, 2, 5, 10)
    for step in steps:
        loader = StatefulDataLoader(make(picture_folder), batch_size=None, num_workers=workers)
        batches = iter(loader)
        first = ids_of(itertools.islice(batches, step))
        state = loader.state_dict()
        del batches

        again = StatefulDataLoader(make(picture_folder), batch_size=None, num_workers=workers)
        again.load_state_dict(state)
        assert first + ids_of(again) == epoch_ids[0], step


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_dataloader_goes_on_to_the_next_epoch(picture_folder, epoch_ids, workers):
    loader = StatefulDataLoader(make(picture_folder), batch_size=None, num_workers=workers)
    assert ids_of(loader) == epoch_ids[0]
    state = loader.state_dict()

    again = StatefulDataLoader(make(picture_folder), batch_size=None, num_workers=workers)
    again.load_state_dict(state)
    assert ids_of(again) == epoch_ids[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_map_dataset_resumes_too(picture_folder, epoch_ids, workers):
    def loader() -> ts.DataLoader:
        dataset = ts.ImageMapDataset(picture_folder, views=ts.RandomResizedCrop(8), seed=17)
        order = ts.Shuffled(dataset, seed=17)
        sampler = ts.DistributedBatchSampler(order, batch_size=4, fingerprint=dataset.source.fingerprint)
        return ts.DataLoader(dataset, batch_sampler=sampler, num_workers=workers)

    for step in (0, 3, 10):
        first = loader()
        before = ids_of(itertools.islice(first, step))
        again = loader()
        again.load_state_dict(first.state_dict())
        assert before + ids_of(again) == epoch_ids[0]
        assert ids_of(again) == epoch_ids[1]


def test_iterable_and_map_datasets_share_their_states(picture_folder, epoch_ids):
    iterable = ts.DataLoader(make(picture_folder))
    before = ids_of(itertools.islice(iterable, 3))
    dataset = ts.ImageMapDataset(picture_folder, views=ts.CenterCrop(8))
    sampler = ts.DistributedBatchSampler(
        ts.Shuffled(dataset, seed=17), batch_size=4, fingerprint=dataset.source.fingerprint
    )
    loader = ts.DataLoader(dataset, batch_sampler=sampler)
    loader.load_state_dict(iterable.state_dict())

    assert before + ids_of(loader) == epoch_ids[0]


def test_set_epoch_after_loading_keeps_the_position_of_that_epoch(picture_folder, epoch_ids):
    loader = ts.DataLoader(make(picture_folder))
    before = ids_of(itertools.islice(loader, 3))
    state = loader.state_dict()
    again = ts.DataLoader(make(picture_folder))
    again.load_state_dict(state)
    again.set_epoch(state["epoch"])  # as every DDP training loop does

    assert before + ids_of(again) == epoch_ids[0]
    again.load_state_dict(state)
    again.set_epoch(1)
    assert ids_of(again) == epoch_ids[1]


def test_a_plain_iteration_has_a_state_of_its_own(picture_folder, epoch_ids):
    dataset = make(picture_folder)
    batches = iter(dataset)
    before = ids_of(itertools.islice(batches, 4))
    again = make(picture_folder)
    again.load_state_dict(dataset.state_dict())

    assert before + ids_of(again) == epoch_ids[0]


def test_a_dataset_whose_workers_iterate_says_that_it_does_not_know_the_position(picture_folder):
    dataset = make(picture_folder)
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=1))
    next(batches)

    with pytest.raises(RuntimeError, match=r"ts\.DataLoader"):
        dataset.state_dict()
    assert dataset.state_at(1)["position"] == 4


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"seed": 18}, "seed: 17 in the state, 18 here"),
        ({"shuffle": False}, "order: 'shuffled/1' in the state, 'sequential' here"),
        ({"window": 2}, "window: None in the state, 2 here"),
        ({"indices": range(10)}, "length: 42 in the state, 10 here"),
    ],
)
def test_a_state_of_another_order_is_refused_with_what_differs(picture_folder, options, difference):
    state = ts.DataLoader(make(picture_folder)).state_dict()

    for target in (make(picture_folder, **options), ts.DataLoader(make(picture_folder, **options))):
        with pytest.raises(StateError, match=difference):
            target.load_state_dict(state)


def test_a_state_of_another_dataset_or_version_is_refused(picture_folder):
    state = ts.DataLoader(make(picture_folder)).state_dict()
    other = ts.DataLoader(make(picture_folder))

    with pytest.raises(StateError, match="source: 'elsewhere' in the state"):
        other.load_state_dict(state | {"fingerprints": state["fingerprints"] | {"source": "elsewhere"}})
    with pytest.raises(StateError, match="version 99"):
        other.load_state_dict(state | {"version": 99})
    with pytest.raises(StateError, match="missing"):
        other.load_state_dict({"epoch": 0})
    assert other.state_dict() == state


def test_the_state_of_one_worker_is_refused_elsewhere(picture_folder):
    state = ts.DataLoader(make(picture_folder)).state_dict()

    with pytest.raises(StateError, match="one worker process"):
        make(picture_folder).load_state_dict(state | {"workers": 2})


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_dataset_is_told_the_loader_follows(picture_folder, epoch_ids, workers):
    dataset = make(picture_folder)
    loader = ts.DataLoader(dataset, num_workers=workers)
    state = ts.DataLoader(make(picture_folder)).state_dict() | {"position": 12}
    dataset.load_state_dict(state)
    assert loader.state_dict() == state
    assert ids_of(loader) == epoch_ids[0][12:]
    dataset.set_epoch(0)
    assert ids_of(loader) == epoch_ids[0]
    dataset.set_epoch(0)
    assert ids_of(loader) == epoch_ids[0]
    assert ids_of(loader) == epoch_ids[1]
