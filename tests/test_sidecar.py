"""The sidecar and the field index: believed only if they belong to the index, never in the original's way."""

import hashlib
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_samples import COLUMNS, sample

import torchslip as ts
from torchslip.errors import FormatError
from torchslip.sources import FieldIndex, FieldIndexBuilder
from torchslip.sources.mds import SIDECAR_NAME, ArrayFile, dump_arrays


class Labelled:
    """Twelve records of three labels, in memory."""

    schema = {"label": "int", "name": "str", "text": "bytes"}  # noqa: RUF012
    classes = ["a", "b", "c"]  # noqa: RUF012
    fingerprint = "labelled"

    def __len__(self):
        return 12

    def fetch(self, indices):
        return [{"label": i * i % 3, "name": ["even", "odd"][i % 2], "text": b"x" * i} for i in indices]


LABELS = [index * index % 3 for index in range(12)]


def ids_of(index):
    return {value: ids.tolist() for value, ids in index.items()}


def expected_ids(values):
    return {value: [i for i, each in enumerate(values) if each == value] for value in sorted(set(values))}


@pytest.fixture
def packed(tmp_path):
    ts.pack(Labelled(), tmp_path / "packed", shard_bytes=200)
    return tmp_path / "packed"


@pytest.fixture
def foreign(tmp_path):
    """A dataset without a sidecar."""
    with ts.MDSWriter(columns={"label": "int", "name": "str"}, out=tmp_path / "foreign", size_limit=200) as writer:
        for record in Labelled().fetch(range(12)):
            writer.write({"label": record["label"], "name": record["name"]})
    return tmp_path / "foreign"


@given(st.lists(st.integers(-3, 3) | st.integers()) | st.lists(st.text(max_size=2)))
def test_an_index_lists_the_ids_of_each_value_in_order(values):
    builder = FieldIndexBuilder()
    for begin in range(0, len(values), 3):
        builder.add(values[begin : begin + 3])
    index = builder.build()

    assert ids_of(index) == expected_ids(values)
    assert list(index) == sorted(set(values))
    assert index.counts.tolist() == [len(ids) for ids in index.values()]


def test_ids_belong_to_the_caller(packed):
    index = ts.MDS(packed).index("label")
    index[0][:] = 99

    assert ids_of(index) == expected_ids(LABELS)


def test_an_index_feeds_a_subset(packed):
    source = ts.MDS(packed)
    few = ts.Subset(np.concatenate([ids[:2] for ids in source.index("label").values()]))

    labels = [record["label"] for record in source.fetch(few.at(np.arange(len(few)), epoch=0))]
    assert labels == [0, 0, 1, 1] and 2 not in source.index("label")


def test_a_folder_and_its_packed_form_have_the_same_index(picture_folder, tmp_path):
    ts.pack(picture_folder, tmp_path / "out")
    folder, packed = ts.ImageFolder(picture_folder), ts.MDS(tmp_path / "out")

    assert ids_of(folder.index("label")) == ids_of(packed.index("label")) == expected_ids(folder.targets.tolist())
    with pytest.raises(ValueError, match="by label only"):
        folder.index("image")


def test_what_was_packed_is_remembered(packed):
    sidecar = ts.MDS(packed).sidecar

    assert (sidecar.samples, sidecar.fields, sidecar.classes) == (12, Labelled.schema, Labelled.classes)
    assert sidecar.source == "labelled" and sidecar.skipped == []
    assert sidecar.packed["shard_bytes"] == 200 and sidecar.packed["hashes"] == ["sha1"]
    assert sidecar.dataset == ts.MDS(packed).fingerprint


def test_a_source_with_a_sidecar_pickles(packed):
    source = pickle.loads(pickle.dumps(ts.MDS(packed)))

    assert source.classes == Labelled.classes
    assert ids_of(source.index("name")) == expected_ids([["even", "odd"][i % 2] for i in range(12)])


def test_the_index_of_a_foreign_dataset_is_made_once_and_outside_of_it(foreign, tmp_path):
    before = sorted(foreign.iterdir())
    assert ids_of(ts.MDS(foreign, cache=tmp_path / "cache").index("label")) == expected_ids(LABELS)
    for shard in foreign.glob("*.mds"):
        shard.write_bytes(bytes(shard.stat().st_size))  # what is read again would be zero, or damaged

    assert ids_of(ts.MDS(foreign, cache=tmp_path / "cache").index("label")) == expected_ids(LABELS)
    assert sorted(foreign.iterdir()) == before


def test_a_kept_index_is_not_believed_when_the_dataset_was_written_again(foreign, tmp_path):
    cache = tmp_path / "cache"
    assert ids_of(ts.MDS(foreign, cache=cache).index("label")) == expected_ids(LABELS)
    with ts.MDSWriter(
        columns={"label": "int", "name": "str"}, out=foreign, size_limit=200, exist_ok=True
    ) as writer:  # the same sizes, so the same index
        for record in Labelled().fetch(range(12)):
            writer.write({"label": 7, "name": record["name"]})

    assert ids_of(ts.MDS(foreign, cache=cache).index("label")) == {7: list(range(12))}


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_index_in_the_cache_is_made_again(foreign, tmp_path, damage):
    cache = tmp_path / "cache"
    ts.MDS(foreign, cache=cache).index("label")
    (kept,) = (path for path in (cache / "indexes").iterdir() if not path.name.startswith("."))
    data = kept.read_bytes()
    kept.write_bytes({"cut": data[:-8], "changed": data[:-1] + b"\7", "empty": b""}[damage])

    assert ids_of(ts.MDS(foreign, cache=cache).index("label")) == expected_ids(LABELS)
    assert kept.read_bytes() == data


