"""The lease sampler in loaders of torch and ours: what is acknowledged when, and what it says of itself."""

import ast
import gc
import itertools
import logging
import pickle
import threading
import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

import torchslip as ts
from torchslip.order._lease_store import open_lease_store


class Ids(Dataset):
    def __getitem__(self, index):
        return index


@pytest.fixture(params=["tcp", "path"])
def store(request, tmp_path):
    return make_store(request.param, tmp_path)


def make_store(kind, folder):
    if kind == "hash":
        return dist.HashStore()
    if kind == "tcp":
        return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if kind == "prefix":
        return dist.PrefixStore("some", make_store("tcp", folder))
    return folder / "leases" if kind == "path" else dist.FileStore(str(folder / "store"), -1)


@pytest.fixture
def events(caplog):
    """The events so far: ``events("lease_granted")``."""
    caplog.set_level(logging.DEBUG, "torchslip.proof")

    def of(name):
        found = [ast.literal_eval(record.getMessage()) for record in caplog.records]
        return [event for event in found if event["event"] == name]

    return of


def sampler(store, length=100, **options):
    options = {"batch_size": 4, "ttl_seconds": 0.5, "lease_batches": 8} | options
    return ts.LeaseSampler(ts.Shuffled(length, seed=17), store=store, **options)


def epoch_of(leases, epoch):
    return leases.order.at(range(len(leases.order)), epoch=epoch).tolist()


def ids(batches):
    return [index for batch in batches for index in batch.tolist()]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_alone_every_pass_is_the_next_epoch_of_the_order(store, num_workers):
    leases = sampler(store)
    loader = ts.DataLoader(Ids(), batch_sampler=leases, num_workers=num_workers)
    for epoch in range(3):
        assert ids(loader) == epoch_of(leases, epoch)
        stats = leases.stats()
        assert (stats["acknowledged_samples"], stats["outstanding_batches"], stats["active_leases"]) == (100, 0, 0)


