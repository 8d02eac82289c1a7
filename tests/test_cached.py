"""The packed form of a source: built once by whoever needs it first, found by everyone, whole or not there."""

import logging
import multiprocessing
import random
import re
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cached_children import RECORDS, Slow, cache_once

import torchslip as ts
from torchslip.errors import FormatError, SampleError, StorageError
from torchslip.storage import open_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock and SIGKILL")

KILLS = [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


@pytest.fixture
def slow(tmp_path):
    return Slow(tmp_path / "log", seconds=0)


@pytest.fixture
def options(bucket, proxy):
    """A remote that processes which were started before reach too."""
    server = {"endpoint_url": proxy.url, "key": "test", "secret": "test"}
    return {"remote": f"{bucket}/packed", "storage_options": server, "lease_seconds": 2.0}


def fetched(slow):
    """How often each record was read from the source."""
    return Counter(slow.log.read_text().split()) if slow.log.exists() else Counter()


def once(slow):
    return {str(number): 1 for number in range(RECORDS)} == fetched(slow)


def records(slow):
    return Slow("/dev/null", version=slow.version).fetch(range(RECORDS))


def entries(root):
    return sorted(path for path in Path(root).iterdir() if path.is_dir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_source_is_packed_once_and_then_found(slow, tmp_path):
    first = ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)
    again = ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)

    assert isinstance(first, ts.MDS) and first.root == again.root
    assert again.fetch(range(RECORDS)) == records(slow) and again.classes == slow.classes
    assert once(slow)


def test_a_path_is_a_source(picture_folder, tmp_path):
    packed = ts.cached(picture_folder, root=tmp_path / "root")

    assert packed.fetch(range(42)) == ts.ImageFolder(picture_folder).fetch(range(42))


def test_the_default_place_is_the_cache_folder_of_the_user(slow, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    assert Path(ts.cached(slow).root).parent == tmp_path / "home" / "torchslip" / "packed"


def test_a_changed_source_and_other_options_have_a_form_of_their_own(slow, tmp_path):
    changed = Slow(slow.log, seconds=0, version=2)
    for source, options in ((slow, {}), (changed, {}), (slow, {"compression": "zstd:1"}), (slow, {"hashes": None})):
        packed = ts.cached(source, root=tmp_path / "root", shard_bytes=6000, **options)
        assert packed.fetch(range(RECORDS)) == records(source)

    assert len(entries(tmp_path / "root")) == 4


def test_options_that_have_no_place_here_are_refused(slow, tmp_path):
    for name in ("resume", "exist_ok", "shard_byte"):
        with pytest.raises(TypeError, match=f"got {name}"):
            ts.cached(slow, root=tmp_path / "root", **{name: True})
    with pytest.raises(ValueError, match="shard_bytes"):
        ts.cached(slow, root=tmp_path / "root", shard_bytes=-1)

    assert not (tmp_path / "root").exists()


def test_a_folder_with_files_of_others_is_refused(slow, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "thesis.tex").write_text("mine")
    with pytest.raises(FormatError, match=r"thesis.tex"):
        ts.cached(slow, root=tmp_path / "root")

    assert [path.name for path in (tmp_path / "root").iterdir()] == ["thesis.tex"]


def test_a_root_that_cannot_be_written_is_an_error_that_says_so(slow, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file|Not a directory"):
        ts.cached(slow, root=tmp_path / "file" / "root")
    if Path("/sys/kernel").is_dir():  # which nobody may write to, not even root
        with pytest.raises(StorageError, match=r"/sys/kernel/packed cannot hold the packed dataset .*as root"):
            ts.cached(slow, root="/sys/kernel/packed")


def test_a_finished_form_is_read_where_nothing_can_be_written(slow, tmp_path):
    packed = ts.cached(slow, root=tmp_path / "root")
    (tmp_path / "root" / f"{Path(packed.root).name}.lock").unlink()
    for path in (tmp_path / "root", Path(packed.root)):
        path.chmod(0o555)
    try:
        assert ts.cached(slow, root=tmp_path / "root").fetch(range(RECORDS)) == records(slow)
    finally:
        for path in (tmp_path / "root", Path(packed.root)):
            path.chmod(0o755)
    assert not (tmp_path / "root" / f"{Path(packed.root).name}.lock").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "no sidecar"])
def test_a_damaged_form_is_built_again(slow, tmp_path, damage):
    packed = ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)
    before = contents(Path(packed.root))
    path = Path(packed.root) / ("torchslip.sidecar" if damage == "no sidecar" else "shard.00001.mds")
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    again = ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)

    assert again.fetch(range(RECORDS)) == records(slow) and contents(Path(again.root)) == before


