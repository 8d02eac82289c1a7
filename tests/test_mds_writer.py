"""`MDSWriter` and `merge_index`: whole or nothing, in the sizes that were asked for, locally and at a remote."""

import io
import json
import logging
import os
import struct
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from torchslip.errors import FormatError
from torchslip.pack import MDSWriter, merge_index
from torchslip.sources import MDS

COLUMNS = {"data": "bytes", "number": "int"}
HEAD_BYTES = 4 + 8  # of a sample: the size of `data`, and `number`


def row(index, size=100):
    return {"data": bytes([index % 251]) * size, "number": index}


def write(out, rows, columns=COLUMNS, **options):
    with MDSWriter(columns=columns, out=out, **options) as writer:
        for each in rows:
            writer.write(each)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class RecordingFileSystem(MemoryFileSystem):
    """fsspec's file system in memory, slow, that fails when told to and remembers what arrived when."""

    protocol = "recording"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    arrived = []  # noqa: RUF012
    failures = []  # noqa: RUF012

    def pipe_file(self, path, value, **kwargs):
        type(self).arrived.append(path.rpartition("/")[2])
        return super().pipe_file(path, value, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        time.sleep(0.02)
        if type(self).failures:
            raise type(self).failures.pop()
        super().put_file(lpath, rpath, **kwargs)
        type(self).arrived.append(rpath.rpartition("/")[2])


@pytest.fixture
def remote():
    RecordingFileSystem.store.clear()
    RecordingFileSystem.pseudo_dirs[:] = [""]
    RecordingFileSystem.arrived.clear()
    RecordingFileSystem.failures.clear()
    fsspec.register_implementation("recording", RecordingFileSystem, clobber=True)
    return RecordingFileSystem


def remote_files(remote):
    return {path.rpartition("/")[2]: bytes(file.getbuffer()) for path, file in remote.store.items()}


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "out", map(row, range(50)), size_limit=1000)
    source = MDS(tmp_path / "out")
    assert source.fetch(range(50)) == [row(index) for index in range(50)]


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in "ab":
        write(tmp_path / name, map(row, range(50)), size_limit=1000, compression="gz:5", hashes=["sha1"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_no_samples_make_an_empty_dataset(tmp_path):
    write(tmp_path, [])
    assert (tmp_path / "index.json").read_text() == '{"shards": [], "version": 2}'
    assert names(tmp_path) == ["index.json"]
    assert len(MDS(tmp_path)) == 0


@pytest.mark.parametrize("limit", [600, 1000, 1001, 5000])
def test_a_shard_is_as_large_as_the_limit_allows_and_no_larger(tmp_path, limit):
    write(tmp_path, map(row, range(50)), size_limit=limit)
    shards = json.loads((tmp_path / "index.json").read_text())["shards"]
    sizes = [shard["raw_data"]["bytes"] for shard in shards]
    sample_bytes = 100 + HEAD_BYTES + 4
    assert max(sizes) <= limit
    assert all(size + sample_bytes > limit for size in sizes[:-1])
    assert sizes == [(tmp_path / shard["raw_data"]["basename"]).stat().st_size for shard in shards]


def test_an_oversized_sample_has_a_shard_of_its_own_and_no_shard_is_empty(tmp_path):
    write(tmp_path, [row(0, 5000), row(1, 5000), row(2), row(3)], size_limit=1000)
    assert MDS(tmp_path).shard_sizes.tolist() == [1, 1, 2]


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_there_is_one_shard(tmp_path, limit):
    write(tmp_path, map(row, range(50)), size_limit=limit)
    assert MDS(tmp_path).shard_sizes.tolist() == [50]


@pytest.mark.parametrize(
    ("text", "size"), [("1kb", 1024), ("0.5MB", 1 << 19), (" 2 kb ", 2048), ("123b", 123), ("77", 77), (1e3, 1000)]
)
def test_a_size_is_a_number_or_has_a_unit_of_1024(tmp_path, text, size):
    write(tmp_path, [row(0)], size_limit=text)
    assert json.loads((tmp_path / "index.json").read_text())["shards"][0]["size_limit"] == size


@pytest.mark.parametrize("size", ["64M", "64MiB", "4gb", 1 << 32, -1, "-5kb", "1e99kb"])
def test_an_impossible_size_is_an_error(tmp_path, size):
    with pytest.raises(ValueError, match=r"size_limit must be .*; got"):
        MDSWriter(columns=COLUMNS, out=tmp_path / "out", size_limit=size)


def test_offsets_beyond_4_gib_are_an_error_and_not_wrapped(tmp_path):
    large = bytes(1 << 29)  # never touched, so it takes no memory
    with pytest.raises(ValueError, match=r"larger than the 4 GiB .*; set size_limit"):
        write(tmp_path, ({"data": large, "number": i} for i in range(9)), size_limit=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"data": b""}, "columns data, number; missing: number"),
        ({"data": b"", "number": 1, "extra": 2}, "unknown: extra"),
        ({"data": b"", "numer": 1}, "missing: number; unknown: numer"),
        ({"data": b"", "number": 1 << 63}, r"Column 'number' \(int\): .* does not fit"),
    ],
)
def test_a_sample_that_does_not_fit_is_an_error_that_names_the_column_and_changes_nothing(tmp_path, sample, message):
    with MDSWriter(columns=COLUMNS, out=tmp_path) as writer:
        writer.write(row(0))
        with pytest.raises(ValueError, match=message):
            writer.write(sample)
        writer.write(row(1))
    assert MDS(tmp_path).fetch([0, 1]) == [row(0), row(1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {}}, "at least one column"),
        ({"columns": {"a": "tensor"}}, "no MDS encoding 'tensor'; choose from bytes, str"),
        ({"compression": "zip"}, "no compression 'zip'; choose from br:0 to 11"),
        ({"compression": "zstd:23"}, "zstd:1 to 22"),
        ({"hashes": "crc"}, "no hash algorithm 'crc'; choose from"),
        ({"hashes": ["sha1", "sha1"]}, "each algorithm once"),
        ({"out": "s3://a", "remote": "s3://b"}, "out must be a local folder"),
        ({"out": ("x", "s3://a"), "remote": "s3://b"}, "out names a remote already"),
    ],
)
def test_a_bad_argument_is_an_error_and_makes_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        MDSWriter(**{"columns": COLUMNS, "out": tmp_path / "out", **options})
    assert names(tmp_path) == []


