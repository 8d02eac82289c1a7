"""`BytesDataset`: what it delivers, in which batches, and that it goes on from any state on any topology."""

import copy
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bytes_sources import Numbers, content, make_folder
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import torchslip as ts

SIZES = np.random.default_rng(5).integers(100, 9_000, 200)
SMALL = ts.Constraints(max_inflight_bytes=200_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("bytes"), SIZES)


def dataset(source=None, **options):
    options = {"batch_size": 16, "constraints": SMALL, **options}
    return ts.BytesDataset(Numbers(SIZES) if source is None else source, **options)


def ids(batches):
    return [batch.sample_ids for batch in batches]


def flat(lists):
    return [each for one in lists for each in one]


def check(batch):
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.payload) == batch.payload_bytes
    for row, sample in enumerate(batch.sample_ids):
        expected = content(sample, SIZES[sample])
        assert batch.payload[batch.offsets[row] : batch.offsets[row + 1]] == expected == bytes(batch.sample(row))


def test_every_byte_of_every_sample_arrives_once(folder):
    batches = list(dataset(folder))
    for batch in batches:
        check(batch)
    assert flat(ids(batches)) == list(range(200))
    assert {label for batch in batches for label in batch.label_ids} == {0, 1}


@pytest.mark.parametrize("source", [Numbers(SIZES), Numbers(SIZES, known=False)], ids=["sizes known", "sizes unknown"])
@pytest.mark.parametrize("workers", [0, 3])
def test_sources_that_know_sizes_and_those_that_do_not_deliver_the_same_bytes(source, workers):
    loader = ts.DataLoader(dataset(source, batch_size=5, shuffle=True), num_workers=workers)
    seen = []
    for batch in loader:
        check(batch)
        seen += batch.sample_ids
    assert sorted(seen) == list(range(200))


def test_a_batch_becomes_tensors_that_belong_to_the_caller():
    first, second = list(dataset(batch_size=8))[:2]
    payload, offsets, sample_ids, labels = first.to_torch_with_labels()
    assert [tensor.dtype for tensor in (payload, offsets, sample_ids, labels)] == [torch.uint8, *[torch.int64] * 3]
    assert (offsets.tolist(), sample_ids.tolist(), labels.tolist()) == (
        first.offsets,
        first.sample_ids,
        first.label_ids,
    )
    before = bytes(second.sample(0))
    payload.zero_()
    assert bytes(second.sample(0)) == before


def test_a_source_without_labels_says_so(folder):
    batch = next(iter(dataset(ts.ImageFolder(folder, label_mode="none"))))
    assert batch.label_ids is None
    with pytest.raises(ValueError, match="no labels"):
        batch.to_torch_with_labels()


def test_batches_are_bounded_in_bytes_and_in_samples():
    limited = dataset(max_batch_bytes=20_000, batch_size=6)
    batches = list(limited)
    assert max(batch.payload_bytes for batch in batches) <= 20_000
    assert max(len(batch) for batch in batches) == 6
    assert len(limited) == len(batches)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("make", [ts.DataLoader, DataLoader, StatefulDataLoader], ids=["ours", "torch", "stateful"])
def test_any_number_of_workers_and_any_loader_gives_the_same_batches(workers, make):
    expected = ids(dataset(shuffle=True))
    found = ids(make(dataset(shuffle=True), batch_size=None, num_workers=workers))
    assert found == expected


