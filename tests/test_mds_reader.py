"""The source `MDS`: what is stored is what is read, or an error that names shard and sample."""

import ctypes
import gzip
import hashlib
import json
import mmap
import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mds_samples import COLUMNS, digest, jpeg, sample
from PIL import Image

from torchslip.errors import FormatError, SampleError
from torchslip.order import Shuffled
from torchslip.pack import MDSWriter, merge_index
from torchslip.sources import MDS, Source, open
from torchslip.sources.mds import COMPRESSIONS, HASHES, Index, parse_encoding

SIMPLE = {"data": "bytes", "label": "int", "text": "str"}


def row(index):
    return {"data": bytes([index % 251]) * (index * 7 % 100), "label": index, "text": f"number {index}"}


ROWS = [row(index) for index in range(60)]


def write(out, rows=ROWS, columns=SIMPLE, **options):
    with MDSWriter(columns=columns, out=out, **{"size_limit": 1000, **options}) as writer:
        for each in rows:
            writer.write(each)
    return out


def read_all(source):
    return source.fetch(range(len(source)))


def edit_index(folder, change):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index["shards"])
    path.write_text(json.dumps(index, sort_keys=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mds") / "plain", hashes=["sha1", "xxh64"])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mds") / "packed", hashes=["sha1"], compression="zstd")


@pytest.fixture
def golden():
    path = Path(os.environ.get("TORCHSLIP_TEST_DATA", Path(__file__).parents[1] / "../shared/data")) / "formats"
    if not path.is_dir():
        pytest.skip(f"no golden files at {path}; set TORCHSLIP_TEST_DATA to the folder that holds formats/")
    return path


@pytest.mark.parametrize("name", ["plain", "zstd", "br", "gz", "oneshard"])
def test_golden_files_of_the_original_are_read(golden, tmp_path, name):
    expected = [json.loads(line) for line in (golden / "expected-mds.jsonl").read_text().splitlines()]
    source = MDS(golden / f"mds-{name}", cache=tmp_path, validate_hash=name not in ("plain", "gz"))
    assert len(source) == len(expected)
    for record, wanted in zip(read_all(source), expected, strict=True):
        assert hashlib.sha256(record["image"]).hexdigest() == wanted["image_sha256"]
        assert hashlib.sha256(record["vec"].tobytes()).hexdigest() == wanted["vec_sha256"]
        for key in ("label", "name", "weight", "meta"):
            assert record[key] == wanted[key]


def test_it_is_a_source_that_open_finds(plain):
    source = open(plain)
    assert isinstance(source, MDS)
    assert isinstance(source, Source)
    assert source.schema == {"data": "bytes", "label": "int", "text": "str"}
    assert repr(source) == f"MDS({str(plain)!r}: 60 samples in {len(source.shard_sizes)} shards)"


def test_a_folder_with_another_index_is_not_mds(tmp_path):
    (tmp_path / "index.json").write_text('{"chunks": []}')
    with pytest.raises((FormatError, FileNotFoundError)):
        open(tmp_path)


@pytest.mark.parametrize("as_indices", [list, tuple, np.array, lambda ids: np.array(ids, np.int32)])
def test_records_come_in_the_order_that_was_asked_for(plain, as_indices):
    ids = [*np.random.default_rng(0).permutation(60).tolist(), 5, 5, 0, 59]
    assert MDS(plain).fetch(as_indices(ids)) == [row(index) for index in ids]


def test_nothing_is_fetched_for_no_indices(plain):
    assert MDS(plain).fetch([]) == []


@pytest.mark.parametrize("index", [-1, 60, 10**6, 2**63, -(2**63)])
def test_an_index_out_of_range_is_an_error(plain, index):
    with pytest.raises(IndexError, match=f"no record {index}: the source has 60"):
        MDS(plain).fetch([3, index])


def test_every_encoding_is_read_as_its_kind(tmp_path):
    samples = [sample(index) for index in range(8)]
    source = MDS(write(tmp_path / "all", samples, COLUMNS, size_limit=20_000))
    types = {"image": bytes, "bytes": bytes, "int": int, "float": float, "str": str, "json": dict, "array": np.ndarray}
    for record, wanted in zip(read_all(source), samples, strict=True):
        for name, kind in source.schema.items():
            assert type(record[name]) is types[kind], name
            if kind == "array":
                assert digest(record[name]) == digest(np.ascontiguousarray(wanted[name]))
            elif kind == "int":
                assert record[name] == wanted[name]