def test_a_record_that_cannot_be_read_is_an_error_or_left_out_as_asked(tmp_path, picture_folder):
    shutil.copytree(picture_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "discs" / "00-baseline.jpg").write_bytes(b"no picture")
    with pytest.raises(SampleError, match="Sample 0 cannot be packed"):
        ts.cached(tmp_path / "pictures", root=tmp_path / "root")
    packed = ts.cached(tmp_path / "pictures", root=tmp_path / "root", on_error="skip")
    assert len(packed) == 41
    with pytest.raises(SampleError, match=r"Sample 0 was left out .*00-baseline.jpg.*on_error='skip'"):
        ts.cached(tmp_path / "pictures", root=tmp_path / "root")


def test_eight_processes_build_once(context, tmp_path):
    source, barrier, results = Slow(tmp_path / "log"), context.Barrier(8), context.Queue()
    arguments = (source, tmp_path / "root", {}, results, barrier)
    processes = [context.Process(target=cache_once, args=arguments, daemon=True) for _ in range(8)]
    for process in processes:
        process.start()
    assert [results.get(timeout=90) for _ in processes] == [("MDS", True)] * 8
    for process in processes:
        process.join(30)

    counts = fetched(source)
    assert len(entries(tmp_path / "root")) == 1
    # Each of them compares with the source at the end.
    assert set(counts.values()) == {9}


def test_who_does_not_wait_reads_the_source_meanwhile(context, tmp_path):
    source = Slow(tmp_path / "log", seconds=0.02)
    builder = context.Process(target=cache_once, args=(source, tmp_path / "root", {}), daemon=True)
    builder.start()
    deadline = time.monotonic() + 60
    while not fetched(source):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert ts.cached(source, root=tmp_path / "root", shard_bytes=6000, wait=False) is source
    with pytest.raises(TimeoutError, match="wait=False"):
        ts.cached(source, root=tmp_path / "root", shard_bytes=6000, timeout_seconds=0.05)
    builder.join(60)

    assert isinstance(ts.cached(source, root=tmp_path / "root", shard_bytes=6000, wait=False), ts.MDS)


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_builder_keeps_nobody_waiting_and_what_it_finished_is_kept(context, tmp_path, kills):
    rng = random.Random(kills)
    done = attempt = 0
    deadline = time.monotonic() + 20 * kills
    while done < kills:
        attempt += 1
        source, root = Slow(tmp_path / f"log{attempt}", seconds=0.002), tmp_path / f"root{attempt}"
        killed_here = 0
        while True:
            assert time.monotonic() < deadline
            process = context.Process(target=cache_once, args=(source, root, {}), daemon=True)
            process.start()
            begun = source.log.stat().st_size if source.log.exists() else 0
            while process.is_alive() and time.monotonic() < deadline:
                if source.log.exists() and source.log.stat().st_size > begun:
                    break
                time.sleep(0.002)
            process.join(rng.random() * 0.3 * 1.3**killed_here)
            killed = process.is_alive()
            process.kill()
            process.join(30)
            if not killed:
                assert process.exitcode == 0
                break
            done, killed_here = done + 1, killed_here + 1
        (entry,) = entries(root)
        assert ts.cached(source, root=root, shard_bytes=6000).fetch(range(RECORDS)) == records(source)
        ts.pack(Slow("/dev/null", seconds=0), root.parent / f"whole{attempt}", shard_bytes=6000, verify=False)
        assert contents(entry) == contents(root.parent / f"whole{attempt}")
        if killed_here > 1:  # what was packed before was not read again
            assert sum(fetched(source).values()) < RECORDS * (killed_here + 1)


def test_the_notes_of_a_packer_that_was_killed_at_its_very_end_go(slow, tmp_path):
    packed = ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)
    before = contents(Path(packed.root))
    for name in (".torchslip-packing", ".torchslip-packing-00000", ".torchslip-tmp-x"):
        (Path(packed.root) / name).write_text("{}")
    ts.cached(slow, root=tmp_path / "root", shard_bytes=6000)

    assert contents(Path(packed.root)) == before and once(slow)


def test_what_one_machine_built_the_others_download(slow, options, tmp_path):
    first = ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    second = ts.cached(slow, root=tmp_path / "b", shard_bytes=6000, **options)

    assert once(slow)
    assert second.fetch(range(RECORDS)) == records(slow)
    assert contents(Path(second.root)) == contents(Path(first.root))


def test_the_index_is_uploaded_last_and_nothing_is_asked_when_all_is_known(slow, options, proxy, tmp_path):
    proxy.set(methods=("PUT",), only="/packed/")
    ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    written = [path.partition("?")[0].rpartition("/")[2] for _, path in proxy.faults.seen if ".lock" not in path]
    assert written[-1] == "index.json" and written.count("index.json") == 1 and "torchslip.sidecar" in written
    proxy.set(methods=("GET", "HEAD", "PUT", "POST", "DELETE"))
    ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)

    assert proxy.faults.seen == []