def test_ranks_divide_the_batches_among_them():
    whole = ids(dataset(shuffle=True))
    parts = [ids(dataset(shuffle=True, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    assert [batch for step in zip(*parts, strict=True) for batch in step if batch] == whole


def test_every_epoch_has_its_own_order_and_set_epoch_chooses():
    shuffled = dataset(shuffle=True)
    first, second = ids(shuffled), ids(shuffled)
    assert first != second
    shuffled.set_epoch(0)
    assert ids(shuffled) == first


@pytest.mark.parametrize("batch", [0, 1, 7, 12])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_goes_on_where_it_was_taken(batch, workers):
    loader = ts.DataLoader(dataset(shuffle=True), num_workers=workers)
    iterator = iter(loader)
    taken = [next(iterator).sample_ids for _ in range(batch)]
    state = loader.state_dict()
    del iterator
    other = ts.DataLoader(dataset(shuffle=True), num_workers=2 - workers)
    other.load_state_dict(state)
    rest = ids(other)
    assert taken + rest == ids(dataset(shuffle=True))
    assert set(state) == {"version", "epoch", "position", "fingerprints"}


def test_a_state_from_three_ranks_goes_on_at_one_and_with_other_batches():
    ranks = [dataset(shuffle=True, rank=rank, world_size=3) for rank in range(3)]
    passes = [iter(each) for each in ranks]
    taken = flat(next(each).sample_ids for _ in range(4) for each in passes)
    states = [each.state_dict() for each in ranks]
    assert states[0] == states[1] == states[2]
    for options in ({}, {"max_batch_bytes": 9_001}, {"batch_size": 3}):
        single = dataset(shuffle=True, **options)
        single.load_state_dict(states[0])
        rest = flat(ids(single))
        assert taken + rest == flat(ids(dataset(shuffle=True)))


def test_a_state_of_another_source_is_refused():
    with pytest.raises(ts.StateError, match="length"):
        dataset(Numbers(SIZES[:50])).load_state_dict(dataset().state_dict())


def test_start_and_end_limit_the_samples_and_are_reported(caplog):
    caplog.set_level(logging.INFO, "torchslip.proof")
    assert flat(ids(dataset(start_id=50, end_id=90))) == list(range(50, 90))
    assert {"event": "range_selected", "start_id": 50, "end_id": 90, "samples": 40} in [r.args for r in caplog.records]


@pytest.mark.parametrize(
    "arguments", [{"start_id": 1}, {"end_id": 9}, {"start_id": 9, "end_id": 9}, {"start_id": 0, "end_id": 201}]
)
def test_start_and_end_come_together_and_within_the_source(arguments):
    with pytest.raises(ValueError, match="start_id"):
        dataset(**arguments)


def test_a_sample_larger_than_a_batch_comes_alone():
    sizes = [100, 100, 90_000, 100, 100]
    batches = list(dataset(Numbers(sizes), max_batch_bytes=10_000))
    assert ids(batches) == [[0, 1], [2], [3, 4]]


def test_a_sample_larger_than_the_cap_is_named_with_what_to_set(folder):
    with pytest.raises(ts.SampleError, match=r"Sample 2 has 150000 bytes.*max_inflight_bytes=300000"):
        dataset(Numbers([100, 100, 150_000]))
    with pytest.raises(ts.SampleError, match=r"max_inflight_bytes=1000 allows.*000\d+\.jpg"):
        dataset(folder, constraints=ts.Constraints(max_inflight_bytes=1000))


def test_a_batch_of_unknown_size_above_the_cap_is_an_error_before_it_is_held():
    source = Numbers([60_000] * 40, known=False)
    with pytest.raises(ts.SampleError, match=r"does not know sizes ahead. Use a smaller batch_size"):
        list(dataset(source, batch_size=40))
    assert len(list(dataset(source, batch_size=1))) == 40


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("known", [True, False])
def test_an_error_comes_in_its_place_with_the_sample_named(workers, known):
    source = Numbers([1000] * 100, broken={57}, known=known)
    loader, seen = ts.DataLoader(dataset(source, batch_size=10), num_workers=workers), []
    with pytest.raises(ts.SampleError, match="Sample 57 cannot be read"):
        for batch in loader:
            seen += batch.sample_ids
    assert seen == list(range(50))


def test_a_file_that_changed_is_an_error_not_other_bytes(tmp_path):
    root = make_folder(tmp_path, [1000, 2000])
    source = dataset(root)
    (root / "a" / "000000.jpg").write_bytes(b"x" * 1500)
    with pytest.raises(ts.SampleError, match=r"grown from 1000 to 1500 bytes"):
        list(source)
    (root / "a" / "000000.jpg").write_bytes(b"x" * 10)
    assert [len(batch.sample(0)) for batch in source] == [10]


def test_a_file_that_is_gone_is_named(tmp_path):
    source = dataset(make_folder(tmp_path, [1000, 2000]))
    (tmp_path / "b" / "000001.jpg").unlink()
    with pytest.raises(ts.SampleError, match=r"Sample 1 cannot be read.*000001\.jpg"):
        list(source)


def test_it_pickles_and_copies_with_an_account_of_its_own():
    for copied in (pickle.loads(pickle.dumps(dataset(shuffle=True))), copy.deepcopy(dataset(shuffle=True))):
        assert ids(copied) == ids(dataset(shuffle=True))
        assert copied.budget.key != dataset().budget.key


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 2), ("forkserver", 1)])
def test_every_way_to_start_workers_gives_the_same_batches(method, workers):
    loader = ts.DataLoader(dataset(), num_workers=workers, multiprocessing_context=method)
    assert ids(loader) == ids(dataset())