@pytest.mark.parametrize("compression", [None, "gz"])
def test_lent_images_are_views_of_the_same_bytes(tmp_path, compression):
    samples = [sample(index) for index in range(8)]
    out = write(tmp_path / "all", samples, COLUMNS, size_limit=20_000, compression=compression)
    source = MDS(out, cache=tmp_path / "cache")
    wanted, lent = read_all(source), source.lend(range(len(source)))
    source._close(range(100))
    for record, same in zip(lent, wanted, strict=True):
        views = {name for name, value in record.items() if isinstance(value, memoryview)}
        assert views == {"photo", "picture"}  # not pil, which is made
        assert all(record[name].readonly and record[name] == same[name] for name in views)
        assert pickle.dumps({**record, **{name: bytes(record[name]) for name in views}}) == pickle.dumps(same)


@pytest.mark.parametrize("columns", [["label"], ["text", "data"], ["data"], []])
def test_only_the_columns_that_were_asked_for_are_read(plain, columns):
    source = MDS(plain, columns=columns)
    assert list(source.schema) == sorted(columns)
    assert read_all(source) == [{name: each[name] for name in sorted(columns)} for each in ROWS]
    assert source.fingerprint == MDS(plain).fingerprint


def resident_pages(path):
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = -(-len(view) // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(view)
        status = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(view)), flags)
        del anchor
    return None if status else sum(flag & 1 for flag in flags) / pages


