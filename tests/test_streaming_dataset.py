import io
import itertools
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import torchslip as ts

COUNT = 103


def jpeg(seed):
    out = io.BytesIO()
    Image.fromarray(np.full((8 + seed % 5, 9, 3), seed, np.uint8)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """103 samples in shards of 6 or so."""
    out = tmp_path_factory.mktemp("mds") / "train"
    columns = {"id": "int", "image": "jpeg", "text": "str", "box": "ndarray:float32:4", "small": "uint8"}
    with ts.MDSWriter(columns=columns, out=out, size_limit=6000) as writer:
        for index in range(COUNT):
            box = np.arange(4, dtype=np.float32) + index
            writer.write({"id": index, "image": jpeg(index), "text": f"no. {index}", "box": box, "small": index})
    return out


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """103 integers in shards of 5."""
    out = tmp_path_factory.mktemp("mds") / "numbers"
    with ts.MDSWriter(columns={"id": "int"}, out=out, size_limit=200) as writer:
        for index in range(COUNT):
            writer.write({"id": index})
    assert len(list(out.iterdir())) > 10
    return out


def ids(records):
    return [record["id"] for record in records]


def batches(loader):
    return [batch["id"].tolist() for batch in loader]


def test_a_sample_has_every_column_as_it_was_written(folder):
    sample = ts.StreamingDataset(local=folder)[7]
    assert (sample["id"], sample["text"]) == (7, "no. 7")
    assert isinstance(sample["image"], Image.Image) and sample["image"].size == (9, 10)
    np.testing.assert_array_equal(sample["box"], np.arange(4, dtype=np.float32) + 7)
    assert isinstance(sample["small"], np.uint8)


def test_samples_are_found_by_any_index(numbers):
    dataset = ts.StreamingDataset(local=numbers)
    assert dataset.size == COUNT
    assert dataset[-1]["id"] == dataset[np.int64(102)]["id"] == 102
    assert ids(dataset[100:]) == ids(dataset[[100, -2, -1]]) == ids(dataset[np.array([100, 101, 102])])
    with pytest.raises(IndexError, match=r"no record 103: the source has 103"):
        dataset[103]


def test_without_shuffling_samples_come_as_they_are_stored(numbers):
    assert ids(ts.StreamingDataset(local=numbers)) == list(range(COUNT))


@pytest.mark.parametrize("algo", ["naive", "py1s", "py2s", "py1e", "py1br"])
def test_every_shuffle_is_a_new_permutation_in_each_epoch(numbers, algo):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, shuffle_algo=algo, shuffle_block_size=20)
    first, second = ids(dataset), ids(dataset)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert len({tuple(first), tuple(second), tuple(range(COUNT))}) == 3


def test_a_block_bounds_the_shards_that_are_mixed(numbers):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, shuffle_block_size=20)
    ends = np.cumsum(dataset.source.shard_sizes)
    shards = np.searchsorted(ends, ids(dataset), side="right")
    window = -(-20 // dataset.source.shard_sizes.mean())
    lifetimes = [np.flatnonzero(shards == shard) for shard in range(len(ends))]
    assert max(np.ptp(positions) for positions in lifetimes) < (window + 1) * dataset.source.shard_sizes.max()


def test_the_guides_loader_reads_each_sample_once(numbers):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, shuffle_seed=1337)
    loader = DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=list, persistent_workers=True)
    for _ in range(2):
        assert sorted(ids(itertools.chain(*loader))) == list(range(COUNT))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_the_number_of_workers(numbers, workers):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, batch_size=8, tail="uneven")
    expected = ids(dataset)
    dataset.set_epoch(0)
    found = batches(DataLoader(dataset, batch_size=8, num_workers=workers))
    assert found == [expected[start : start + 8] for start in range(0, COUNT, 8)]