@pytest.mark.parametrize("existed", [True, False])
def test_an_exception_leaves_nothing_behind(tmp_path, existed):
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    with pytest.raises(RuntimeError, match="stop"), MDSWriter(columns=COLUMNS, out=out, size_limit=500) as writer:
        for index in range(50):
            writer.write(row(index))
        assert len(names(out)) > 5
        raise RuntimeError("stop")
    assert out.exists() == existed
    assert not existed or names(out) == []


def test_a_writer_that_failed_never_writes_an_index(tmp_path):
    writer = MDSWriter(columns=COLUMNS, out=tmp_path, size_limit=500)
    writer.write(row(0))
    writer.abort()
    with pytest.raises(ValueError, match="not complete"):
        writer.finish()
    with pytest.raises(ValueError, match="finished"):
        writer.write(row(1))
    assert names(tmp_path) == []


def test_there_is_no_index_before_the_end(tmp_path):
    with MDSWriter(columns=COLUMNS, out=tmp_path, size_limit=500) as writer:
        for index in range(50):
            writer.write(row(index))
        assert "index.json" not in names(tmp_path)
        with pytest.raises(FileNotFoundError):
            MDS(tmp_path)
    assert len(MDS(tmp_path)) == 50


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    for exist_ok in (False, True):
        with pytest.raises(FileExistsError, match=r"mine\.txt"):
            MDSWriter(columns=COLUMNS, out=tmp_path, exist_ok=exist_ok)
    assert contents(tmp_path) == {"mine.txt": b"dear"}


def test_a_dataset_is_replaced_only_if_asked_to(tmp_path):
    write(tmp_path, map(row, range(50)), size_limit=500)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="pass exist_ok=True"):
        MDSWriter(columns=COLUMNS, out=tmp_path)
    assert contents(tmp_path) == before
    write(tmp_path, map(row, range(3)), exist_ok=True)
    assert names(tmp_path) == ["index.json", "shard.00000.mds"]