@pytest.mark.skipif(sys.platform != "linux", reason="needs mincore and posix_fadvise")
def test_reading_labels_leaves_the_images_on_the_disk(tmp_path):
    rows = [{"image": os.urandom(200_000), "label": index} for index in range(40)]
    write(tmp_path / "out", rows, {"image": "bytes", "label": "int"}, size_limit=None)
    shard = tmp_path / "out" / "shard.00000.mds"
    descriptor = os.open(shard, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    if resident_pages(shard) != 0:
        pytest.skip("the file system does not drop cached pages")
    labels = read_all(MDS(tmp_path / "out", columns=["label"]))
    assert [record["label"] for record in labels] == list(range(40))
    assert resident_pages(shard) < 0.1


@pytest.mark.parametrize(
    ("options", "message"), [({"columns": ["x"]}, "no column 'x'"), ({"image_columns": ["x"]}, "x")]
)
def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(plain, options, message):
    with pytest.raises(ValueError, match=f"{message}.*data, label, text"):
        MDS(plain, **options)


def test_a_column_of_bytes_can_be_declared_images(tmp_path):
    data = jpeg(np.random.default_rng(0))
    write(tmp_path / "out", [{"image": data, "label": 1}], {"image": "bytes", "label": "int"})
    source = MDS(tmp_path / "out", image_columns=["image"])
    assert source.schema == {"image": "image", "label": "int"}
    assert source.fetch([0]) == [{"image": data, "label": 1}]
    with pytest.raises(ValueError, match="'label' has encoding int; only bytes"):
        MDS(tmp_path / "out", image_columns=["label"])


def test_a_pickle_is_bytes_unless_the_user_asks_for_more(tmp_path):
    write(tmp_path / "out", [{"object": {"a": (1, None)}}], {"object": "pkl"})
    (record,) = MDS(tmp_path / "out").fetch([0])
    assert pickle.loads(record["object"]) == {"a": (1, None)}
    assert MDS(tmp_path / "out", allow_pickle=True).fetch([0]) == [{"object": {"a": (1, None)}}]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_source_works_in_other_processes(plain, start, recwarn):
    source = MDS(plain)
    source.fetch([0, 59])
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(source.fetch, [[0, 30], [59], [1, 2]]) == [[ROWS[0], ROWS[30]], [ROWS[59]], ROWS[1:3]]
    copy = pickle.loads(pickle.dumps(source))
    assert read_all(copy) == ROWS
    assert copy.fingerprint == source.fingerprint


def test_threads_may_share_a_source(packed, tmp_path):
    source = MDS(packed, cache=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for records in pool.map(lambda _: read_all(source), range(16)):
            assert records == ROWS


@pytest.mark.parametrize("compression", ["br:1", "bz2", "gz", "snappy", "zstd:7"])
def test_compressed_shards_are_read(tmp_path, compression):
    write(tmp_path / "out", compression=compression)
    assert read_all(MDS(tmp_path / "out", cache=tmp_path / "cache")) == ROWS


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_and_level_is_undone(tmp_path, name):
    write(tmp_path / "out", ROWS[:9], compression=name)
    assert read_all(MDS(tmp_path / "out", cache=tmp_path / "cache")) == ROWS[:9]


@pytest.mark.parametrize("name", HASHES)
def test_every_hash_is_checked(tmp_path, name):
    write(tmp_path / "out", hashes=name)
    assert read_all(MDS(tmp_path / "out", validate_hash=name)) == ROWS
    edit_index(tmp_path / "out", lambda shards: shards[0]["raw_data"]["hashes"].update({name: "00"}))
    with pytest.raises(SampleError, match=f"Sample 0 .*shard.00000.mds.*The {name} is .*; the index says 00"):
        MDS(tmp_path / "out", validate_hash=name).fetch([0])


def test_a_shard_is_decompressed_once(packed, tmp_path):
    cache = tmp_path / "cache"
    source = MDS(packed, cache=cache)
    assert not cache.exists()
    assert read_all(source) == ROWS
    before = {path: path.stat().st_mtime_ns for path in cache.glob("*.raw")}
    assert len(before) == len(source.shard_sizes)
    assert read_all(MDS(packed, cache=cache, validate_hash=True)) == ROWS
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.raw")} == before
    assert not list(cache.glob("*.part"))


def test_two_processes_decompress_a_shard_once(packed, tmp_path):
    source = MDS(packed, cache=tmp_path / "cache")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(source.fetch, [list(range(60))] * 8) == [ROWS] * 8
    assert len(list((tmp_path / "cache").glob("*.raw"))) == len(source.shard_sizes)


def test_the_folder_of_the_dataset_is_only_read(packed, plain, tmp_path):
    before = {path: path.stat().st_mtime_ns for folder in (packed, plain) for path in (folder, *folder.iterdir())}
    for folder in (packed, plain):
        read_all(MDS(folder, cache=tmp_path / "cache"))
    after = {path: path.stat().st_mtime_ns for folder in (packed, plain) for path in (folder, *folder.iterdir())}
    assert after == before


def test_the_cache_is_in_the_cache_folder_of_the_user_and_says_what_it_is(packed, plain, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    read_all(MDS(plain))
    assert not list(tmp_path.iterdir())
    read_all(MDS(packed))
    assert "safe to delete" in (tmp_path / "torchslip" / "node" / ".torchslip-cache").read_text()


def test_a_dataset_that_changed_is_not_read_from_an_old_cache_entry(tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"
    for fill in (b"a", b"b"):
        write(out, [{"data": fill * 50}], {"data": "bytes"}, compression="zstd", exist_ok=True)
        assert MDS(out, cache=cache).fetch([0]) == [{"data": fill * 50}]


def test_a_cache_entry_of_the_wrong_size_is_made_anew(packed, tmp_path):
    read_all(MDS(packed, cache=tmp_path))
    for entry in tmp_path.glob("*.raw"):
        entry.write_bytes(b"short")
    assert read_all(MDS(packed, cache=tmp_path)) == ROWS


def test_shards_that_were_decompressed_beside_the_compressed_ones_are_used(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    source = MDS(copy, cache=tmp_path / "cache")
    for index, info in enumerate(Index.read(copy / "index.json")):
        name = info.files["raw_data"].basename
        data = decompressed(copy, info)
        (copy / name).write_bytes(data)
        if index % 2:
            (copy / f"{name}.zstd").unlink()
    assert read_all(source) == ROWS
    assert not (tmp_path / "cache").exists()


def decompressed(folder, info):
    import zstandard

    return zstandard.decompress((folder / info.files["zip_data"].basename).read_bytes())


def test_equal_data_has_equal_fingerprints_and_other_data_others(plain, packed, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "copy")
    assert MDS(copy).fingerprint == MDS(plain).fingerprint
    fewer = write(tmp_path / "fewer", ROWS[:-1], hashes=["sha1", "xxh64"])
    changed = write(tmp_path / "changed", [*ROWS[:-1], row(59) | {"label": 5}], hashes=["sha1", "xxh64"])
    assert len({MDS(path).fingerprint for path in (plain, packed, fewer, changed)}) == 4


def test_shard_sizes_make_an_order_that_keeps_to_a_window_of_shards(plain):
    source = MDS(plain)
    sizes = source.shard_sizes
    assert sizes.sum() == len(source) == 60
    order = Shuffled(len(source), seed=1, window=2, blocks=sizes)
    ids = order.at(np.arange(60), epoch=0)
    assert sorted(ids.tolist()) == list(range(60))
    shards = np.repeat(np.arange(len(sizes)), sizes)[ids]
    assert all(len(set(shards[begin : begin + sizes.min()].tolist())) <= 4 for begin in range(60))


def test_a_sample_is_located_in_its_shard(plain):
    source = MDS(plain)
    first = int(source.shard_sizes[0])
    assert source.locate(0) == f"{plain}/shard.00000.mds, sample 0"
    assert source.locate(first) == f"{plain}/shard.00001.mds, sample 0"
    with pytest.raises(IndexError):
        source.locate(60)


def test_a_split_is_a_sub_folder(plain):
    assert read_all(MDS(plain.parent, split="plain")) == ROWS


def test_empty_shards_are_passed_over(tmp_path):
    out = write(tmp_path / "out")
    config = (out / "shard.00000.mds").read_bytes()
    first = struct.unpack_from("<I", config, 4)[0]
    count = int(MDS(out).shard_sizes[0])
    text = config[8 + 4 * count : first]
    empty = struct.pack("<2I", 0, 8 + len(text)) + text
    (out / "empty.mds").write_bytes(empty)

    def insert(shards):
        for place in (0, 2, len(shards) + 2):
            file = {**shards[0]["raw_data"], "basename": "empty.mds", "bytes": len(empty)}
            shards.insert(place, {**shards[-1], "samples": 0, "raw_data": file})

    edit_index(out, insert)
    source = MDS(out)
    assert read_all(source) == ROWS
    assert (source.shard_sizes == 0).sum() == 3
    assert [source.fetch([index]) for index in range(60)] == [[each] for each in ROWS]


def test_a_dataset_without_samples_has_none(tmp_path):
    assert read_all(MDS(write(tmp_path / "out", []))) == []
    with pytest.raises(IndexError):
        MDS(tmp_path / "out").fetch([0])


@pytest.mark.parametrize("compression", [None, "gz"])
def test_merged_indexes_with_sub_folders_are_read(tmp_path, compression):
    for part in range(3):
        write(tmp_path / "set" / str(part), ROWS[part * 20 : part * 20 + 20], compression=compression)
    merge_index(tmp_path / "set")
    assert read_all(MDS(tmp_path / "set", cache=tmp_path / "cache")) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("sort_keys", [True, False])
def test_an_index_may_be_written_in_any_way_that_json_allows(plain, tmp_path, indent, sort_keys):
    copy = shutil.copytree(plain, tmp_path / "copy")
    index = json.loads((copy / "index.json").read_text())
    (index["shards"][1], last) = (dict(reversed(index["shards"][1].items())), index["shards"].pop())
    index = {"torchslip": {"any": ["thing"]}, "version": 2, "shards": [*index["shards"], last]}
    (copy / "index.json").write_text(json.dumps(index, indent=indent, sort_keys=sort_keys))
    assert read_all(MDS(copy)) == ROWS


def test_names_that_need_escapes_are_read(plain, tmp_path):
    copy = shutil.copytree(plain, tmp_path / "copy")
    (copy / "shard.00001.mds").rename(copy / 'a "b" é.mds')
    edit_index(copy, lambda shards: shards[1]["raw_data"].update(basename='a "b" é.mds'))
    assert read_all(MDS(copy)) == ROWS


@pytest.mark.parametrize("name", ["../plain/shard.00000.mds", "/etc/passwd", "a/../../x", "", ".", "a\\b", "a\0b", 5])
def test_a_name_that_leads_out_of_the_dataset_is_an_error(plain, tmp_path, name):
    copy = shutil.copytree(plain, tmp_path / "copy")
    for number in (0, 3):
        edit_index(copy, lambda shards, n=number: shards[n]["raw_data"].update(basename=name))
        with pytest.raises(FormatError, match=r"basename.*copy/index\.json"):
            MDS(copy)
        shutil.copy(plain / "index.json", copy / "index.json")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": True},
        {"format": "parquet"},
        {"samples": -1},
        {"samples": 1 << 32},
        {"samples": True},
        {"samples": "5"},
        {"raw_data": None},
        {"zip_data": {"basename": "a", "bytes": 5, "hashes": {}}},
        {"compression": "zip"},
        {"column_names": ["data", "data", "text"]},
        {"column_names": ["data", "label"]},
        {"column_names": ["data", "label", 5]},
        {"column_encodings": ["bytes", "int", "tensor"]},
        {"column_sizes": [None, 4, None]},
        {"column_sizes": None},
        {"raw_data": {"basename": "shard.00000.mds", "bytes": -1, "hashes": {}}},
        {"raw_data": {"basename": "shard.00000.mds", "bytes": 1.5, "hashes": {}}},
        {"raw_data": {"basename": "shard.00000.mds", "bytes": 5, "hashes": {"sha1": 5}}},
    ],
)
def test_an_index_that_contradicts_itself_is_an_error_that_names_it(plain, tmp_path, change):
    copy = shutil.copytree(plain, tmp_path / "copy")
    edit_index(copy, lambda shards: shards[2].update(change))
    with pytest.raises(FormatError, match=r"copy/index\.json"):
        MDS(copy)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "[]",
            "{",
            '{"shards": []}',
            '{"version": 2}',
            '{"shards": [], "version": 3}',
            '{"shards": [5], "version": 2}',
        ),
        *(
            '{"shards": [], "version": 2} x',
            '{"shards": [], "shards": [], "version": 2}',
            '{"shards": [,], "version": 2}',
        ),
        *('{"shards": {}, "version": 2}', "[" * 100_000, '{"a": ' * 100_000, '{"shards": [], "version": 2'),
    ],
)
def test_what_is_no_index_is_an_error(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(FormatError, match="Not an index of MDS shards"):
        MDS(tmp_path)


def test_no_index_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"index\.json"):
        MDS(tmp_path)


