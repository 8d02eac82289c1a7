"""Several MDS datasets in one `StreamingDataset`."""

import itertools
from collections import Counter

import pytest
from torch.utils.data import DataLoader

import torchslip as ts

LENGTHS = {"a": 60, "b": 30, "c": 10}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    for name, length in LENGTHS.items():
        with ts.MDSWriter(columns={"id": "int", "of": "str"}, out=root / name, size_limit=300) as writer:
            for index in range(length):
                writer.write({"id": index, "of": name})
    return root


def make(folders, weights=({}, {}, {}), **options):
    streams = [ts.Stream(local=folders / name, **each) for name, each in zip(LENGTHS, weights, strict=True)]
    return ts.StreamingDataset(streams=streams, **options)


def counts(records):
    return dict(Counter(record["of"] for record in records))


def keys(records):
    return [(record["of"], record["id"]) for record in records]


def test_without_weights_every_sample_comes_once(folders):
    dataset = make(folders, shuffle=True)
    assert len(dataset) == dataset.size == 100
    assert sorted(keys(dataset)) == [(name, index) for name, length in LENGTHS.items() for index in range(length)]


def test_proportions_divide_the_epoch(folders):
    weights = [{"proportion": 1}, {"proportion": 2}, {"proportion": 1}]
    assert counts(make(folders, weights, shuffle=True)) == {"a": 25, "b": 50, "c": 25}
    assert counts(make(folders, weights, shuffle=True, epoch_size="0.2k")) == {"a": 50, "b": 100, "c": 50}


def test_repeat_and_choose_make_the_epoch(folders):
    dataset = make(folders, [{"repeat": 0.5}, {"choose": 7}, {"repeat": 3}], shuffle=True)
    assert counts(dataset) == {"a": 30, "b": 7, "c": 30}


def test_every_sample_comes_before_any_comes_again(folders):
    dataset = make(folders, [{"proportion": 1}, {"proportion": 1}, {"proportion": 8}], shuffle=True, epoch_size=50)
    records = list(dataset) + list(dataset)
    of_c = [record["id"] for record in records if record["of"] == "c"]
    assert len(of_c) == 80
    assert all(sorted(of_c[start : start + 10]) == list(range(10)) for start in range(0, 80, 10))
    of_a = [record["id"] for record in records if record["of"] == "a"]
    assert len(set(of_a)) == len(of_a) == 10


def test_one_dataset_may_have_an_epoch_size_too(folders):
    dataset = ts.StreamingDataset(local=folders / "b", epoch_size=12)
    first, second = keys(dataset), keys(dataset)
    assert [index for _, index in first + second] == list(range(24))


def test_per_stream_takes_each_batch_from_one_stream(folders):
    dataset = make(folders, shuffle=True, batching_method="per_stream", batch_size=5)
    batches = list(ts.DataLoader(dataset, collate_fn=list))
    assert {len({record["of"] for record in batch}) for batch in batches} == {1}
    assert counts(itertools.chain(*batches)) == LENGTHS


def test_stratified_gives_every_batch_the_same_composition(folders):
    dataset = make(folders, shuffle=True, batching_method="stratified", batch_size=10)
    for batch in ts.DataLoader(dataset, collate_fn=list):
        assert counts(batch) == {"a": 6, "b": 3, "c": 1}


def test_global_batches_keep_their_composition_on_several_ranks(folders):
    parts = [
        make(folders, shuffle=True, batching_method="stratified", batch_size=5, rank=rank, world_size=2)
        for rank in range(2)
    ]
    loaders = [ts.DataLoader(part, collate_fn=list) for part in parts]
    for batches in zip(*loaders, strict=True):
        assert counts(itertools.chain(*batches)) == {"a": 6, "b": 3, "c": 1}


def test_a_loader_resumes_with_workers(folders):
    def loader():
        dataset = make(folders, [{"proportion": 1}] * 3, shuffle=True, batch_size=8)
        return ts.DataLoader(dataset, num_workers=2, collate_fn=keys)

    first, second = loader(), loader()
    whole = list(loader())
    begun = list(itertools.islice(first, 4))
    second.load_state_dict(first.state_dict())
    assert begun + list(second) == whole


def test_a_state_of_other_weights_is_refused(folders):
    state = make(folders, [{"proportion": 1}] * 3).state_dict()
    with pytest.raises(ts.StateError, match="weights"):
        make(folders, [{"proportion": 1}, {"proportion": 2}, {"proportion": 1}]).load_state_dict(state)


def test_any_loader_reads_a_mixture_once(folders):
    loader = DataLoader(make(folders, shuffle=True), batch_size=8, num_workers=2, collate_fn=list)
    assert counts(itertools.chain(*loader)) == LENGTHS


def test_samples_of_all_streams_have_numbers(folders):
    dataset = make(folders)
    assert dataset[60] == {"id": 0, "of": "b"} and dataset[-1] == {"id": 9, "of": "c"}


def test_contradictions_are_refused(folders):
    with pytest.raises(ValueError, match="at most one of proportion, repeat and choose; got proportion and choose"):
        ts.Stream(local=folders / "a", proportion=1, choose=3)
    with pytest.raises(ValueError, match="Give a proportion to all 3 streams or to none"):
        make(folders, [{"proportion": 1}, {}, {}])
    with pytest.raises(ValueError, match=r"leave out epoch_size"):
        make(folders, [{"repeat": 2}, {}, {}], epoch_size=10)
    with pytest.raises(ValueError, match="either streams, or remote"):
        ts.StreamingDataset(streams=[ts.Stream(local=folders / "a")], local=folders / "a")
    with pytest.raises(ValueError, match="at least one stream"):
        ts.StreamingDataset(streams=[])
    with pytest.raises(ValueError, match="use per_stream"):
        make(folders, batching_method="device_per_stream")
    with pytest.raises(ValueError, match="sampling_method='fixed' is not supported"):
        make(folders, sampling_method="fixed")
    with pytest.raises(ValueError, match=r"epoch_size must be .*; got 'many'"):
        make(folders, epoch_size="many")