def test_global_batches_do_not_depend_on_the_number_of_ranks(numbers):
    def of_ranks(world_size):
        parts = [
            ts.StreamingDataset(
                local=numbers, shuffle=True, batch_size=12 // world_size, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        per_rank = [batches(ts.DataLoader(part)) for part in parts]
        return [sorted(itertools.chain(*batch)) for batch in zip(*per_rank, strict=True)]

    assert of_ranks(1) == of_ranks(2) == of_ranks(3)


def test_the_length_is_what_comes(numbers):
    for tail, rank in itertools.product(("pad", "uneven", "drop"), range(4)):
        dataset = ts.StreamingDataset(local=numbers, batch_size=4, tail=tail, rank=rank, world_size=4)
        assert len(dataset) == len(list(dataset))


def test_replicated_ranks_get_the_same_samples(numbers):
    parts = [
        ids(ts.StreamingDataset(local=numbers, shuffle=True, batch_size=2, replication=2, rank=rank, world_size=4))
        for rank in range(4)
    ]
    assert parts[0] == parts[1] != parts[2] == parts[3]
    assert set(parts[0] + parts[2]) == set(range(COUNT))
    with pytest.raises(ValueError, match="replication=3 must divide the 4 ranks"):
        ts.StreamingDataset(local=numbers, replication=3, rank=0, world_size=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_at_any_batch(numbers, workers):
    def loader():
        return ts.DataLoader(ts.StreamingDataset(local=numbers, shuffle=True), batch_size=10, num_workers=workers)

    whole = batches(loader())
    for stop in (0, 1, 5, 10):
        first, second = loader(), loader()
        begun = [batch["id"].tolist() for batch in itertools.islice(first, stop)]
        second.load_state_dict(first.state_dict())
        assert begun + batches(second) == whole


def test_the_dataset_itself_resumes_at_any_sample(numbers):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, batch_size=8, tail="uneven")
    whole = ids(dataset)
    for stop in (1, 7, 8, 9, 102, 103):
        dataset.set_epoch(0)
        begun = ids(itertools.islice(dataset, stop))
        other = ts.StreamingDataset(local=numbers, shuffle=True, batch_size=4, tail="uneven")
        other.load_state_dict(dataset.state_dict())
        assert begun + ids(other) == whole


def test_a_stateful_loader_resumes(numbers):
    def loader():
        dataset = ts.StreamingDataset(local=numbers, shuffle=True, batch_size=8)
        return StatefulDataLoader(dataset, batch_size=8, num_workers=2)

    whole, first, second = batches(loader()), loader(), loader()
    begun = [batch["id"].tolist() for batch in itertools.islice(first, 5)]
    second.load_state_dict(first.state_dict())
    assert begun + batches(second) == whole


def test_a_stateful_loader_of_another_batch_size_is_told_so(numbers):
    dataset = ts.StreamingDataset(local=numbers, batch_size=8)
    with pytest.raises(RuntimeError, match="batch_size must be that of the dataset"):
        list(StatefulDataLoader(dataset, batch_size=3, num_workers=1))


def test_a_state_of_another_shuffle_is_refused(numbers):
    state = ts.StreamingDataset(local=numbers, shuffle=True, shuffle_algo="py1s").state_dict()
    with pytest.raises(ts.StateError, match=r"window: 1 in the state, None here"):
        ts.StreamingDataset(local=numbers, shuffle=True, shuffle_algo="naive").load_state_dict(state)


def test_one_batch_size_is_enough_and_two_must_agree(numbers):
    assert len(batches(ts.DataLoader(ts.StreamingDataset(local=numbers, batch_size=50)))[0]) == 50
    assert len(batches(ts.DataLoader(ts.StreamingDataset(local=numbers), batch_size=50))[0]) == 50
    with pytest.raises(ValueError, match="the dataset has 50, the loader 20"):
        ts.DataLoader(ts.StreamingDataset(local=numbers, batch_size=50), batch_size=20)
    with pytest.raises(ValueError, match="Give batch_size to one of them"):
        ts.DataLoader(ts.StreamingDataset(local=numbers))


class Doubled(ts.StreamingDataset):
    def __getitem__(self, index):
        return {"id": 2 * super().__getitem__(index)["id"]}


def test_iteration_goes_through_an_overridden_getitem(numbers):
    assert ids(Doubled(local=numbers)) == list(range(0, 2 * COUNT, 2))


def test_only_the_named_columns_are_read(folder):
    assert ts.StreamingDataset(local=folder, columns=["text", "id"])[3] == {"id": 3, "text": "no. 3"}


def test_pickles_need_to_be_asked_for(tmp_path):
    with ts.MDSWriter(columns={"object": "pkl"}, out=tmp_path / "pickles") as writer:
        writer.write({"object": {1, 2}})
    with pytest.raises(ValueError, match=r"column 'object' holds pickles.* allow_unsafe_types=True"):
        ts.StreamingDataset(local=tmp_path / "pickles")
    assert ts.StreamingDataset(local=tmp_path / "pickles", allow_unsafe_types=True)[0] == {"object": {1, 2}}


def test_a_missing_shard_is_an_error_in_the_loop_and_no_short_epoch(numbers, tmp_path):
    for path in numbers.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shard.00003.mds").unlink()
    for workers in (0, 2):
        loader = ts.DataLoader(ts.StreamingDataset(local=tmp_path), batch_size=4, num_workers=workers)
        with pytest.raises(ts.SampleError, match=r"Sample \d+ cannot be read .*shard\.00003\.mds, sample \d"):
            list(loader)


REFUSED = {
    "keep_zip": (True, "copy the dataset to a folder"),
    "sampling_granularity": (4, "leave it at 1"),
    "stream_name": ("c4", r"pass\s+streams="),
    "stream_config": ({"a": 1}, r"pass\s+streams="),
    "partition_algo": ("new", "partition_algo must be one of orig, relaxed"),
    "sampling_method": ("some", "sampling_method must be one of balanced, fixed"),
    "shuffle_block_size": (0, "shuffle_block_size must be above 0"),
    "shuffle_algo": ("py1b", "shuffle_algo must be one of naive"),
    "num_canonical_nodes": (0, "num_canonical_nodes must be above 0"),
    "download_retry": (0, "download_retry must be above 0"),
    "download_timeout": (-1, "download_timeout must be above 0"),
    "replication": (0, "replication must be above 0"),
    "tail": ("some", "tail must be one of"),
    "batch_size": (0, "batch_size must be at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_done_is_refused_with_a_remedy(numbers, name):
    value, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        ts.StreamingDataset(local=numbers, shuffle=True, **{name: value})


def test_a_dataset_needs_a_place():
    with pytest.raises(ValueError, match="Give remote"):
        ts.StreamingDataset()


def test_a_dataset_pickles(numbers):
    dataset = ts.StreamingDataset(local=numbers, shuffle=True, batch_size=4)
    assert ids(pickle.loads(pickle.dumps(dataset))) == ids(dataset)


def test_default_collation_makes_tensors(folder):
    dataset = ts.StreamingDataset(local=folder, columns=["box", "id"], batch_size=5)
    batch = next(iter(ts.DataLoader(dataset)))
    assert batch["box"].shape == (5, 4) and batch["box"].dtype == torch.float32
