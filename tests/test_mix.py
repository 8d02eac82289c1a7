"""`ts.mix`: several datasets are one source with one order, which loads, resumes and divides like any other."""

import ast
import hashlib
import itertools
import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

import torchslip as ts
from torchslip.sources import Concatenated

DOC = Path(__file__).parents[1] / "docs" / "mixing.md"


class Numbers:
    """Records that say what they are; fetches are remembered, and one record may be unreadable."""

    schema: ClassVar = {"value": "int"}
    unreadable = None

    def __init__(self, name, length, **attributes):
        self.name, self.length, self.fetched = name, length, []
        self.__dict__.update(attributes)

    def __len__(self):
        return self.length

    def __repr__(self):
        return f"Numbers({self.name})"

    @property
    def fingerprint(self):
        return f"{self.name}:{self.length}"

    def locate(self, index):
        return f"{self.name}/{index}"

    def fetch(self, indices):
        self.fetched.append(list(indices))
        if self.unreadable in indices:
            raise ts.SampleError(f"Sample {self.unreadable} cannot be read: {self.locate(self.unreadable)}")
        return [{"value": index * 10} for index in indices]


class Labelled(Numbers):
    schema: ClassVar = {"label": "int"}

    def fetch(self, indices):
        return [{"label": index % max(len(self.classes), 1)} for index in indices]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of one class each, 60 red and 40 blue pictures of 8 x 8 pixels."""
    root = tmp_path_factory.mktemp("mix")
    for name, color, count in (("photos", (255, 0, 0), 60), ("drawings", (0, 0, 255), 40)):
        (root / name / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), color).save(root / name / name / f"{number:03}.png")
    return [root / "photos", root / "drawings"]


def load(mixed, **options):
    dataset = ts.ImageDataset(mixed, views=ts.CenterCrop(8), **{"batch_size": 10} | options)
    return ts.DataLoader(dataset)


def ids_of(batches):
    return [batch["sample_id"].tolist() for batch in batches]


def test_records_say_which_source_they_come_from():
    a, b = Numbers("a", 5), Numbers("b", 7)
    mixed = ts.mix([a, b])
    assert len(mixed) == 12 and mixed.schema == {"value": "int", "source": "int"}
    assert mixed.fetch([11, 0, 4, 5]) == [
        {"value": 60, "source": 1},
        {"value": 0, "source": 0},
        {"value": 40, "source": 0},
        {"value": 0, "source": 1},
    ]
    assert (a.fetched, b.fetched) == ([[0, 4]], [[6, 0]])
    assert mixed.locate(4) == "a/4" and mixed.locate(5) == "b/0"
    assert mixed.source_of(11) == (1, 6)


@pytest.mark.parametrize("name", ["corpus", None])
def test_the_field_of_the_source_can_be_named_and_left_out(name):
    mixed = ts.mix([Numbers("a", 5), Numbers("b", 7)], source_field=name)
    (record,) = mixed.fetch([5])
    assert record == {"value": 0} | ({name: 1} if name else {})
    assert list(record) == list(mixed.schema)


def test_a_field_that_the_sources_have_is_not_overwritten():
    with pytest.raises(ValueError, match="have a field 'value' of their own; pass another name"):
        ts.mix([Numbers("a", 5)], source_field="value")


def test_the_error_of_a_sample_names_the_source_and_where_it_begins():
    mixed = ts.mix([Numbers("a", 5), Numbers("b", 20, unreadable=13)])
    with pytest.raises(
        ts.SampleError, match=r"cannot be read: b/13 \(by the numbers of source 1, whose sample 0 is sample 5"
    ):
        mixed.fetch([0, 18])
    with pytest.raises(IndexError, match="no record 25: the source has 25"):
        mixed.fetch([25])


def test_sources_of_other_fields_are_refused():
    with pytest.raises(ts.FormatError, match=r"source 1 \(Numbers\(b\)\) has {'label': 'int'}, source 0"):
        ts.mix([Numbers("a", 5), Labelled("b", 5, classes=[])])


def test_labels_go_by_name():
    sources = [Labelled("a", 4, classes=["dog", "eel"]), Labelled("b", 4, classes=["cat", "dog"])]
    mixed = ts.mix(sources)
    assert mixed.classes == ["cat", "dog", "eel"]
    labels = [record["label"] for record in mixed.fetch(range(8))]
    assert [mixed.classes[label] for label in labels] == ["dog", "eel"] * 2 + ["cat", "dog"] * 2


def test_equal_classes_keep_their_order_and_a_source_without_names_uses_them():
    sources = [Labelled("a", 4, classes=["z", "a"]), Labelled("b", 4, classes=[]), Labelled("c", 4, classes=["z", "a"])]
    mixed = ts.mix(sources)
    assert mixed.classes == ["z", "a"]
    assert [record["label"] for record in mixed.fetch([0, 1, 8, 9])] == [0, 1, 0, 1]


def test_labels_without_names_are_not_mixed_with_different_ones():
    sources = [Labelled("a", 4, classes=["x"]), Labelled("b", 4, classes=["y"]), Labelled("c", 4, classes=[])]
    with pytest.raises(ts.FormatError, match=r"source 2 \(Numbers\(c\)\) names none"):
        ts.mix(sources)


def test_shards_are_those_of_the_sources_one_after_the_other():
    plain, sharded = Numbers("a", 2050), Numbers("b", 30, shard_sizes=np.array([20, 10]))
    assert Concatenated([sharded, plain]).shard_sizes.tolist() == [20, 10, 1024, 1024, 2]
    assert not hasattr(Concatenated([plain, plain]), "shard_sizes")


def test_a_fingerprint_names_sources_their_order_and_the_field():
    a, b = Numbers("a", 5), Numbers("b", 7)
    prints = [
        Concatenated(sources, source_field=field).fingerprint
        for sources, field in (([a, b], "source"), ([b, a], "source"), ([a, b], None), ([a], "source"))
    ]
    assert len(set(prints)) == 4
    assert prints[0] == Concatenated([Numbers("a", 5), Numbers("b", 7)]).fingerprint


def test_an_image_dataset_takes_the_order_along(folders):
    mixed = ts.mix(folders, weights=[0.5, 0.5], seed=17)
    batches = list(load(mixed))
    assert np.concatenate(ids_of(batches)).tolist() == mixed.order.at(range(80), epoch=0).tolist()
    for batch in batches:
        is_red = batch["image"][:, 0, 0, 0] == 255
        assert (batch["source"] == 0).tolist() == is_red.tolist()
        assert [mixed.classes[label] for label in batch["label"]] == [
            ["drawings", "photos"][red] for red in is_red.int()
        ]


@pytest.mark.parametrize("options", [{"shuffle": True}, {"window": 3}, {"indices": [1, 2]}])
def test_a_mixture_is_not_shuffled_again(folders, options):
    with pytest.raises(ValueError, match="brings its own order, so shuffle, window and indices have no place"):
        ts.ImageDataset(ts.mix(folders), **options)
    mixed = ts.mix(folders)
    assert ts.ImageDataset(mixed, order=mixed.order).order is mixed.order
    assert len(ts.ImageDataset(mixed, order=ts.Subset([3, 4])).order) == 2


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches(folders, context):
    mixed = ts.mix(folders, weights=[3, 1], source_exhausted="repeat", seed=5)
    dataset = ts.ImageDataset(mixed, views=ts.CenterCrop(8), batch_size=8)
    loader = ts.DataLoader(dataset, num_workers=2, multiprocessing_context=context, timeout=60)
    assert ids_of(loader) == ids_of(load(mixed, batch_size=8))


def test_it_resumes_on_another_number_of_ranks_at_every_batch(folders):
    mixed = ts.mix(folders, weights=[3, 1], source_exhausted="repeat", epoch_size=96, seed=5)
    whole = [set(ids) for ids in ids_of(load(mixed, batch_size=16))]
    loader = load(mixed, batch_size=16)
    for done, _ in enumerate(loader, 1):
        states = json.loads(json.dumps(loader.state_dict()))
        rest = []
        for rank in range(2):
            resumed = load(mixed, batch_size=8, rank=rank, world_size=2)
            resumed.load_state_dict(states)
            rest.append(ids_of(resumed) if done < len(whole) else [])
        assert [set(a) | set(b) for a, b in zip(*rest, strict=True)] == whole[done:]


def test_a_state_of_another_mixture_is_refused(folders):
    state = load(ts.mix(folders, weights=[1, 1])).state_dict()
    for other, text in (
        (ts.mix(folders, weights=[2, 1]), "weights: '1:1' in the state, '2:1' here"),
        (ts.mix(folders[::-1], weights=[1, 1]), "source: 'concatenated"),
        (
            ts.mix(folders, schedule=[(0, [1, 1]), (1, [1, 2])], epoch_size=60),
            "schedule: None in the state, '0[+]0=1:1",
        ),
        (ts.mix(folders, weights=[1, 1], seed=3), "seed: 0 in the state, 3 here"),
    ):
        with pytest.raises(ts.StateError, match=text):
            load(other).load_state_dict(state)


def test_a_mixture_pickles():
    mixed = ts.mix([Numbers("a", 5), Numbers("b", 7)], seed=3)
    copy = pickle.loads(pickle.dumps(mixed))
    assert copy.fetch([7]) == mixed.fetch([7]) and repr(copy) == repr(mixed)
    assert copy.fingerprint == mixed.fingerprint and copy.order.fingerprint == mixed.order.fingerprint


def test_datasets_are_mixed_with_the_orders_they_have(folders):
    first = ts.ImageDataset(folders[0], indices=[3, 1])
    second = ts.ImageDataset(folders[1], shuffle=True, seed=8)
    mixed = ts.mix([first, second], weights=[1, 1], source_exhausted="repeat", epoch_size=20)
    ids = mixed.order.at(range(20), epoch=0)
    assert ids[ids < 60].tolist() == [3, 1] * 5
    assert (ids[ids >= 60] - 60).tolist() == second.order.at(range(10), epoch=0).tolist()


def test_mixtures_can_be_mixed():
    inner = ts.mix([Numbers("a", 50), Numbers("b", 70)], weights=[4, 1], source_exhausted="repeat", source_field="part")
    mixed = ts.mix([inner, ts.mix([Numbers("c", 30)], source_field="part")], weights=[1, 1], epoch_size=60)
    records = mixed.fetch(mixed.order.at(range(60), epoch=0))
    assert Counter((record["source"], record["part"]) for record in records) == {(0, 0): 24, (0, 1): 6, (1, 0): 30}


def test_without_shuffling_sources_keep_their_stored_order():
    mixed = ts.mix([Numbers("a", 6), Numbers("b", 4)], shuffle=False)
    ids = mixed.order.at(range(10), epoch=3)
    assert ids[ids < 6].tolist() == list(range(6)) and ids[ids >= 6].tolist() == list(range(6, 10))


def test_a_window_shuffles_each_source_within_its_shards():
    mixed = ts.mix([Numbers("a", 60, shard_sizes=[10] * 6), Numbers("b", 40)], window=2, seed=4)
    ids = mixed.order.at(range(100), epoch=0)
    of_a = ids[ids < 60]
    assert of_a.tolist() != list(range(60)) and sorted(of_a) == list(range(60))
    assert all(len(set((of_a[first : first + 20] // 10).tolist())) == 2 for first in range(0, 60, 20))


def test_weights_of_mosaicml_make_the_epoch():
    sources = [Numbers("a", 100), Numbers("b", 50), Numbers("c", 10)]
    mixed = ts.mix(sources, repeat=[0.5, None, 3], choose=[None, 20, None], source_exhausted="repeat")
    assert mixed.order.counts(epoch=0).tolist() == [50, 20, 30]
    with pytest.raises(ValueError, match="source 2 has 10 samples, 30 are needed: 20 too few"):
        ts.mix(sources, repeat=[0.5, 1, 3])
    with pytest.raises(ValueError, match="Pass one of weights, a schedule, or repeat and choose"):
        ts.mix(sources, repeat=[0.5, 1, 3], weights=[1, 1, 1])


@pytest.mark.parametrize(
    ("given", "text"),
    [("data/a", "a list of sources, got the single path 'data/a'"), ([3], "paths, sources and datasets")],
)
def test_what_is_no_list_of_sources_is_refused(given, text):
    with pytest.raises(TypeError, match=text):
        ts.mix(given)


def test_stats_tell_what_each_source_has_delivered(folders):
    mixed = ts.mix(folders, weights=[1, 3], source_exhausted="repeat", epoch_size=80)
    loader = load(mixed)
    for _ in range(2):
        delivered = Counter(source for batch in itertools.islice(loader, 5) for source in batch["source"].tolist())
    stats = mixed.stats(loader.state_dict())
    assert (stats["epoch"], stats["position"]) == (1, 50)
    first, second = stats["mix_sources"]
    assert [each["delivered_samples"] for each in (first, second)] == [delivered[0], delivered[1]]
    assert (first["weight"], second["weight"]) == (0.25, 0.75)
    # 60 of the 40 drawings in epoch 0 already.
    assert second["passes"] * 40 + second["pass_samples"] == 60 + delivered[1]
    assert [each["starved"] for each in (first, second)] == [0, 0]
    assert json.loads(json.dumps(stats)) == stats
    with pytest.raises(ts.StateError, match="weights"):
        ts.mix(folders).stats(loader.state_dict())


def test_the_proof_log_says_what_is_mixed(caplog):
    with caplog.at_level("INFO", logger="torchslip.proof"):
        ts.mix([Numbers("a", 100), Numbers("b", 50)], weights=[3, 1], seed=9)
    (event,) = [ast.literal_eval(record.getMessage()) for record in caplog.records]
    assert event["event"] == "mix_initialized"
    assert (event["weights"], event["seed"], event["samples"]) == ("3:1", 9, [100, 33])


def test_stats_tell_which_source_has_left(folders):
    mixed = ts.mix(folders, weights=[1, 3], source_exhausted="allow")
    sampler = ts.DistributedBatchSampler(mixed.order, batch_size=60)
    next(iter(sampler))
    assert [each["exhausted"] for each in mixed.stats(sampler.state_dict())["mix_sources"]] == [False, True]


# The gates of MX8, with stricter figures where there are some.


def digest(order, epoch, steps=200):
    positions = np.arange(steps * 4)
    pairs = np.stack([order.source_at(positions, epoch=epoch), order.at(positions, epoch=epoch)], axis=1)
    return hashlib.blake2b(pairs.astype("<i8").tobytes(), digest_size=16).hexdigest()


DIGEST = """
import sys; sys.path.insert(0, {tests!r})
from test_mix import *
print(digest(gate(), 3), digest(gate(), 4))
"""


def gate(**options):
    sources = [Numbers("a", 2560), Numbers("b", 2560)]
    return ts.mix(sources, **{"weights": [0.7, 0.3], "seed": 17, "source_exhausted": "repeat"} | options).order


def test_gate_digests_of_three_processes_are_equal_and_epochs_differ():
    here = [digest(gate(), epoch) for epoch in (3, 4)]
    assert here[0] != here[1]
    code = DIGEST.format(tests=str(Path(__file__).parent))
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    assert [other.communicate(timeout=120)[0].split() for other in others] == [here, here]


def test_gate_the_ratio_is_right_after_every_step():
    sources = gate().source_at(range(5120), epoch=3)
    counts = np.cumsum(sources == 0)
    n = np.arange(1, 5121)
    assert (abs(counts - 0.7 * n) < 1).all()
    assert (abs(counts / n - 0.7)[200:] < 0.005).all()


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1, 1]])
def test_gate_four_ranks_do_not_overlap(weights):
    order = gate(weights=weights, source_exhausted="error", epoch_size=2048)
    samplers = [ts.DistributedBatchSampler(order, batch_size=4, rank=rank, world_size=4) for rank in range(4)]
    ids = [np.concatenate(list(sampler)).tolist() for sampler in samplers]
    assert [len(each) for each in ids] == [512] * 4
    assert len(set().union(*ids)) == 2048
    following = [np.concatenate(list(sampler)).tolist() for sampler in samplers]
    assert following != ids and len(set().union(*following)) == 2048


def test_gate_exhaustion_is_known_before_the_start_or_drains_all_sources_or_goes_on():
    with pytest.raises(ValueError, match="source 0 has 2560 samples, 3584 are needed: 1024 too few"):
        gate(source_exhausted="error", epoch_size=5120)
    drained = gate(source_exhausted="allow")
    assert drained.counts(epoch=0).tolist() == [2560, 2560]
    repeated = gate(source_exhausted="repeat", epoch_size=51_200)
    assert repeated.progress(epoch=0)[0].tolist() == [14, 6]


def test_the_examples_of_the_documentation_run(tmp_path, folders):
    (tmp_path / "data").mkdir()
    for folder in folders:
        (tmp_path / "data" / folder.name).symlink_to(folder)
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