def test_persistent_workers_go_through_epochs_and_abandoned_passes():
    loader = ts.DataLoader(dataset(shuffle=True), num_workers=2, persistent_workers=True)
    epochs = [ids(dataset_at(epoch)) for epoch in range(3)]
    assert ids(loader) == epochs[0]
    assert next(iter(loader)).sample_ids == epochs[1][0]  # and is dropped there
    assert ids(loader) == epochs[2]


def dataset_at(epoch):
    made = dataset(shuffle=True)
    made.set_epoch(epoch)
    return made


def test_it_takes_a_field_by_name_and_lists_those_there_are():
    source = Numbers(SIZES)
    source.schema = {"bytes": "bytes", "image": "image"}
    with pytest.raises(ValueError, match=r"2 fields of bytes \['bytes', 'image'\]"):
        dataset(source)
    with pytest.raises(ValueError, match="got 'label'"):
        dataset(source, field="label")
    assert len(list(dataset(source, field="bytes"))) > 0


def test_a_tail_is_padded_and_marked():
    ranks = [dataset(batch_size=64, max_batch_bytes=100_000, tail="pad", rank=rank, world_size=3) for rank in range(3)]
    parts = [list(each) for each in ranks]
    seen = [s for part in parts for batch in part for s, ok in zip(batch.sample_ids, batch.valid, strict=True) if ok]
    assert sorted(seen) == list(range(200))
    assert all(len(batch) for part in parts for batch in part)
    assert not all(all(part[-1].valid) for part in parts)


def test_an_empty_range_of_batches_is_no_batch():
    empty = Numbers([])
    assert list(ts.BytesDataset(empty)) == []


def test_our_loader_refuses_a_second_batch_size():
    with pytest.raises(ValueError, match="The batch size belongs to the dataset: BytesDataset"):
        ts.DataLoader(dataset(), batch_size=4)


def test_every_file_of_a_folder_is_a_sample_whatever_its_name(tmp_path):
    for name in ("a.json", "b.tar", "c"):
        (tmp_path / name).write_bytes(name.encode())
    (batch,) = ts.BytesDataset(tmp_path)
    assert [bytes(batch.sample(row)) for row in range(3)] == [b"a.json", b"b.tar", b"c"]


def test_objects_of_a_bucket_are_read_as_a_snapshot_pins_them(bucket, tmp_path):
    from torchslip.storage import open_folder

    folder = open_folder(f"{bucket}/train")
    for number, size in enumerate(SIZES[:40]):
        folder.write(f"{'ab'[number % 2]}/{number:03}.bin", content(number, size))
    for link in (f"{bucket}/train", f"{bucket}/train@refresh"):
        batches = list(dataset(link, store=tmp_path, batch_size=8))
        expected = sorted(content(number, size) for number, size in enumerate(SIZES[:40]))
        assert sorted(bytes(batch.sample(row)) for batch in batches for row in range(len(batch))) == expected
        assert {label for batch in batches for label in batch.label_ids} == {0, 1}
        assert max(batch.payload_bytes for batch in batches) <= dataset().limits.max_batch_bytes


def test_the_tables_of_an_mds_dataset_tell_sizes_and_its_columns_are_bytes(tmp_path):
    with ts.MDSWriter(out=str(tmp_path), columns={"data": "bytes", "note": "str"}, size_limit=60_000) as writer:
        for number, size in enumerate(SIZES):
            writer.write({"data": content(number, size), "note": "x" * (number % 50)})
    source = ts.MDS(tmp_path)
    assert (source.sizes >= SIZES).all() and (source.sizes < SIZES + 100).all()
    for batch in dataset(source, shuffle=True):
        check(batch)
    assert dataset(tmp_path).source.schema["data"] == "bytes"


def test_figures_can_be_read_by_prometheus():
    counted = dataset()
    list(counted)
    text = ts.prometheus_text(counted.stats(), labels={"rank": '0"'})
    assert (
        '# TYPE torchslip_delivered_samples_total counter\ntorchslip_delivered_samples_total{rank="0\\""} 200\n' in text
    )
    assert "# TYPE torchslip_inflight_bytes gauge" in text


@pytest.mark.parametrize("page", ["bytes", "memory"])
def test_the_examples_of_the_pages_run(page, picture_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(picture_folder)
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    assert len(names["data"] if page == "bytes" else names["loader"].dataset) > 0