def test_eight_processes_of_four_machines_build_once(context, options, tmp_path):
    source, barrier, results = Slow(tmp_path / "log"), context.Barrier(8), context.Queue()
    processes = [
        context.Process(
            target=cache_once, args=(source, tmp_path / f"machine{number % 4}", options, results, barrier), daemon=True
        )
        for number in range(8)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [("MDS", True)] * 8
    for process in processes:
        process.join(30)

    assert set(fetched(source).values()) == {9}


@pytest.mark.parametrize("damage", ["shard", "shard missing", "sidecar missing", "index of another"])
def test_a_damaged_copy_at_the_remote_is_built_again_and_replaced(slow, options, tmp_path, caplog, damage):
    first = ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    name = Path(first.root).name
    there = open_folder(f"{options['remote']}/{name}", options["storage_options"])
    if damage == "shard":
        data = there.read("shard.00001.mds")
        there.write("shard.00001.mds", data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "index of another":
        ts.pack(Slow("/dev/null", version=2), tmp_path / "other", shard_bytes=3000)
        there.write("index.json", (tmp_path / "other" / "index.json").read_bytes())
    else:
        there.remove(["shard.00001.mds" if damage == "shard missing" else "torchslip.sidecar"])
    with caplog.at_level(logging.WARNING, "torchslip"):
        second = ts.cached(slow, root=tmp_path / "b", shard_bytes=6000, **options)
    assert "is damaged and will be built again" in caplog.text
    caplog.clear()
    third = ts.cached(slow, root=tmp_path / "c", shard_bytes=6000, **options)

    assert not caplog.text
    assert contents(Path(second.root)) == contents(Path(third.root)) == contents(Path(first.root))


def test_a_remote_that_refuses_is_an_error_and_the_form_is_kept(slow, options, proxy, tmp_path):
    proxy.set(methods=("PUT",), only="shard", status=403, status_every=1)
    with pytest.raises(PermissionError):
        ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    assert ts.cached(slow, root=tmp_path / "a", shard_bytes=6000).fetch(range(RECORDS)) == records(slow)
    proxy.set()
    ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    ts.cached(slow, root=tmp_path / "b", shard_bytes=6000, **options)

    assert once(slow)


def test_a_remote_may_be_a_folder_that_machines_share(slow, tmp_path):
    for machine in ("a", "b"):
        packed = ts.cached(slow, root=tmp_path / machine, remote=tmp_path / "shared", shard_bytes=6000)
        assert packed.fetch(range(RECORDS)) == records(slow)

    assert once(slow)


def test_a_download_goes_on_with_what_is_there(slow, options, proxy, tmp_path):
    first = ts.cached(slow, root=tmp_path / "a", shard_bytes=6000, **options)
    second = tmp_path / "b" / Path(first.root).name
    ts.NodeCache(tmp_path / "b").claim()
    second.mkdir()
    for number in range(3):
        shutil.copy(Path(first.root) / f"shard.{number:05}.mds", second)
    proxy.set(only="shard.")
    ts.cached(slow, root=tmp_path / "b", shard_bytes=6000, **options)
    again = {re.search(r"shard\.\d+", path)[0] for _, path in proxy.faults.seen}

    assert again == {path.name[:11] for path in second.glob("shard.*")} - {f"shard.{number:05}" for number in range(3)}
    assert contents(second) == contents(Path(first.root))


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_uploader_leaves_no_index_and_the_next_one_finishes(context, options, proxy, tmp_path, kills):
    rng, done, attempt = random.Random(kills), 0, 0
    deadline = time.monotonic() + 30 * kills
    while done < kills:
        attempt += 1
        root, source = tmp_path / f"root{attempt}", Slow(tmp_path / f"log{attempt}", seconds=0, version=attempt)
        arguments = (source, root, {**options, "lease_seconds": 0.2})
        name = Path(ts.cached(source, root=root, shard_bytes=6000).root).name
        there = open_folder(f"{options['remote']}/{name}", options["storage_options"])
        while True:
            assert time.monotonic() < deadline
            proxy.set(methods=("PUT",), only="/packed/", latency_seconds=0.02)
            process = context.Process(target=cache_once, args=arguments, daemon=True)
            process.start()
            while proxy.count == 0 and process.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)
            process.join(rng.random() * 0.4)
            killed = process.is_alive()
            process.kill()
            process.join(30)
            proxy.set()
            uploaded = {*there.names()}  # once: the last request of who was killed may just be under way
            assert {*contents(root / name)} <= uploaded or "index.json" not in uploaded
            if not killed:
                assert process.exitcode == 0
            if "index.json" in there.names():
                break
            done += killed
        copy = ts.cached(Slow("/dev/null", version=attempt), root=tmp_path / f"b{attempt}", shard_bytes=6000, **options)
        assert contents(Path(copy.root)) == contents(root / name)


def test_threads_of_one_process_build_once(slow, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ts.cached(slow, root=tmp_path / "root", shard_bytes=6000).root, range(8)))

    assert len(set(found)) == 1 and once(slow)
