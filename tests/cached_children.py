"""What processes do that test_sync and test_cached start and kill: copy, and ask for the packed form of a source."""

import time
from pathlib import Path

import torchslip as ts
from torchslip.pack import sync

RECORDS = 120


class Slow:
    """Records that take a moment each; each call leaves a line in a file."""

    schema = {"data": "bytes", "label": "int"}  # noqa: RUF012
    classes = ["even", "odd"]  # noqa: RUF012

    def __init__(self, log, *, seconds=0.001, version=1):
        self.log, self.seconds, self.version = Path(log), seconds, version

    @property
    def fingerprint(self):
        return f"slow:{self.version}"

    def __len__(self):
        return RECORDS

    def fetch(self, indices):
        time.sleep(self.seconds * len(indices))
        with self.log.open("a") as file:
            file.write("".join(f"{index}\n" for index in indices))
        return [
            {"data": (self.version * 1000 + index).to_bytes(2, "little") * (100 + index), "label": index % 2}
            for index in indices
        ]


def sync_once(source, target, options):
    sync(source, target, jobs=2, storage_options=options)


def cache_once(source, root, options, results=None, barrier=None):
    """Ask for the packed form of a source; says which records it has."""
    if barrier is not None:
        barrier.wait(60)
    dataset = ts.cached(source, root=root, shard_bytes=6000, **options)
    if results is not None:
        results.put((type(dataset).__name__, dataset.fetch(range(RECORDS)) == source.fetch(range(RECORDS))))
