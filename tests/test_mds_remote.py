"""MDS datasets behind URLs: real S3 servers, requests counted before them, and processes that are really killed."""

import io
import multiprocessing
import pickle
import re
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cache_children import SAMPLES, fetch_all, fetch_forever, row, used_bytes, write_set
from PIL import Image

import torchslip as ts
from torchslip.errors import SampleError
from torchslip.sources import MDS
from torchslip.storage import NodeCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs flock and SIGKILL")

ROWS = [row(index) for index in range(SAMPLES)]
SHARD_BYTES = 10_000
SHARDS = 12
SOAK = [8, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]


class Remote:
    """A dataset in a bucket, and the requests for it."""

    def __init__(self, url, proxy):
        self.url, self.proxy = url, proxy
        # Given as such, they reach processes that were started before.
        self.options = {"endpoint_url": proxy.url, "key": "test", "secret": "test"}
        # Clients connect, and look for the bucket, before anything is counted.
        self.open(Path("unused"))
        proxy.set()

    def open(self, cache, **options):
        return MDS(self.url, cache=cache, storage_options=self.options, **options)

    @property
    def requests(self):
        """How often each shard was asked for."""
        return Counter(re.search(r"shard\.\d+", path)[0] for method, path in self.proxy.faults.seen if "shard." in path)

    @property
    def ranges(self):
        """First and last byte of each request for a shard."""
        faults = self.proxy.faults
        found = [
            re.search(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
            for headers, (_, path) in zip(faults.headers, faults.seen, strict=True)
            if "shard." in path
        ]
        return [(int(each[1]), int(each[2])) for each in found if each]


@pytest.fixture
def make(bucket, proxy):
    """Writes a dataset into the bucket."""

    def make(name="set", **options):
        write_set(f"{bucket}/{name}", **{"size_limit": SHARD_BYTES, "hashes": "sha1", **options})
        return Remote(f"{bucket}/{name}", proxy)

    return make


@pytest.fixture(scope="module")
def context():
    return multiprocessing.get_context("forkserver")


def read_all(source):
    return source.fetch(range(len(source)))


def kept(cache):
    return list(cache.root.glob("*.raw"))


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("hashes", [None, "sha1"])
def test_shards_are_downloaded_once_and_then_read_from_the_cache(make, tmp_path, compression, hashes):
    remote = make(compression=compression, hashes=hashes)
    for _ in range(3):
        assert read_all(remote.open(tmp_path / "cache")) == ROWS
    assert remote.requests == {f"shard.{number:05}": 1 for number in range(SHARDS)}


def test_open_knows_a_url(make, tmp_path):
    remote = make()
    source = ts.open(remote.url, cache=tmp_path, storage_options=remote.options)
    assert isinstance(source, MDS)
    assert repr(source) == f"MDS('{remote.url}': {SAMPLES} samples in {SHARDS} shards)"
    with pytest.raises(FileNotFoundError, match=f"{remote.url}/missing"):
        ts.open(f"{remote.url}/missing", storage_options=remote.options)


def test_a_part_of_a_dataset_is_a_folder_below(make, tmp_path):
    remote = make("set/train")
    source = MDS(remote.url.removesuffix("/train"), split="train", cache=tmp_path, storage_options=remote.options)
    assert source.fetch([7]) == [ROWS[7]]


def test_a_real_file_server_gives_the_same(rclone_folder, rclone_url, s3_keys, tmp_path):
    write_set(rclone_folder / "mds" / "set", size_limit=SHARD_BYTES)
    source = MDS("s3://mds/set", cache=tmp_path, storage_options={"endpoint_url": rclone_url})
    assert read_all(source) == ROWS


def test_any_file_system_of_fsspec_will_do(tmp_path):
    write_set(tmp_path / "set", size_limit=SHARD_BYTES)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/set", recursive=True)
    assert read_all(MDS("memory://set", cache=tmp_path / "cache")) == ROWS
    memory.store.clear()


def test_eight_processes_download_each_shard_once(make, context, tmp_path):
    remote, barrier, results = make(), context.Barrier(8), context.Queue()
    source = remote.open(tmp_path / "cache")
    processes = [
        context.Process(target=fetch_all, args=(source, seed, 40, barrier, results), daemon=True) for seed in range(8)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=90) for _ in processes] == [True] * 8
    for process in processes:
        process.join(30)
    assert remote.requests == {f"shard.{number:05}": 1 for number in range(SHARDS)}


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_source_works_in_other_processes_whatever_was_read_before(make, tmp_path, start):
    source = make().open(tmp_path / "cache")
    source.fetch([0])
    source.prepare(range(60))
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(source.fetch, [[0, 119], [60, 3]], 1) == [[ROWS[0], ROWS[119]], [ROWS[60], ROWS[3]]]
    assert read_all(pickle.loads(pickle.dumps(source))) == ROWS


def test_faults_of_the_network_do_not_reach_the_records(make, tmp_path):
    remote = make()
    remote.proxy.set(status_every=5, reset_every=7, lie_every=11)
    assert read_all(remote.open(tmp_path / "cache")) == ROWS