def test_shards_with_different_columns_are_an_error(tmp_path):
    write(tmp_path / "0", ROWS[:3])
    write(tmp_path / "1", [{"other": 1}], {"other": "int"})
    parts = [json.loads((tmp_path / name / "index.json").read_text())["shards"] for name in "01"]
    (tmp_path / "index.json").write_text(json.dumps({"shards": parts[0] + parts[1], "version": 2}))
    with pytest.raises(FormatError, match="do not have the same columns"):
        MDS(tmp_path)


def damage_missing(path):
    path.unlink()


def damage_truncated(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def damage_empty(path):
    path.write_bytes(b"")


def damage_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [damage_missing, damage_truncated, damage_longer, damage_empty, damage_folder]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_damaged_shard_is_an_error_that_names_shard_and_sample_and_the_others_are_read(tmp_path, damage, compression):
    out = write(tmp_path / "out", compression=compression)
    opened = MDS(out, cache=tmp_path / "cache")
    first, second = opened.shard_sizes[:2].tolist()
    victim = "shard.00001.mds" + (f".{compression}" if compression else "")
    damage(out / victim)
    for source in (opened, pickle.loads(pickle.dumps(opened))):
        for index in (first, first + second - 1):
            with pytest.raises(
                SampleError, match=rf"Sample {index} cannot be read .*{victim}, sample {index - first}\)"
            ):
                source.fetch([0, index])
        others = [*range(first), *range(first + second, 60)]
        assert source.fetch(others) == [row(index) for index in others]


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, 1, "does not have the"),
        (4, 0, "do not rise"),
        (8, 0, "do not rise"),
        (8, 0xFFFFFFFF, "do not rise"),
    ],
)
def test_a_shard_whose_head_was_tampered_with_is_an_error(tmp_path, offset, value, message):
    out = write(tmp_path / "out")
    data = bytearray((out / "shard.00000.mds").read_bytes())
    data[offset : offset + 4] = struct.pack("<I", value)
    (out / "shard.00000.mds").write_bytes(data)
    with pytest.raises(SampleError, match=f"Sample 1 .*{message}"):
        MDS(out).fetch([1])


