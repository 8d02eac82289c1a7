"""Bytes in flight never exceed the cap, no cap deadlocks, and nothing is left behind by whoever dies."""

import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from bytes_sources import Numbers, content
from torch.utils.data import DataLoader

import torchslip as ts

SIZES = np.random.default_rng(1).integers(200, 4_000, 240)
BATCH_BYTES = 16_000


def dataset(batches=4, prefetch=None, source=None, **options):
    """A dataset whose cap is that many times its largest batch."""
    options = {"batch_size": 8, "max_batch_bytes": BATCH_BYTES, **options}
    return ts.BytesDataset(
        Numbers(SIZES) if source is None else source,
        constraints=ts.Constraints(max_inflight_bytes=batches * BATCH_BYTES),
        runtime=ts.RuntimeConfig(prefetch_batches=prefetch),
        **options,
    )


class InPlace(Numbers):
    """Writes into given memory, as folders do, so that a cap of one batch is enough."""

    def fetch_into(self, indices, field, buffers):
        records = self.fetch(indices)
        for record, buffer in zip(records, buffers, strict=True):
            buffer[: len(record[field])] = record[field]
            record[field] = len(record[field])
        return records


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_no_cap_deadlocks_and_none_is_exceeded(batches, workers):
    """The original hung wherever a later batch held the room that the next one needed."""
    for prefetch in (1, 2, 4, 8, 16) if not workers else (1, 16):
        capped = dataset(batches, prefetch, InPlace(SIZES), shuffle=True)
        seen = [sample for batch in ts.DataLoader(capped, num_workers=workers) for sample in batch.sample_ids]
        assert sorted(seen) == list(range(len(SIZES)))
        stats = capped.stats()
        assert 0 < stats["inflight_bytes_high_water"] <= batches * BATCH_BYTES
        assert stats["inflight_bytes"] == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("known", [True, False], ids=["sizes known", "sizes unknown"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_whose_bytes_must_be_copied_stays_below_the_cap_with_the_copy(known, workers):
    capped = dataset(2, 8, Numbers(SIZES, known=known), batch_size=3)
    assert sum(len(batch) for batch in ts.DataLoader(capped, num_workers=workers)) == len(SIZES)
    assert capped.stats()["inflight_bytes_high_water"] <= 2 * BATCH_BYTES


@pytest.mark.timeout(60)
def test_a_cap_holds_and_lives_under_the_loader_of_torch_too():
    capped = dataset(4, 4)
    assert sum(len(batch) for batch in DataLoader(capped, batch_size=None, num_workers=3)) == len(SIZES)
    assert capped.stats()["inflight_bytes_high_water"] <= 4 * BATCH_BYTES


def test_a_batch_counts_until_it_or_the_last_tensor_of_it_is_freed():
    capped = dataset(8, 1)
    iterator = iter(capped)
    batch = next(iterator)
    size, before = batch.payload_bytes, settled(capped)
    payload = batch.to_torch()[0]
    del batch
    assert capped.stats()["inflight_bytes"] == before
    view = payload[3:5]
    del payload
    assert capped.stats()["inflight_bytes"] == before
    view = memoryview(view.numpy())
    assert capped.stats()["inflight_bytes"] == before
    del view
    assert capped.stats()["inflight_bytes"] == before - size


def settled(capped):
    """Bytes in flight once nothing more is being read."""
    before = -1
    for _ in range(200):
        now = capped.stats()["inflight_bytes"]
        if now == before:
            return now
        before = now
        time.sleep(0.05)
    raise AssertionError("bytes in flight never came to rest")


def test_memory_that_anyone_can_still_see_is_never_written_again():
    sizes = np.full(400, 50_000)
    source = ts.BytesDataset(Numbers(sizes), batch_size=8, runtime=ts.RuntimeConfig(prefetch_batches=1))
    kept = [(batch.sample_ids[3], batch.sample(3)) for batch in source]  # nothing but a view of one sample
    assert len({id(view.obj) for _, view in kept}) == 50
    assert all(view == content(sample, 50_000) for sample, view in kept)


def test_what_the_caller_keeps_does_not_stop_the_loader():
    assert len(list(dataset(3))) == len(list(ts.DataLoader(dataset(3), num_workers=2))) > 20


def test_keeping_batches_under_the_loader_of_torch_is_slow_and_does_not_stop_it(monkeypatch):
    monkeypatch.setattr("torchslip.loading._byte_budget._STALLED_SECONDS", 0.5)  # 10; forked workers see it
    capped = dataset(3, source=Numbers([2000] * 36))
    assert [len(batch) for batch in list(DataLoader(capped, batch_size=None, num_workers=1))] == [8, 8, 8, 8, 4]
    assert capped.stats()["delivered_batches_total"] == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_a_pass_frees_everything_and_stops_all_threads(workers):
    capped = dataset(2, 8)
    before = threading.active_count()
    for _ in range(3):
        began = time.monotonic()
        for _ in ts.DataLoader(capped, num_workers=workers):
            break
        assert time.monotonic() - began < 20
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.1)
    assert threading.active_count() <= before
    assert capped.stats()["inflight_bytes"] == 0


def test_two_passes_at_once_do_not_wait_for_each_other():
    capped = dataset(2)
    pairs = [(outer.sample_ids, inner.sample_ids) for outer, inner in zip(capped, capped, strict=True)]
    assert len(pairs) == len(capped)


class Suicidal(Numbers):
    """The process that reads sample 100 is killed, once."""

    def __init__(self, sizes, flag):
        super().__init__(sizes)
        self.flag = flag

    def fetch(self, indices):
        if 100 in indices and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(indices)


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("make", "workers"), [(ts.DataLoader, 3), (DataLoader, 2)], ids=["ours", "torch"])
def test_a_killed_worker_is_an_error_and_leaves_no_room_occupied(tmp_path, make, workers):
    capped = dataset(3, 4, Suicidal(SIZES, tmp_path / "killed"))
    with pytest.raises(RuntimeError, match="worker"):
        for _ in make(capped, batch_size=None, num_workers=workers):
            pass
    for count in (workers, 1):  # fewer rows than before, too
        seen = [sample for batch in make(capped, batch_size=None, num_workers=count) for sample in batch.sample_ids]
        assert len(seen) == len(SIZES)


