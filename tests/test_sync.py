"""Copies of datasets and folders: whole, checked, completed after any kill, and nothing copied twice."""

import contextlib
import multiprocessing
import os
import random
import re
import sys
import time
from collections import Counter

import pytest
from cache_children import SAMPLES, row, write_set
from cached_children import sync_once

import torchslip as ts
from torchslip.errors import FormatError, StorageError
from torchslip.pack import sync
from torchslip.storage import open_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock and SIGKILL")

KILLS = [8, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
SHARD_BYTES = 10_000


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def dataset(tmp_path):
    """Twelve shards."""
    write_set(tmp_path / "set", size_limit=SHARD_BYTES, hashes="sha1")
    return tmp_path / "set"


@pytest.fixture
def remote(dataset, bucket, proxy):
    """The same in a bucket, behind the proxy."""
    sync(dataset, f"{bucket}/set")
    proxy.set()
    return f"{bucket}/set"


def fetched(proxy):
    """How often each shard was fetched."""
    found = (re.search(r"/(shard\.\d+\.mds)", path) for method, path in proxy.faults.seen if method == "GET")
    return Counter(match[1] for match in found if match)


def test_a_copy_of_a_dataset_has_the_same_bytes_and_the_index_last(dataset, remote, proxy, tmp_path):
    proxy.set(methods=("GET",), only="/set/")
    done = sync(remote, tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(dataset)
    assert (done.files, done.copied_files, done.bytes) == (13, 13, sum(map(len, contents(dataset).values())))
    assert "index.json" in proxy.faults.seen[-1][1]
    assert ts.MDS(tmp_path / "copy", validate_hash=True).fetch(range(SAMPLES)) == [row(each) for each in range(SAMPLES)]


def test_a_second_call_copies_nothing(remote, proxy, tmp_path):
    sync(remote, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").iterdir()}
    proxy.set()
    done = sync(remote, tmp_path / "copy")

    assert (done.files, done.copied_files) == (13, 0) and not fetched(proxy)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").iterdir()} == before


def test_a_folder_goes_to_a_url_and_comes_back(picture_folder, bucket, tmp_path):
    there = sync(picture_folder, f"{bucket}/pictures")
    again = sync(picture_folder, f"{bucket}/pictures")
    sync(f"{bucket}/pictures", tmp_path / "copy")

    assert (there.copied_files, again.copied_files) == (42, 0)
    assert contents(tmp_path / "copy") == contents(picture_folder)


def test_from_one_url_to_another(dataset, remote, bucket, tmp_path):
    sync(remote, f"{bucket}/second")
    assert sync(remote, f"{bucket}/second").copied_files == 0
    sync(f"{bucket}/second", tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(dataset)


def test_from_one_folder_to_another_with_times_of_modification(picture_folder, tmp_path):
    sync(picture_folder, tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(picture_folder)
    for path in picture_folder.rglob("*.jpg"):
        assert (tmp_path / "copy" / path.relative_to(picture_folder)).stat().st_mtime_ns == path.stat().st_mtime_ns


def test_a_snapshot_is_copied_as_it_was_or_not_at_all(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = open_folder(f"{bucket}/objects")
    for name in ("a/1", "a/2", "b/3"):
        folder.write(name, name.encode() * 9)
    link = ts.resolve(f"{bucket}/objects@refresh", label_mode="none").link
    folder.write("later", b"not in it")
    sync(link, tmp_path / "copy")
    assert contents(tmp_path / "copy") == {name: name.encode() * 9 for name in ("a/1", "a/2", "b/3")}

    folder.write("a/2", b"other content")
    with pytest.raises(StorageError, match="a/2 changed since the snapshot"):
        sync(link, tmp_path / "second")
    assert "a/2" not in contents(tmp_path / "second")


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_file_of_a_copy_is_copied_again_and_no_other(dataset, remote, proxy, tmp_path, damage):
    sync(remote, tmp_path / "copy")
    path = tmp_path / "copy" / "shard.00003.mds"
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1])
    )
    proxy.set()
    sync(remote, tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(dataset)
    assert fetched(proxy) == {"shard.00003.mds": 1}


def test_what_is_damaged_at_the_source_is_an_error_and_there_is_no_index(remote, tmp_path):
    folder = open_folder(remote)
    data = folder.read("shard.00003.mds")
    folder.write("shard.00003.mds", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match=r"shard.00003.mds is not what it should be, read twice: its sha1"):
        sync(remote, tmp_path / "copy")

    assert not {"index.json", "shard.00003.mds"} & set(contents(tmp_path / "copy"))


def test_a_damaged_folder_is_not_uploaded(dataset, bucket):
    path = dataset / "shard.00003.mds"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match=r"shard.00003.mds is damaged"):
        sync(dataset, f"{bucket}/damaged")

    assert not {"index.json", "shard.00003.mds"} & set(open_folder(f"{bucket}/damaged").names())


def test_another_dataset_is_replaced_only_when_asked_for(dataset, tmp_path):
    write_set(tmp_path / "copy", size_limit=SHARD_BYTES // 2, hashes="sha1", compression="zstd:1")
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "copy")
    with pytest.raises(FileExistsError, match=r"1 files in .*index.json.*replace=True"):
        sync(dataset, tmp_path / "copy")
    assert contents(tmp_path / "copy") == before
    sync(dataset, tmp_path / "copy", replace=True)

    assert contents(tmp_path / "copy") == contents(dataset) | {"notes.txt": b"mine"}


def test_a_file_of_the_user_is_not_replaced(picture_folder, tmp_path):
    (tmp_path / "copy" / "discs").mkdir(parents=True)
    (tmp_path / "copy" / "discs" / "00-baseline.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"discs/00-baseline.jpg"):
        sync(picture_folder, tmp_path / "copy")

    assert contents(tmp_path / "copy") == {"discs/00-baseline.jpg": b"mine"}


def test_what_a_snapshot_has_is_not_replaced(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_set(tmp_path / "copy", size_limit=SHARD_BYTES // 2)
    ts.resolve(tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(FileExistsError, match="belongs to the snapshot"):
        sync(dataset, tmp_path / "copy", replace=True)

    assert contents(tmp_path / "copy") == before


def test_names_that_lead_out_of_the_folder_are_refused(bucket, tmp_path, moto_url):
    import boto3

    client = boto3.client("s3", endpoint_url=moto_url)
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="evil/../../outside", Body=b"x")
    with pytest.raises(FormatError, match="would lead out of the folder"):
        sync(f"{bucket}/evil", tmp_path / "copy")

    assert not (tmp_path / "outside").exists()


def test_nothing_to_copy_is_an_error(bucket, tmp_path):
    for source in (f"{bucket}/missing", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            sync(source, tmp_path / "copy")


def test_transient_faults_are_nothing(remote, proxy, dataset, tmp_path):
    proxy.set(methods=("GET",), only="/set/", status_every=5, reset_every=7, lie_every=9)
    sync(remote, tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(dataset)


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


def test_two_do_not_copy_into_one_folder(context, remote, proxy, tmp_path):
    options = {"endpoint_url": proxy.url, "key": "test", "secret": "test"}
    proxy.set(only="/set/", latency_seconds=0.3)
    other = context.Process(target=sync_once, args=(remote, tmp_path / "copy", options), daemon=True)
    other.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "copy").exists() or not os.listdir(tmp_path / "copy"):  # noqa: PTH208
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(TimeoutError, match="Another process writes into"):
        sync(remote, tmp_path / "copy")
    other.kill()
    other.join(30)
    proxy.set()
    sync(remote, tmp_path / "copy")  # the lock of the killed one is gone


@pytest.mark.parametrize("kills", KILLS)
def test_killed_at_any_moment_it_goes_on_and_fetches_nothing_twice(context, dataset, remote, proxy, tmp_path, kills):
    options = {"endpoint_url": proxy.url, "key": "test", "secret": "test"}
    rng, done, attempt = random.Random(kills), 0, 0
    deadline = time.monotonic() + 20 * kills
    while done < kills:
        target = tmp_path / str(attempt)
        attempt += 1
        proxy.set(only="/set/", latency_seconds=0.03)
        killed_here = 0
        while True:
            assert time.monotonic() < deadline
            process = context.Process(target=sync_once, args=(remote, target, options), daemon=True)
            process.start()
            before = proxy.count
            while proxy.count == before and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)  # until it has its connections, which takes longer than the copying
            process.join(rng.random() * 0.3)
            killed = process.is_alive()
            process.kill()
            process.join(30)
            if not killed:
                assert process.exitcode == 0
                break
            done, killed_here = done + 1, killed_here + 1
            with contextlib.suppress(FileNotFoundError):
                assert (target / "index.json").read_bytes() == (dataset / "index.json").read_bytes()
                assert contents(dataset).items() <= contents(target).items()
        assert contents(target) == contents(dataset)
        counts = fetched(proxy)
        # Two at a time are on their way when it is killed.
        assert len(counts) == 12 and sum(counts.values()) <= 12 + 2 * killed_here