def test_a_file_that_no_index_lists_saves_the_dataset_beside_it(tmp_path):
    write(tmp_path, map(row, range(50)), size_limit=500)
    (tmp_path / "mine.txt").write_text("dear")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"mine\.txt.*nothing was removed"):
        MDSWriter(columns=COLUMNS, out=tmp_path, exist_ok=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("index", [b"{}", b"\xff", b'{"chunks": []}'])
def test_a_folder_with_a_foreign_index_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(FileExistsError, match="not the index of an MDS dataset, so nothing was removed"):
        MDSWriter(columns=COLUMNS, out=tmp_path, exist_ok=True)
    assert contents(tmp_path) == {"index.json": index}


def test_what_an_index_lists_outside_of_its_folder_is_not_removed(tmp_path):
    write(tmp_path / "out", [row(0)])
    (tmp_path / "shard.00000.mds").write_text("dear")
    index = tmp_path / "out" / "index.json"
    index.write_text(index.read_text().replace('"shard.0', '"../shard.0'))
    with pytest.raises(FileExistsError, match="relative path inside"):
        MDSWriter(columns=COLUMNS, out=tmp_path / "out", exist_ok=True)
    assert (tmp_path / "shard.00000.mds").exists()


def test_what_a_killed_writer_left_is_replaced_only_if_asked_to(tmp_path):
    abandoned = MDSWriter(columns=COLUMNS, out=tmp_path, size_limit=500)
    for index in range(50):
        abandoned.write(row(index))
    with pytest.raises(FileExistsError, match="an unfinished dataset"):
        MDSWriter(columns=COLUMNS, out=tmp_path)
    write(tmp_path, map(row, range(3)), exist_ok=True)
    assert names(tmp_path) == ["index.json", "shard.00000.mds"]


def test_shards_arrive_while_writing_and_the_index_last(tmp_path, remote):
    with MDSWriter(
        columns=COLUMNS, out=tmp_path / "out", remote="recording://set", size_limit=500, keep_local=True
    ) as writer:
        for index in range(50):
            writer.write(row(index))
        time.sleep(0.2)
        assert len(remote.arrived) > 5
        assert "index.json" not in remote.arrived
    assert remote.arrived[-1] == "index.json"
    assert remote_files(remote) == contents(tmp_path / "out")


@pytest.mark.parametrize("form", ["url", "pair", "remote"])
def test_without_keep_local_only_the_remote_has_the_dataset(tmp_path, remote, form):
    out = tmp_path / "out"
    write(tmp_path / "expected", map(row, range(50)), size_limit=500)
    place = {
        "url": {"out": "recording://set"},
        "pair": {"out": (out, "recording://set")},
        "remote": {"out": out, "remote": "recording://set"},
    }[form]
    write(rows=map(row, range(50)), size_limit=500, **place)
    assert remote_files(remote) == contents(tmp_path / "expected")
    assert names(tmp_path) == ["expected"]


def test_an_upload_that_fails_is_tried_again(tmp_path, remote, caplog):
    remote.failures[:] = [OSError("flaky"), OSError("flaky")]
    with caplog.at_level(logging.WARNING):
        write("recording://set", map(row, range(5)), retry=2)
    assert "index.json" in remote_files(remote)
    assert "flaky" in caplog.text


def test_an_upload_that_fails_for_good_is_an_error_and_leaves_no_index(tmp_path, remote):
    remote.failures[:] = [OSError("denied")]
    with pytest.raises(OSError, match="denied"):
        write(tmp_path / "out", map(row, range(50)), remote="recording://set", size_limit=500, retry=0)
    assert "index.json" not in remote_files(remote)
    assert not (tmp_path / "out").exists()


def test_a_dataset_at_the_remote_is_replaced_only_if_asked_to(remote):
    write("recording://set", map(row, range(50)), size_limit=500)
    before = remote_files(remote)
    with pytest.raises(FileExistsError, match="exist_ok=True"):
        MDSWriter(columns=COLUMNS, out="recording://set")
    assert remote_files(remote) == before
    write("recording://set", map(row, range(3)), exist_ok=True)
    assert sorted(remote_files(remote)) == ["index.json", "shard.00000.mds"]


def test_a_folder_can_be_the_remote(tmp_path):
    write(tmp_path / "a", map(row, range(5)), remote=tmp_path / "b", keep_local=True)
    write((tmp_path / "c", f"file://{tmp_path}/d"), map(row, range(5)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "d")
    assert not (tmp_path / "c").exists()


def test_the_guide_works_as_it_stands(tmp_path, remote, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = {
        "frame_table": "bytes",
        "meta_json": "str",
    }
    with MDSWriter(
        out="data/mds/train",
        columns=columns,
        compression="zstd",
        hashes="sha1",
        size_limit="128MB",
        remote="recording://my-bucket/datasets/ui-trajs",
    ) as w:
        for number in range(3):
            buf = io.BytesIO()
            np.save(buf, np.full(4, number).astype("float32"))
            w.write({"frame_table": buf.getvalue(), "meta_json": json.dumps({"é": number}, ensure_ascii=False)})
    (tmp_path / "copy").mkdir()
    for name, data in remote_files(remote).items():
        (tmp_path / "copy" / name).write_bytes(data)
    records = MDS(tmp_path / "copy", cache=tmp_path / "cache", validate_hash="sha1").fetch([0, 1, 2])
    assert [json.loads(record["meta_json"]) for record in records] == [{"é": number} for number in range(3)]
    assert np.load(io.BytesIO(records[2]["frame_table"])).tolist() == [2.0] * 4


def test_a_dataset_is_written_and_merged_on_s3(bucket, tmp_path):
    for part in range(2):
        write(f"{bucket}/set/{part}", map(row, range(part * 50, part * 50 + 50)), size_limit=500)
    with pytest.raises(FileExistsError):
        MDSWriter(columns=COLUMNS, out=f"{bucket}/set/0")
    write(f"{bucket}/set/0", map(row, range(50)), exist_ok=True)
    merge_index(f"{bucket}/set")
    fsspec.filesystem("s3", endpoint_url=os.environ["S3_ENDPOINT_URL"]).get(
        f"{bucket}/set", str(tmp_path / "copy"), recursive=True
    )
    source = MDS(tmp_path / "copy")
    assert source.fetch(range(100)) == [row(index) for index in range(100)]
    assert source.shard_sizes[0] == 50


@pytest.mark.parametrize("as_list", [True, False])
def test_parallel_writers_are_merged_in_order(tmp_path, as_list):
    for part in (1, 0, 2):
        write(tmp_path / f"{part:05}", map(row, range(part * 10, part * 10 + 10)), size_limit=500)
    parts = [tmp_path / f"{part:05}" for part in range(3)]
    merge_index(parts, tmp_path) if as_list else merge_index(tmp_path)
    source = MDS(tmp_path)
    assert source.fetch(range(30)) == [row(index) for index in range(30)]
    assert "00002/shard" in source.locate(29)


def test_parts_are_merged_at_any_depth_and_at_a_remote(tmp_path, remote):
    for part in ("a/b/0", "a/c"):
        write(f"recording://set/{part}", [row(len(part))])
    merge_index("recording://set")
    (index,) = (json.loads(file.getvalue()) for path, file in remote.store.items() if path.endswith("set/index.json"))
    assert [shard["raw_data"]["basename"] for shard in index["shards"]] == [
        "a/b/0/shard.00000.mds",
        "a/c/shard.00000.mds",
    ]


def test_what_does_not_belong_together_is_not_merged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no index\.json"):
        merge_index(tmp_path)
    write(tmp_path / "0", [row(0)])
    write(tmp_path / "1", [{"other": 1}], {"other": "int"})
    with pytest.raises(FormatError, match=r"1/index\.json has the columns"):
        merge_index(tmp_path)
    with pytest.raises(ValueError, match="must lie below"):
        merge_index([tmp_path / "0"], tmp_path / "elsewhere")
    assert names(tmp_path) == ["0", "1"]
    merge_index([tmp_path / "0"], tmp_path)
    with pytest.raises(FileExistsError, match="exist_ok=True"):
        merge_index([tmp_path / "0"], tmp_path)
    merge_index([tmp_path / "0", tmp_path / "0" / "index.json"], tmp_path, exist_ok=True)
    assert len(MDS(tmp_path)) == 2


def test_the_layout_of_a_shard_is_that_of_the_format(tmp_path):
    write(tmp_path, [row(7, 2), row(8, 3)])
    data = (tmp_path / "shard.00000.mds").read_bytes()
    count, *offsets = struct.unpack_from("<4I", data)
    config = json.loads(data[16 : offsets[0]])
    assert (count, offsets[2]) == (2, len(data))
    assert config["column_names"] == ["data", "number"]
    assert data[offsets[0] : offsets[1]] == struct.pack("<I", 2) + b"\x07\x07" + struct.pack("<q", 7)


def test_progress_is_not_shown_where_there_is_no_terminal(tmp_path, capsys):
    write(tmp_path / "out", [row(0)], progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/out", [row(0)])
    assert Path(tmp_path, "out", "index.json").is_file()
