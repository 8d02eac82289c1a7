"""What the processes do that test_node_cache and test_mds_remote start: fetch, slowly, and until they are killed."""

import itertools
import random
import time
from pathlib import Path

from torchslip.errors import FormatError
from torchslip.pack import MDSWriter
from torchslip.storage import Entry

SIZE = 20_000
SAMPLES = 120


def content(key, size=SIZE):
    """Bytes that no other key has."""
    return random.Random(key).randbytes(size)


def entry_of(key, size=SIZE):
    return Entry(f"test://{key}", size, f"test://bucket/{key}")


def fetcher(key, *, count=None, size=SIZE, pause=0.0):
    """Writes the bytes in ten pieces, and a line into `count` for each time it is called."""

    def fetch(path):
        if count is not None:
            with Path(count).open("a") as file:
                file.write(f"{key}\n")
        data = content(key, size)
        with path.open("wb") as file:
            for begin in range(0, size, size // 10):
                file.write(data[begin : begin + size // 10])
                file.flush()
                time.sleep(pause / 10)

    return fetch


def read(cache, key, **options):
    """The bytes of an entry, fetched if need be."""
    with cache.open(entry_of(key, options.get("size", SIZE)), fetcher(key, **options)) as held:
        return bytes(held.map())


def read_once(cache, key, count, barrier, results):
    barrier.wait(60)
    results.put(read(cache, key, count=count, pause=0.3) == content(key))


def fetch_slowly(cache, key):
    read(cache, key, pause=1000)


def hold(cache, keys, ready, done):
    """Keep entries open until told."""
    held = [cache.open(entry_of(key), fetcher(key)) for key in keys]
    ready.set()
    done.wait(60)
    assert all(each.kept for each in held)


def use_forever(cache, keys, seed, started):
    """Read, plan, prefetch and check at random."""
    rng = random.Random(seed)
    for number in itertools.count():
        coming = [rng.choice(keys) for _ in range(5)]
        cache.plan([entry_of(key).name for key in coming])
        cache.prefetch(entry_of(coming[1]), fetcher(coming[1], pause=0.001), next_use=1)
        assert read(cache, coming[0], pause=0.001) == content(coming[0])
        if number == 3:
            started.set()


def use_some(cache, keys, seed, count, results):
    rng = random.Random(seed)
    try:
        for _ in range(count):
            key = rng.choice(keys)
            assert read(cache, key, pause=0.002) == content(key)
        results.put("right")
    except (AssertionError, FormatError, OSError) as error:
        results.put(repr(error))


def write_set(out, *, samples=SAMPLES, **options):
    with MDSWriter(columns={"data": "bytes", "label": "int"}, out=out, **options) as writer:
        for index in range(samples):
            writer.write(row(index))


def row(index, size=900):
    """One sample of the datasets in test_mds_remote."""
    return {"data": content(index, size + index % 7), "label": index}


def fetch_all(source, seed, count, barrier, results):
    """Every sample, in batches of an order of one's own."""
    ids = list(range(len(source)))
    random.Random(seed).shuffle(ids)
    barrier.wait(60)
    batches = [ids[at : at + count] for at in range(0, len(ids), count)]
    results.put(all(source.fetch(batch) == [row(each) for each in batch] for batch in batches))


def fetch_forever(source, seed, started):
    rng = random.Random(seed)
    for number in itertools.count():
        ids = [rng.randrange(len(source)) for _ in range(4)]
        source.prepare(ids + [rng.randrange(len(source)) for _ in range(20)])
        assert source.fetch(ids) == [row(each) for each in ids]
        if number == 2:
            started.set()


def used_bytes(root):
    """As anyone sees it from outside; files come and go meanwhile."""
    total = 0
    for path in root.iterdir() if root.exists() else []:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