@pytest.mark.parametrize("kind", ["hash", "tcp", "prefix", "file", "path"])
def test_samplers_divide_an_epoch(kind, tmp_path):
    store = make_store(kind, tmp_path)
    samplers = [sampler(store, 2000) for _ in range(4)]
    shares = [[] for _ in samplers]

    def work(leases, share):
        for batch in ts.DataLoader(Ids(), batch_sampler=leases):
            share += batch.tolist()
            time.sleep(0.001)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(samplers, shares, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Counter(itertools.chain(*shares)) == Counter(range(2000))
    assert all(len(share) > 200 for share in shares)


def test_an_epoch_that_is_done_stays_done(store):
    assert len(ids(ts.DataLoader(Ids(), batch_sampler=sampler(store)))) == 100
    again = sampler(store)
    assert ids(ts.DataLoader(Ids(), batch_sampler=again)) == []
    assert ids(ts.DataLoader(Ids(), batch_sampler=again)) == epoch_of(again, 1)
    assert len(ids(ts.DataLoader(Ids(), batch_sampler=sampler(store, job="another")))) == 100


@pytest.mark.parametrize("num_workers", [0, 2])
def test_leaving_the_loop_gives_back_what_was_not_consumed(store, num_workers):
    first, second = sampler(store), sampler(store)
    begun = list(itertools.islice(ts.DataLoader(Ids(), batch_sampler=first, num_workers=num_workers), 5))
    gc.collect()
    rest = ids(ts.DataLoader(Ids(), batch_sampler=second))
    # The fifth batch was in the hands of the loop when it was left.
    assert sorted(ids(begun[:4]) + rest) == list(range(100))
    assert second.stats()["replayed_batches"] == (1 if num_workers == 0 else 5)


class Broken(Dataset):
    def __getitem__(self, index):
        raise OSError(f"sample {index} is broken")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_gives_the_leases_back(store, num_workers):
    with pytest.raises(OSError, match="is broken"):
        list(ts.DataLoader(Broken(), batch_sampler=sampler(store), num_workers=num_workers))
    other = sampler(store, ttl_seconds=1000)
    assert sorted(ids(ts.DataLoader(Ids(), batch_sampler=other))) == list(range(100))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_plain_loader_with_prefetch_has_in_hand_what_it_has_not_delivered_and_one(store, num_workers):
    leases = sampler(store, prefetch=2 * num_workers)
    loader = DataLoader(Ids(), batch_sampler=leases, num_workers=num_workers)
    for number, _ in enumerate(loader):
        # In the loop, batch `number` is not consumed, and all before it are.
        assert leases.stats()["acknowledged_batches"] == number
    assert leases.stats()["outstanding_batches"] == (0 if num_workers == 0 else 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_with_acknowledgements_needs_no_prefetch(store, num_workers):
    leases = sampler(store)
    found = []
    for batch in DataLoader(Ids(), batch_sampler=leases, num_workers=num_workers):
        found += batch.tolist()
        assert leases.ack()
    assert found == epoch_of(leases, 0)
    assert leases.stats()["outstanding_batches"] == 0


def test_consume_makes_a_plain_loader_wait_for_what_others_leave(store):
    holder, leases = sampler(store), sampler(store)
    loop = iter(ts.DataLoader(Ids(), batch_sampler=holder))
    taken = next(loop)
    timer = threading.Timer(1.0, loop.close)
    timer.start()
    found = ids(leases.consume(DataLoader(Ids(), batch_sampler=leases, num_workers=2)))
    timer.join()
    assert sorted(found) == list(range(100))
    assert set(taken.tolist()) <= set(found[-40:])


def test_without_acknowledgements_the_loop_is_told_what_to_do(store):
    with pytest.raises(
        RuntimeError, match=r"8 batches were handed out and none of them acknowledged. Use ts.DataLoader"
    ):
        list(DataLoader(Ids(), batch_sampler=sampler(store)))


def test_a_rank_that_hangs_loses_its_lease_and_is_told(store, events):
    hanging, other = sampler(store, stall_seconds=0.5), sampler(store)
    loop = iter(DataLoader(Ids(), batch_sampler=hanging))
    taken = next(loop).tolist()
    found = ids(ts.DataLoader(Ids(), batch_sampler=other))
    assert sorted(found) == list(range(100))
    assert hanging.ack() is False
    assert set(taken) <= set(found)
    assert hanging.stats()["late_batches"] == hanging.stats()["leases_lost"] == len(events("lease_lost")) == 1
    assert next(loop, None) is None


def test_a_heart_beats_while_a_step_takes_longer_than_the_time_to_live(store):
    slow, other = sampler(store), sampler(store)
    loop = iter(DataLoader(Ids(), batch_sampler=slow))
    taken = next(loop).tolist()
    found = []
    thread = threading.Thread(target=lambda: found.extend(ids(ts.DataLoader(Ids(), batch_sampler=other))))
    thread.start()
    time.sleep(1.5)
    assert slow.ack()
    del loop
    thread.join(30)
    assert sorted(found + taken) == list(range(100))


def test_replayed_batches_are_marked(picture_folder, store):
    dataset = ts.ImageMapDataset(picture_folder, views=ts.CenterCrop(8))
    first, second = sampler(store, len(dataset)), sampler(store, len(dataset))
    (begun,) = itertools.islice(ts.DataLoader(dataset, batch_sampler=first), 1)
    gc.collect()
    batches = list(ts.DataLoader(dataset, batch_sampler=second, num_workers=1))
    assert not begun["replayed"].any()
    marked = [batch["sample_id"].tolist() for batch in batches if batch["replayed"].all()]
    assert marked == [begun["sample_id"].tolist()]
    assert sum(int(batch["replayed"].sum()) for batch in batches) == 4


def test_events_tell_of_grants_progress_and_the_end(store, events):
    leases = sampler(store, job="told")
    list(ts.DataLoader(Ids(), batch_sampler=leases))
    stats = leases.stats()
    assert len(events("lease_granted")) == len(events("lease_completed")) == stats["leases_granted"] == 4
    assert len(events("progress")) == stats["batches"] == 25
    assert [(event["job"], event["epoch"]) for event in events("job_drained")] == [("told", 0)]
    assert [event["start"] for event in events("lease_granted")] == [0, 28, 56, 84]


def test_an_overlap_in_the_store_is_an_error_and_an_event(store, events):
    leases = sampler(store)
    loop = iter(ts.DataLoader(Ids(), batch_sampler=leases))
    next(loop)
    other = open_lease_store(store, job="default", deadline_seconds=5)
    (value,) = other.read_many(["0/0"])
    other.compare_set("0/0", value, b'[2,[[0,4,0,28,"a",1,3],[8,8,8,28,"b",2,0]]]')
    with pytest.raises(ts.StateError, match="Two leases overlap"):
        list(loop)
    assert len(events("overlap_detected")) == 1
    other.close()


def test_at_most_once_ends_without_waiting_and_repeats_nothing(store):
    first, second = (sampler(store, exact="at_most_once") for _ in range(2))
    begun = list(itertools.islice(ts.DataLoader(Ids(), batch_sampler=first, num_workers=2), 5))
    gc.collect()
    rest = ids(ts.DataLoader(Ids(), batch_sampler=second))
    assert len(rest) <= 80
    assert not set(rest) & set(ids(begun))
    assert second.stats()["replayed_batches"] == 0


def test_another_dataset_or_batch_size_may_not_join_a_job(store):
    list(ts.DataLoader(Ids(), batch_sampler=sampler(store)))
    for options, text in (({"length": 99}, "length: 100 there, 99 here"), ({"batch_size": 5}, "batch_size: 4 there")):
        with pytest.raises(ts.StateError, match=text):
            list(ts.DataLoader(Ids(), batch_sampler=sampler(store, **options)))


def test_the_store_of_the_process_group_is_the_default(tmp_path):
    port = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=dist.PrefixStore("some", port), rank=0, world_size=1)
    try:
        assert sorted(ids(ts.DataLoader(Ids(), batch_sampler=sampler(None)))) == list(range(100))
        assert sampler(port).epoch == 0
        # Beneath the prefixes: who comes by another way finds the same job.
        assert ids(ts.DataLoader(Ids(), batch_sampler=sampler(port))) == []
    finally:
        dist.destroy_process_group()


def test_without_a_store_it_says_what_to_pass():
    with pytest.raises(
        ValueError, match=r"needs a store that all processes reach: initialise torch.distributed, or pass"
    ):
        next(iter(sampler(None)))


def test_a_sampler_that_has_begun_can_be_pickled(tmp_path):
    leases = sampler(tmp_path / "leases")
    loop = iter(ts.DataLoader(Ids(), batch_sampler=leases))
    next(loop)
    copy = pickle.loads(pickle.dumps(leases))
    loop.close()
    copy.set_epoch(0)
    assert sorted(ids(ts.DataLoader(Ids(), batch_sampler=copy))) == list(range(100))


def test_more_workers_than_a_lease_has_batches_are_refused(store):
    with pytest.raises(ValueError, match=r"9 batches are in hand .* Pass a larger lease_batches"):
        ts.DataLoader(Ids(), batch_sampler=sampler(store), num_workers=4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"want": 0}, "want must be at least 1, got 0"),
        ({"ttl_seconds": 0}, "ttl_seconds must be more than 0, got 0"),
        ({"exact": "twice"}, "exact must be one of at_least_once, at_most_once; got 'twice'.*DistributedBatchSampler"),
        ({"prefetch": 8}, "prefetch must lie in .0, lease_batches., got prefetch=8 and lease_batches=8"),
    ],
)
def test_an_impossible_argument_is_an_error_when_the_sampler_is_made(options, text):
    with pytest.raises(ValueError, match=text):
        sampler(None, **options)


def test_no_thread_is_left_behind(store):
    before = threading.active_count()
    loader = ts.DataLoader(Ids(), batch_sampler=sampler(store))
    assert torch.cat(list(loader)).numel() == 100
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
