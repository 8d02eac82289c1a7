"""What the processes do that test_node_cache and test_mds_remote start: fetch, slowly, and until they are killed."""

import itertools
import random
import time
from pathlib import Path

from torchslip.errors import FormatError
from torchslip.storage import Entry

SIZE = 20_000


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