@pytest.mark.parametrize("columns", [SIMPLE, {"data": "bytes", "label": "int"}, {"label": "int", "other": "int"}])
@pytest.mark.parametrize("size", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_size_that_leads_out_of_its_sample_is_an_error(tmp_path, columns, size):
    rows = [{**row(index), "other": index} for index in range(1, 4)]
    rows = [{name: each[name] for name in columns} for each in rows]
    out = write(tmp_path / "out", rows, columns)
    data = bytearray((out / "shard.00000.mds").read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    if "data" in columns:
        data[at : at + 4] = struct.pack("<I", size)
    else:
        data[8:12] = struct.pack("<I", at + 15)  # the second sample begins too early
    (out / "shard.00000.mds").write_bytes(data)
    with pytest.raises(SampleError, match=r"Sample 0 .*sizes of the sample's columns do not give its size"):
        MDS(out).fetch([0])


@pytest.mark.parametrize("compression", ["br", "bz2", "gz", "snappy", "zstd"])
def test_a_small_file_cannot_fill_the_memory(tmp_path, compression):
    out = write(
        tmp_path / "out", [{"data": bytes(50_000_000)}], {"data": "bytes"}, size_limit=None, compression=compression
    )
    edit_index(out, lambda shards: shards[0]["raw_data"].update(bytes=1000))
    source = MDS(out, cache=tmp_path / "cache")
    tracemalloc.start()
    with pytest.raises(SampleError, match=f"Damaged {compression} data: it must hold 1000 bytes"):
        source.fetch([0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


@pytest.mark.parametrize("compression", ["br", "bz2", "gz", "snappy", "zstd"])
def test_damaged_compressed_data_is_an_error(tmp_path, compression):
    out = write(tmp_path / "out", compression=compression)
    path = out / f"shard.00000.mds.{compression}"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(SampleError, match=f"Sample 0 .*shard.00000.mds.{compression}"):
        MDS(out, cache=tmp_path / "cache").fetch([0])
    assert not list((tmp_path / "cache").glob("*.raw"))


def test_a_tampered_byte_is_found_where_hashes_are_checked(plain, packed, tmp_path):
    for folder in (plain, packed):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        (shard,) = copy.glob("shard.00000.*")
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        with pytest.raises(SampleError, match="The sha1 is"):
            MDS(copy, validate_hash=True, cache=tmp_path / "cache").fetch([0])


def test_hashes_that_are_not_there_cannot_be_checked(plain, tmp_path):
    write(tmp_path / "out")
    for name, choice in ((tmp_path / "out", True), (plain, "md5")):
        with pytest.raises(ValueError, match="cannot be checked; pass validate_hash=False"):
            MDS(name, validate_hash=choice)
    with pytest.raises(ValueError, match="True, False or one of blake2b"):
        MDS(plain, validate_hash="crc")


def test_a_value_that_cannot_be_decoded_is_an_error_that_names_its_sample(tmp_path):
    out = write(tmp_path / "out", [{"meta": "{}"}, {"meta": "{"}], {"meta": "str"}, size_limit=None)
    path = out / "shard.00000.mds"
    path.write_bytes(path.read_bytes().replace(b'["str"]', b'["json"]'))
    path = out / "index.json"
    path.write_text(path.read_text().replace('["str"]', '["json"]'))
    edit_index(out, lambda shards: shards[0]["raw_data"].update(bytes=(out / "shard.00000.mds").stat().st_size))
    source = MDS(out)
    with pytest.raises(SampleError, match="Sample 0"):  # the head is one byte longer now
        source.fetch([0])


SPLIT_ROWS = [{"a": index, "b": f"é{index}", "c": index / 3} for index in range(10)]
SPLIT_COLUMNS = {"a": "int", "b": "str", "c": "float"}


def write_split(folder, form, separator, *, packed=False):
    """An independent writer of text shards, from the layout that the module describes."""
    folder.mkdir()
    shards = []
    for number in range(2):
        rows = SPLIT_ROWS[number * 5 : number * 5 + 5]
        if form == "json":
            head, lines = "", [json.dumps(each, sort_keys=True) for each in rows]
            keys = {"columns": SPLIT_COLUMNS}
        else:
            head = separator.join(SPLIT_COLUMNS) + "\n"
            lines = [separator.join(map(str, each.values())) for each in rows]
            keys = {"column_names": list(SPLIT_COLUMNS), "column_encodings": list(SPLIT_COLUMNS.values())}
            if form == "xsv":
                keys["separator"] = separator
        encoded = [head.encode(), *(f"{line}\n".encode() for line in lines)]
        data = b"".join(encoded)
        meta = struct.pack("<7I", 5, *np.cumsum([len(each) for each in encoded]).tolist()) + b"{}"
        entry = {**keys, "compression": "gz" if packed else None, "format": form, "hashes": [], "newline": "\n"}
        entry |= {"samples": 5, "size_limit": None, "version": 2, "zip_data": None, "zip_meta": None}
        for key, suffix, content in (("data", "", data), ("meta", ".meta", meta)):
            name = f"shard.{number:05}.{form}{suffix}"
            entry[f"raw_{key}"] = {"basename": name, "bytes": len(content), "hashes": {}}
            if packed:
                content, name = gzip.compress(content), f"{name}.gz"
                entry[f"zip_{key}"] = {"basename": name, "bytes": len(content), "hashes": {}}
            (folder / name).write_bytes(content)
        shards.append(entry)
    (folder / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))
    return folder


@pytest.mark.parametrize(("form", "separator"), [("json", ""), ("xsv", "::"), ("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("packed", [False, True])
def test_shards_of_text_are_read(tmp_path, form, separator, packed):
    source = MDS(write_split(tmp_path / "out", form, separator, packed=packed), cache=tmp_path / "cache")
    assert source.schema == SPLIT_COLUMNS
    assert read_all(source) == SPLIT_ROWS
    assert read_all(MDS(tmp_path / "out", columns=["b"], cache=tmp_path / "cache")) == [
        {"b": each["b"]} for each in SPLIT_ROWS
    ]


@pytest.mark.parametrize(("form", "separator"), [("json", ""), ("csv", ",")])
def test_a_damaged_line_is_an_error_that_names_its_sample(tmp_path, form, separator):
    out = write_split(tmp_path / "out", form, separator)
    path = out / f"shard.00001.{form}"
    path.write_bytes(path.read_bytes().replace(b'"a": 7', b'"b": 7').replace(b"7,", b"70"))
    source = MDS(out)
    with pytest.raises(SampleError, match=rf"Sample 7 .*shard.00001.{form}, sample 2"):
        source.fetch([6, 7])
    assert source.fetch([6, 8]) == [SPLIT_ROWS[6], SPLIT_ROWS[8]]


MANY_SHARDS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from torchslip.sources import MDS
source = MDS(sys.argv[1])
assert len(source.shard_sizes) > 300
for _ in range(2):
    assert [record["label"] for record in source.fetch(range(len(source)))] == list(range(len(source)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_NOFILE")
def test_more_shards_than_files_may_be_open_are_read(tmp_path):
    write(tmp_path / "out", [{"label": index} for index in range(320)], {"label": "int"}, size_limit=100)
    subprocess.run([sys.executable, "-c", MANY_SHARDS, str(tmp_path / "out")], check=True, timeout=60)


def test_a_shard_takes_a_hundred_bytes_of_memory(plain):
    entry = json.loads((plain / "index.json").read_text())["shards"][0]
    shards = []
    for number in range(5000):
        file = {"basename": f"shard.{number:05}.mds", "bytes": 1000 + number, "hashes": {"sha1": f"{number:040x}"}}
        shards.append({**entry, "hashes": ["sha1"], "raw_data": file, "samples": number})
    text = json.dumps({"shards": shards, "version": 2}, sort_keys=True)
    tracemalloc.start()
    index = Index(text)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [info.samples for info in index] == list(range(5000))
    assert index[4999].files["raw_data"].hashes == {"sha1": f"{4999:040x}"}
    assert size < 5000 * 120
    assert peak < 5000 * 700


def test_raw_pixels_are_an_image(tmp_path):
    picture = Image.new("RGB", (5, 4), (1, 2, 3))
    source = MDS(write(tmp_path / "out", [{"image": picture}], {"image": "pil"}))
    assert source.schema == {"image": "image"}
    assert source.fetch([0])[0]["image"].startswith(b"\x89PNG")
    assert parse_encoding("png").decode(source.fetch([0])[0]["image"]).tobytes() == picture.tobytes()
