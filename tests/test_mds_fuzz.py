"""Damaged shards and indexes: our errors or right types, never a crash, never bytes from outside of the file."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mds_samples import COLUMNS, sample

from torchslip.errors import FormatError, SampleError
from torchslip.pack import MDSWriter
from torchslip.sources import MDS
from torchslip.sources.mds import Index, parse_compression, parse_encoding

SIZES = {"all": COLUMNS, "image": {"photo": "jpeg", "count": "int"}, "fixed": {"count": "int", "f32": "float32"}}


@pytest.fixture(scope="module", params=SIZES)
def dataset(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / request.param
    with MDSWriter(columns=SIZES[request.param], out=root, size_limit=None, hashes=["sha1"]) as writer:
        for index in range(6):
            writer.write(sample(index, SIZES[request.param]))
    return root


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    roots = {}
    for name in ("br", "bz2", "gz", "snappy", "zstd"):
        roots[name] = tmp_path_factory.mktemp("fuzz") / name
        with MDSWriter(columns=SIZES["image"], out=roots[name], compression=name) as writer:
            for index in range(6):
                writer.write(sample(index, SIZES["image"]))
    return roots


def mutate(draw, data):
    """`data` with up to four places overwritten, cut out or put in."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 600, 10**9])))))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f"]))
        end = begin + draw(st.sampled_from([len(new), 0, len(new) + 3]))
        data[begin:end] = new
    return bytes(data)


def check(root, cache):
    """Open and read everything; only our errors may come, and no value longer than the files."""
    try:
        source = MDS(root, cache=cache)
    except FormatError:
        return
    limit = sum(path.stat().st_size for path in [*root.iterdir(), *cache.glob("*.raw")])
    raw = [name for name, kind in source.schema.items() if kind == "bytes" or "photo" in name]
    for index in range(min(len(source), 10)):
        try:
            (record,) = source.fetch([index])
        except SampleError as error:
            assert f"Sample {index} " in str(error)
            continue
        assert set(record) == set(source.schema)
        assert sum(len(record[name]) for name in raw) <= limit


@settings(max_examples=150)
@given(st.data())
def test_a_mutated_shard_is_read_or_is_our_error(dataset, data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        shutil.copytree(dataset, root)
        shard = root / "shard.00000.mds"
        mutated = mutate(data.draw, shard.read_bytes())
        shard.write_bytes(mutated)
        if data.draw(st.booleans(), "tell the index of the new size"):
            index = json.loads((root / "index.json").read_text())
            index["shards"][0]["raw_data"]["bytes"] = len(mutated)
            (root / "index.json").write_text(json.dumps(index))
        check(root, Path(folder) / "cache")


@settings(max_examples=200)
@given(st.data())
def test_a_mutated_index_is_read_or_is_our_error(dataset, data):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        shutil.copytree(dataset, root)
        text = (root / "index.json").read_bytes()
        (root / "index.json").write_bytes(mutate(data.draw, text))
        check(root, Path(folder) / "cache")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["mds", "zstd", 2]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.data())
def test_an_index_with_any_json_in_any_place_is_read_or_is_our_error(dataset, data):
    index = json.loads((dataset / "index.json").read_text())
    shard = index["shards"][0]
    index["shards"] = [dict(shard), dict(shard), shard]
    place = shard if data.draw(st.booleans()) else shard["raw_data"]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        shutil.copytree(dataset, root)
        (root / "index.json").write_text(json.dumps(index, sort_keys=data.draw(st.booleans())))
        check(root, Path(folder) / "cache")


@settings(max_examples=300)
@given(JSON | st.binary(max_size=40))
def test_any_text_is_an_index_or_our_error(value):
    text = value.decode("latin-1") if isinstance(value, bytes) else json.dumps(value)
    with pytest.raises(FormatError, match="Not an index"):
        Index(text)


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["br", "bz2", "gz", "snappy", "zstd"]))
def test_a_mutated_compressed_shard_is_read_or_is_our_error(packed, data, name):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        shutil.copytree(packed[name], root)
        shard = root / f"shard.00000.mds.{name}"
        mutated = mutate(data.draw, shard.read_bytes())
        shard.write_bytes(mutated)
        index = json.loads((root / "index.json").read_text())
        index["shards"][0]["zip_data"]["bytes"] = len(mutated)
        (root / "index.json").write_text(json.dumps(index))
        check(root, Path(folder) / "cache")


@settings(max_examples=200)
@given(st.sampled_from(["br", "bz2", "gz", "snappy", "zstd"]), st.binary(max_size=200), st.integers(0, 1000))
def test_any_bytes_decompress_to_the_size_that_was_told_or_are_our_error(name, data, size):
    try:
        raw = parse_compression(name).decompress(data, size)
    except FormatError:
        return
    assert len(raw) == size


@settings(max_examples=400)
@given(st.sampled_from([name for name in COLUMNS.values() if name != "pkl"]), st.binary(max_size=60))
def test_any_bytes_decode_or_are_an_error(name, data):
    encoding = parse_encoding(name)
    try:
        value = (encoding.field or bytes)(data)
    except ValueError:
        return
    if isinstance(value, np.ndarray):
        assert value.nbytes <= len(data)