def test_an_index_reads_no_other_column(tmp_path):
    with ts.MDSWriter(columns={"image": "png", "label": "int"}, out=tmp_path / "set") as writer:
        for label in LABELS:
            writer.write({"image": b"no picture at all", "label": label})

    source = ts.MDS(tmp_path / "set", columns=["image"], cache=tmp_path / "cache")
    assert ids_of(source.index("label")) == expected_ids(LABELS)
    assert list(source.fetch([0])[0]) == ["image"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(foreign, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")

    assert ids_of(ts.MDS(foreign, cache=tmp_path / "cache").index("label")) == expected_ids(LABELS)


@pytest.mark.parametrize("name", ["photo", "f32", "blob", "nothing"])
def test_only_integers_and_strings_are_indexed(tmp_path, name):
    with ts.MDSWriter(columns=COLUMNS, out=tmp_path / "set") as writer:
        writer.write(sample(0))
    with pytest.raises(ValueError, match="fields of integers or strings"):
        ts.MDS(tmp_path / "set").index(name)


def test_image_sizes_that_are_not_stored_are_an_error_that_says_what_to_do(foreign):
    with pytest.raises(ValueError, match=r"not stored; torchslip\.pack"):
        ts.MDS(foreign).image_sizes("image")


def test_a_sidecar_makes_bytes_an_image(tmp_path):
    """The column's encoding is what the original reads; its kind is what the sidecar says."""
    with ts.MDSWriter(columns={"x": "bytes"}, out=tmp_path / "set") as writer:
        writer.write({"x": b"picture"})
    plain = ts.MDS(tmp_path / "set")
    head = {
        "version": 1, "dataset": plain.fingerprint, "samples": 1, "fields": {"x": "image"}, "classes": [],
        "statistics": {}, "source": "", "packed": {}, "skipped": [], "values": {},
    }  # fmt: skip
    (tmp_path / "set" / SIDECAR_NAME).write_bytes(dump_arrays(head, {}))

    assert plain.schema == {"x": "bytes"}
    assert ts.MDS(tmp_path / "set").schema == {"x": "image"}


def test_a_sidecar_of_another_index_is_passed_over_with_a_warning(packed, tmp_path, caplog):
    sidecar = (packed / SIDECAR_NAME).read_bytes()
    ts.pack(Labelled(), tmp_path / "other", shard_bytes=300)
    (tmp_path / "other" / SIDECAR_NAME).write_bytes(sidecar)
    source = ts.MDS(tmp_path / "other", cache=tmp_path / "cache")

    assert source.sidecar is None and source.classes == []
    assert "belongs to another index" in caplog.text
    assert ids_of(source.index("label")) == expected_ids(LABELS)


@given(data=st.data())
def test_a_damaged_sidecar_is_passed_over_or_found_out_when_it_is_used(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged-sidecar"
    if not folder.exists():
        ts.pack(Labelled(), folder)
        (folder / "kept").write_bytes((folder / SIDECAR_NAME).read_bytes())
    whole = (folder / "kept").read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    with_flip = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    changed = data.draw(st.sampled_from([with_flip, whole[:at], whole + b"\0", whole[:at] + whole[at + 1 :]]))
    (folder / SIDECAR_NAME).write_bytes(changed)

    source = ts.MDS(folder)
    if source.sidecar is not None:
        with pytest.raises(FormatError, match="damaged"):
            _ = [source.index(name) for name in ("label", "name")]


@pytest.mark.parametrize(
    ("values", "ends", "ids"),
    [
        ([1, 2], [1, 3], [0, 1]),
        ([1, 1], [1, 2], [0, 1]),
        ([1, 2], [2, 1], [0, 1]),
        ([1, 2], [1, 2], [0, 2]),
        ([1, 2], [1, 2], [0, -1]),
        ([1, 2], [1, 2], [1, 1]),
    ],
)
def test_an_index_that_contradicts_itself_is_an_error(values, ends, ids):
    with pytest.raises(ValueError, match=r"index|range|two values"):
        FieldIndex(values, np.array(ends), np.array(ids))


def test_an_array_file_gives_back_what_went_in():
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros(0, np.int64)}
    file = ArrayFile.parse(dump_arrays({"x": "ä"}, arrays), "memory")

    assert file.head == {"x": "ä"}
    assert {name: file.array(name).tolist() for name in arrays} == {
        name: array.tolist() for name, array in arrays.items()
    }


@pytest.mark.parametrize("change", [{"shape": [-1, -6]}, {"shape": [1 << 60]}, {"dtype": "|O"}, {"shape": ["6"]}])
def test_an_array_file_that_lies_about_its_arrays_is_refused(change):
    good = dump_arrays({}, {"a": np.arange(6, dtype=np.int32)})
    length = int.from_bytes(good[8:16], "little")
    head = json.loads(good[48 : 48 + length])
    head["arrays"][0] |= change
    text = json.dumps(head).encode()
    lying = b"TSLIPARR" + len(text).to_bytes(8, "little") + hashlib.sha256(text).digest() + text + good[48 + length :]
    with pytest.raises(FormatError):
        ArrayFile.parse(lying, "memory")
