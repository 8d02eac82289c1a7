"""Sources and folders that the tests of loading bytes share; at module level, so that spawned workers find them."""

import time
from types import MappingProxyType

import numpy as np


def content(index, size):
    """What sample `index` holds: it says its own number, and cannot be taken for another one."""
    return (np.arange(size, dtype=np.uint32) * 31 + index * 7).astype(np.uint8).tobytes()


class Numbers:
    """Samples of known sizes that are made when they are read.

    Args:
        sizes: Bytes of each sample.
        known: Whether sizes are told ahead.
        broken: Samples that cannot be read.
        seconds: How long each takes.
    """

    def __init__(self, sizes, *, known=True, broken=(), seconds=0.0):
        self.all_sizes = np.asarray(sizes, np.int64)
        self.broken, self.seconds = frozenset(broken), seconds
        if known:
            self.sizes = self.all_sizes

    schema = MappingProxyType({"bytes": "bytes", "label": "int"})
    fingerprint = "numbers"

    def __len__(self):
        return len(self.all_sizes)

    def fetch(self, indices):
        from torchslip import SampleError

        records = []
        for index in indices:
            time.sleep(self.seconds)
            if index in self.broken:
                raise SampleError(f"Sample {index} cannot be read: it was broken on purpose")
            records.append({"bytes": content(index, int(self.all_sizes[index])), "label": index % 10})
        return records


def make_folder(root, sizes, classes=("a", "b")):
    """A folder of files as `ImageFolder` lists them; what is in them is `content` of a running number."""
    for number, size in enumerate(sizes):
        folder = root / classes[number * len(classes) // len(sizes)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06}.jpg").write_bytes(content(number, size))
    return root
