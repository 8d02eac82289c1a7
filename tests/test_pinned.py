"""Nothing replaces what a snapshot has: a reader of it reads every byte after any attempt."""

import re
from pathlib import Path

import pytest

import torchslip as ts
from torchslip.errors import StorageError
from torchslip.sources.mds import MDS, SIDECAR_NAME
from torchslip.storage import open_folder


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    """Where datasets go: a folder of this machine, or a bucket."""
    return str(tmp_path / "data") if request.param == "disk" else request.getfixturevalue("bucket")


def write(out, first, **options):
    with ts.MDSWriter(columns={"a": "int", "b": "str"}, out=out, size_limit=200, **options) as writer:
        for number in range(first, first + 20):
            writer.write({"a": number, "b": "x" * 10})


def read(snapshot):
    return [snapshot.read(number) for number in range(len(snapshot))]


def write_again(out, **options):
    write(out, 100, exist_ok=True, **options)


def pack_again(out, **options):
    ts.pack(out + "-source", out, exist_ok=True, **options)


@pytest.mark.parametrize("replace", [write_again, pack_again])
def test_what_a_snapshot_has_is_not_replaced(place, replace):
    write(f"{place}/set", 0)
    write(f"{place}/set-source", 50)
    snapshot = ts.resolve(f"{place}/set@refresh")
    before = read(snapshot)
    with pytest.raises(FileExistsError, match=rf"set/.* belongs to the snapshot .*/set@sha256:{snapshot.hash}"):
        replace(f"{place}/set")

    assert read(snapshot) == before
    assert ts.MDS(f"{place}/set").fetch([0]) == [{"a": 0, "b": "x" * 10}]


def test_a_snapshot_of_a_folder_above_counts(place):
    write(f"{place}/all/set", 0)
    write(f"{place}/all/other", 0)
    snapshot = ts.resolve(f"{place}/all@refresh", label_mode="none")
    before = read(snapshot)
    with pytest.raises(FileExistsError, match=rf"/all@sha256:{snapshot.hash}"):
        write_again(f"{place}/all/set")

    assert read(snapshot) == before


def test_a_snapshot_of_what_lies_beside_it_does_not_count(place):
    write(f"{place}/set", 0)
    write(f"{place}/set2", 0)
    ts.resolve(f"{place}/set2@refresh")
    write_again(f"{place}/set")

    assert ts.MDS(f"{place}/set").fetch([0])[0]["a"] == 100


def test_a_snapshot_that_was_removed_as_the_error_says_does_not_count(place):
    write(f"{place}/set", 0)
    ts.resolve(f"{place}/set@refresh")
    with pytest.raises(FileExistsError) as refused:
        write_again(f"{place}/set")
    Path(re.search(r"remove (\S+) first", str(refused.value))[1]).unlink()
    write_again(f"{place}/set")
    assert ts.MDS(f"{place}/set").fetch([0])[0]["a"] == 100


def test_shards_without_an_index_are_not_written_over_either(place):
    write(f"{place}/set", 0)
    from torchslip.storage import open_folder

    open_folder(f"{place}/set").remove(["index.json"])
    snapshot = ts.resolve(f"{place}/set@refresh")
    before = read(snapshot)
    with pytest.raises(FileExistsError):
        write(f"{place}/set", 100)

    assert read(snapshot) == before


def test_a_merged_index_is_not_replaced(place):
    for part in ("a", "b"):
        write(f"{place}/set/{part}", 0)
    ts.merge_index(f"{place}/set")
    snapshot = ts.resolve(f"{place}/set@refresh", label_mode="none")
    before = read(snapshot)
    with pytest.raises(FileExistsError, match="belongs to the snapshot"):
        ts.merge_index(f"{place}/set", exist_ok=True)
    with pytest.raises(FileExistsError):
        write_again(f"{place}/set/a")

    assert read(snapshot) == before


def test_a_snapshot_in_another_store_counts_where_that_is_named(place, tmp_path):
    write(f"{place}/set", 0)
    snapshot = ts.resolve(f"{place}/set@refresh", store=tmp_path / "team")
    before = read(snapshot)
    for again in (write_again, pack_again):
        write(f"{place}/set-source", 50, exist_ok=True)
        with pytest.raises(FileExistsError, match=str(tmp_path / "team")):
            again(f"{place}/set", store=tmp_path / "team")

    assert read(snapshot) == before


def test_packing_the_same_again_changes_nothing_and_is_allowed(place):
    write(f"{place}/source", 0)
    ts.pack(f"{place}/source", f"{place}/set")
    snapshot = ts.resolve(f"{place}/set@refresh")
    before = read(snapshot)
    ts.pack(f"{place}/source", f"{place}/set", exist_ok=True)

    assert read(snapshot) == before and SIDECAR_NAME in list(snapshot.keys())


def test_a_link_to_a_packed_dataset_is_these_files_or_an_error(place, picture_folder):
    ts.pack(picture_folder, place, shard_bytes=20_000)
    pinned = ts.open(f"{place}@refresh")
    link = pinned.snapshot.link

    assert isinstance(pinned, MDS) and pinned.classes == ts.ImageFolder(picture_folder).classes
    assert pinned.fetch([3]) == ts.open(link).fetch([3]) == ts.open(place).fetch([3])
    assert ts.open(link).fingerprint == ts.open(place).fingerprint

    folder = open_folder(place)
    shard = sorted(name for name in folder.names() if name.endswith(".mds"))[1]
    data = bytearray(folder.read(shard))
    data[-1] ^= 1
    folder.write(shard, bytes(data))
    with pytest.raises(StorageError, match=f"{shard} changed since the snapshot"):
        ts.open(link)
    assert ts.open(f"{place}@refresh").snapshot.hash != pinned.snapshot.hash