def test_stats_are_the_truth(caplog):
    caplog.set_level("DEBUG", "torchslip.proof")
    for workers in (0, 2):
        caplog.clear()
        counted = dataset(8)
        batches = list(ts.DataLoader(counted, num_workers=workers))
        stats, sizes = counted.stats(), sorted(batch.payload_bytes for batch in batches)[-128:]
        assert stats["delivered_batches_total"] == len(batches)
        assert stats["delivered_samples_total"] == len(SIZES)
        assert stats["delivered_bytes_total"] == SIZES.sum()
        assert stats["batch_payload_window_size"] == len(batches)
        assert stats["batch_payload_bytes_p50"] == sizes[(len(sizes) - 1) // 2]
        assert stats["batch_payload_bytes_p95"] == sizes[95 * (len(sizes) - 1) // 100]
        events = [record.args for record in caplog.records]
        delivered = [event["batch_bytes"] for event in events if event["event"] == "delivered"]
        assert delivered == [batch.payload_bytes for batch in batches]


def test_batches_that_were_made_but_not_taken_are_not_counted():
    counted = dataset(8, 8)
    iterator = iter(ts.DataLoader(counted, num_workers=2))
    for _ in range(3):
        next(iterator)
    time.sleep(0.5)
    assert counted.stats()["delivered_batches_total"] == 3


def test_the_jitter_counters_follow_the_plan(caplog):
    caplog.set_level("INFO", "torchslip.proof")
    sizes = np.random.default_rng(7).integers(50, 500, 3000)
    jittery = ts.BytesDataset(Numbers(sizes), batch_size=64, target_batch_bytes=600, max_batch_bytes=1000)
    for _ in jittery:
        pass
    stats, events = jittery.stats(), [record.args["event"] for record in caplog.records]
    assert stats["batch_jitter_slo_breaches_total"] == events.count("batch_jitter_slo_breached") > 1
    assert stats["batch_jitter_band_adjustments_total"] == events.count("batch_jitter_band_adjusted") > 1
    assert stats["batch_jitter_band_lower_pct"] > 85


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_in_page_locked_memory_carries_the_account(workers):
    capped = dataset(3, 2)
    seen = []
    for batch in ts.DataLoader(capped, num_workers=workers, pin_memory=True):
        payload = batch.to_torch()[0]
        assert payload.is_pinned()
        assert payload.cuda(non_blocking=True).cpu().numpy().tobytes() == batch.payload
        seen += batch.sample_ids
    assert seen == list(range(len(SIZES)))
    assert capped.stats()["inflight_bytes_high_water"] <= 3 * BATCH_BYTES
    assert capped.stats()["inflight_bytes"] == 0