def overwrite(remote, proxy_url, name, data):
    options = {"endpoint_url": proxy_url}
    fs = fsspec.filesystem("s3", key="test", secret="test", client_kwargs=options, skip_instance_cache=True)
    fs.pipe_file(f"{remote.url}/{name}", data) if data is not None else fs.rm_file(f"{remote.url}/{name}")


def test_a_shard_that_is_missing_is_an_error_that_names_it_and_the_sample(make, moto_url, tmp_path):
    remote = make()
    overwrite(remote, moto_url, "shard.00003.mds", None)
    source = remote.open(tmp_path / "cache")
    with pytest.raises(SampleError, match=rf"Sample 3\d .*{remote.url}/shard\.00003\.mds, sample \d.*no such object"):
        read_all(source)
    assert source.fetch([0, 119]) == [ROWS[0], ROWS[119]]


@pytest.mark.parametrize("budget", [None, 100])
def test_a_damaged_shard_is_fetched_twice_and_then_an_error(make, moto_url, tmp_path, budget):
    remote = make()
    overwrite(remote, moto_url, "shard.00003.mds", bytes(remote.open(tmp_path)._index[3].files["raw_data"].bytes))
    source = remote.open(NodeCache(tmp_path / "cache", budget))
    with pytest.raises(SampleError, match=rf"The sha1 is .*index says .*{remote.url}/shard\.00003\.mds.*read twice"):
        source.fetch(range(30, 40))
    assert remote.requests["shard.00003"] == 2
    assert source.fetch([0]) == [ROWS[0]]


def test_a_shard_of_another_size_is_an_error_and_takes_no_room(make, moto_url, tmp_path):
    remote, cache = make(), NodeCache(tmp_path / "cache")
    overwrite(remote, moto_url, "shard.00003.mds", bytes(1_000_000))
    with pytest.raises(SampleError, match=r"has 1000000 bytes; the index says"):
        remote.open(cache).fetch(range(30, 40))
    assert used_bytes(cache.root) < 15_000


def test_a_dataset_that_was_written_anew_is_not_read_from_old_entries(make, bucket, tmp_path):
    for fill in (b"a", b"b"):
        with ts.MDSWriter(columns={"data": "bytes"}, out=f"{bucket}/set", exist_ok=True) as writer:
            writer.write({"data": fill * 50})
        source = MDS(f"{bucket}/set", cache=tmp_path / "cache")
        assert source.fetch([0]) == [{"data": fill * 50}]
        time.sleep(1.1)  # S3 knows times in seconds


def test_what_comes_next_is_fetched_ahead_and_no_more(make, tmp_path):
    remote, cache = make(), NodeCache(tmp_path / "cache")
    source = remote.open(cache, prefetch=3)
    source.prepare(range(SAMPLES))
    wait_until(lambda: len(kept(cache)) == 3)
    time.sleep(0.1)
    assert sorted(remote.requests) == [f"shard.{number:05}" for number in range(3)]
    source.fetch([0])
    wait_until(lambda: len(kept(cache)) == 4)
    assert read_all(source) == ROWS
    assert set(remote.requests.values()) == {1}


def test_what_was_removed_is_fetched_ahead_again_in_the_next_epoch(make, tmp_path):
    remote, cache = make(), NodeCache(tmp_path / "cache")
    source = remote.open(cache, prefetch=2)
    for epoch in range(2):
        source.prepare(range(SAMPLES))
        wait_until(lambda expected=epoch + 1: remote.requests["shard.00000"] == expected)
        assert source.fetch(range(40)) == ROWS[:40]
        source.prepare([*range(40, SAMPLES), *range(40)])
        for path in kept(cache):
            path.unlink()


def test_without_prefetching_nothing_is_fetched_ahead(make, tmp_path):
    remote = make()
    source = remote.open(tmp_path / "cache", prefetch=0)
    source.prepare(range(SAMPLES))
    assert source.fetch(range(10)) == ROWS[:10]
    assert set(remote.requests) <= {"shard.00000", "shard.00001"}


@pytest.fixture
def large(make):
    """One shard of 2 MB, 100 samples of 20 kB."""
    remote = make("large", samples=1, size_limit=None)  # makes the clients
    with ts.MDSWriter(columns={"data": "bytes", "label": "int"}, out=f"{remote.url}-2", size_limit=None) as writer:
        for index in range(100):
            writer.write(row(index, 20_000))
    return Remote(f"{remote.url}-2", remote.proxy)


def test_of_a_few_samples_only_their_ranges_are_read(large, tmp_path):
    cache = NodeCache(tmp_path / "cache")
    assert large.open(cache).fetch([50]) == [row(50, 20_000)]
    assert sum(last - first + 1 for first, last in large.ranges) < 25_000
    assert not cache.root.exists()


def test_neighbours_are_read_with_one_request(large, tmp_path):
    source = large.open(tmp_path / "cache")
    ids = [52, 50, 99, 0, 52, 51]
    assert source.fetch(ids) == [row(index, 20_000) for index in ids]
    assert len(large.ranges) == 1 + 3
    large.proxy.set()
    assert source.fetch([10, 11]) == [row(10, 20_000), row(11, 20_000)]
    assert len(large.ranges) == 1


