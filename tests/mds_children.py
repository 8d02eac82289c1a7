"""What the processes do that test_mds_kill kills: write datasets, or read one with new caches, until the end."""

import itertools

from torchslip.pack import MDSWriter
from torchslip.sources import MDS

COLUMNS = {"data": "bytes", "number": "int"}
SAMPLES = 60


def row(index):
    return {"data": index.to_bytes(2, "little") * (1000 + index * 37 % 500), "number": index}


def write_one(folder, *, exist_ok=False):
    with MDSWriter(
        columns=COLUMNS,
        out=(folder / "local", folder / "remote"),
        keep_local=True,
        compression="zstd",
        hashes="sha1",
        size_limit=20_000,
        exist_ok=exist_ok,
    ) as writer:
        for index in range(SAMPLES):
            writer.write(row(index))


def write_forever(root):
    for number in itertools.count():
        write_one(root / str(number))


def read_forever(dataset, root):
    for number in itertools.count():
        source = MDS(dataset, cache=root / str(number), validate_hash=True)
        for _ in range(2):
            source.fetch(range(SAMPLES))