def test_a_shard_is_downloaded_when_ranges_come_to_a_quarter_of_it(large, tmp_path):
    source, cache = large.open(tmp_path / "cache"), NodeCache(tmp_path / "cache")
    for index in range(0, 100, 2):
        assert source.fetch([index]) == [row(index, 20_000)]
    assert len(kept(cache)) == 1
    assert 26 < len(large.ranges) < 30


def test_a_shard_of_which_much_is_known_to_be_wanted_is_downloaded(large, tmp_path):
    source = large.open(tmp_path / "cache", prefetch=0)
    source.prepare([5, 60], [3, 4])
    assert source.fetch([5]) == [row(5, 20_000)]
    assert len(kept(NodeCache(tmp_path / "cache"))) == 1


def test_where_hashes_are_to_be_checked_nothing_is_read_by_ranges(make, tmp_path):
    remote = make(size_limit=None)
    assert remote.open(tmp_path / "cache", validate_hash=True).fetch([5]) == [ROWS[5]]
    assert len(kept(NodeCache(tmp_path / "cache"))) == 1


def test_a_head_that_lies_is_an_error_that_names_the_shard(make, moto_url, tmp_path):
    remote = make(size_limit=None, hashes=None)
    overwrite(remote, moto_url, "shard.00000.mds", bytes(remote.open(tmp_path)._index[0].files["raw_data"].bytes))
    with pytest.raises(SampleError, match=rf"Sample 5 .*{remote.url}/shard\.00000\.mds.*does not have the 120 samples"):
        remote.open(tmp_path / "cache").fetch([5])


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_budget_below_one_shard_reads_everything_and_keeps_nothing(make, tmp_path, compression):
    cache = NodeCache(tmp_path / "cache", 5000)
    source = make(compression=compression).open(cache)
    ids = [number * 49 % SAMPLES for number in range(SAMPLES)]
    assert [source.fetch(ids[at : at + 10]) for at in range(0, SAMPLES, 10)] == [
        [ROWS[each] for each in ids[at : at + 10]] for at in range(0, SAMPLES, 10)
    ]
    assert not kept(cache)


def test_a_source_makes_room_for_itself(make, tmp_path):
    cache = NodeCache(tmp_path / "cache", 4 * SHARD_BYTES)
    source = make().open(cache)
    for _ in range(2):
        assert [source.fetch([index]) for index in range(SAMPLES)] == [[each] for each in ROWS]
    assert 2 <= len(kept(cache)) <= 4


@pytest.fixture(scope="module")
def pictures():
    rng, rows = np.random.default_rng(0), []
    for label in range(SAMPLES):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": label})
    return rows


@pytest.mark.parametrize("workers", [0, 3])
def test_epochs_through_a_small_cache_are_those_from_the_disk(bucket, proxy, pictures, tmp_path, workers):
    for out in (tmp_path / "local", f"{bucket}/set"):
        with ts.MDSWriter(columns={"image": "png", "label": "int"}, out=out, size_limit=SHARD_BYTES // 2) as writer:
            for picture in pictures:
                writer.write(picture)
    remote, cache, epochs = Remote(f"{bucket}/set", proxy), NodeCache(tmp_path / "cache", 6 * SHARD_BYTES), ([], [])
    for source, found in zip((MDS(tmp_path / "local"), remote.open(cache, prefetch=1)), epochs, strict=True):
        dataset = ts.ImageDataset(source, batch_size=8, shuffle=True, window=2, seed=3)
        for _ in range(2):
            for batch in ts.DataLoader(dataset, num_workers=workers):
                found.append((batch["sample_id"].tolist(), batch["label"].tolist(), int(batch["image"][0].sum())))
                assert used_bytes(cache.root) <= cache.budget_bytes
    assert epochs[0] == epochs[1]
    # Without a cache it would be twice the dataset; with it, on a quiet machine, one and a half times.
    shards = len(source.shard_sizes)
    assert shards <= sum(remote.requests.values()) < 2 * shards


@pytest.mark.parametrize("kills", SOAK)
def test_readers_killed_at_random_moments_leave_a_cache_that_others_read_right(make, context, tmp_path, kills):
    remote, cache = make(), NodeCache(tmp_path / "cache", 4 * SHARD_BYTES)
    source = remote.open(cache)
    for number in range(kills):
        started = [context.Event() for _ in range(2)]
        readers = [
            context.Process(target=fetch_forever, args=(source, 2 * number + each, event), daemon=True)
            for each, event in enumerate(started)
        ]
        for reader in readers:
            reader.start()
        assert all(event.wait(60) for event in started)
        time.sleep(number % 5 * 0.013)
        for reader in readers:
            assert reader.is_alive()
            reader.kill()
            reader.join(30)
        begin = time.monotonic()
        assert read_all(remote.open(cache)) == ROWS
        assert time.monotonic() - begin < 30
        assert used_bytes(cache.root) <= cache.budget_bytes
