"""One trial: one contender at one place, in a fresh process. Run by the supervisor of `_image_loading`.

It must run with the Python of each peer, so it imports nothing but what its contender needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

Batch = tuple[list[int], int, Callable[[int], bytes]]
"""Sample ids, bytes, and what gives the bytes of a row."""


class Place:
    """What there is to read, and with how many workers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.url: str = options["url"]  # of a folder or bucket
        self.folder = Path(options["folder"])  # the same as files, to compare
        self.packed: str = options["packed"]
        self.store: str = options["store"]
        self.count: int = options["count"]
        self.size: int = options["size"]
        self.workers: int = options["workers"]
        self.batch_size: int = options["batch_size"]

    @property
    def is_remote(self) -> bool:
        return "://" in self.url

    def expected(self, sample_id: int) -> bytes:
        return (self.folder / f"{sample_id:06}.bin").read_bytes()


def torchslip(place: Place, *, workers: bool = False, profile: str = "balanced") -> Callable[[], Iterable[Batch]]:
    import torchslip as ts

    # As for the peers, the list of objects is there before the time begins.
    source = ts.BytesDataset(place.url, **({"store": place.store} if place.is_remote else {})).source

    def batches() -> Iterator[Batch]:
        dataset = ts.BytesDataset(source, batch_size=place.batch_size, profile=profile)
        loader = ts.DataLoader(dataset, num_workers=place.workers) if workers else dataset
        for batch in loader:
            payload, _, _ = batch.to_torch()
            yield batch.sample_ids, len(payload), lambda row, batch=batch: bytes(batch.sample(row))
            del batch

    return batches


def mx8(place: Place, *, packed: bool = False, best: bool = False) -> Callable[[], Iterable[Batch]]:
    import mx8 as peer

    options: dict[str, Any] = {"store": place.store, "batch": place.batch_size}
    if best:
        # The fastest of the few settings that were tried, in both places (2026-11).
        runtime = peer.RuntimeConfig(prefetch_batches=16, max_queue_batches=64)
        options |= {"profile": "throughput", "runtime": runtime}
    url = place.packed if packed else place.url
    if packed:
        digest = peer.resolve_manifest_hash(url, store=place.store)
    else:
        # Without lengths, which its own listing does not write, it refuses to read.
        manifest = Path(place.store) / f"mx8-{'s3' if place.is_remote else 'disk'}.tsv"
        rows = (f"{i}\t{url}/{i:06}.bin\t0\t{place.size}\t\n" for i in range(place.count))
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text("".join(rows))
        digest = peer.resolve_manifest_hash(url, store=place.store, manifest=str(manifest))

    def batches() -> Iterator[Batch]:
        for batch in peer.load(f"{url}@sha256:{digest}", **options):
            payload, offsets = batch.payload, batch.offsets

            def row_of(row: int, payload: bytes = payload, offsets: list[int] = offsets) -> bytes:
                return payload[offsets[row] : offsets[row + 1]]

            yield batch.sample_ids, len(payload), row_of

    return batches


class _Keys:
    """A map-style dataset as one writes it."""

    def __init__(self, keys: list[str], remote: bool) -> None:
        self.keys, self.remote, self._fs = keys, remote, None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[int, bytes]:
        if not self.remote:
            return index, Path(self.keys[index]).read_bytes()
        if self._fs is None:  # in the worker: a client does not survive a fork
            import s3fs

            self._fs = s3fs.S3FileSystem(endpoint_url=os.environ["S3_ENDPOINT_URL"])
        return index, self._fs.cat_file(self.keys[index])


def plain_loop(place: Place) -> Callable[[], Iterable[Batch]]:
    import s3fs  # noqa: F401
    from torch.utils.data import DataLoader

    keys = [f"{place.url}/{number:06}.bin" for number in range(place.count)]
    dataset = _Keys(keys, place.is_remote)

    def batches() -> Iterator[Batch]:
        for batch in DataLoader(dataset, batch_size=place.batch_size, num_workers=place.workers, collate_fn=list):
            yield [i for i, _ in batch], sum(len(data) for _, data in batch), lambda row, batch=batch: batch[row][1]

    return batches


CONTENDERS: dict[str, Callable[[Place], Callable[[], Iterable[Batch]]]] = {
    "torchslip": torchslip,
    "torchslip-throughput": lambda place: torchslip(place, profile="throughput"),
    "torchslip-workers": lambda place: torchslip(place, workers=True),
    "mx8": mx8,
    "mx8-best": lambda place: mx8(place, best=True),
    "mx8-packed": lambda place: mx8(place, packed=True),
    "mx8-packed-best": lambda place: mx8(place, packed=True, best=True),
    "plain": plain_loop,
}


def measure(batches: Callable[[], Iterable[Batch]], place: Place, least: float, most: float) -> dict[str, float]:
    """Epochs, each with a loader made anew, until `least` seconds are over; at `most` one is broken off."""
    before = os.times()
    began = time.perf_counter()
    total = samples = epochs = 0
    while time.perf_counter() - began < least:
        seen = 0
        for ids, size, sample in batches():
            if not samples:
                row = len(ids) // 2
                assert sample(row) == place.expected(ids[row]), f"sample {ids[row]} has other bytes"
            samples += len(ids)
            seen += len(ids)
            total += size
            if time.perf_counter() - began > most:
                break
        else:
            assert seen == place.count, f"{seen} of {place.count} samples came"
        epochs += 1
        if time.perf_counter() - began > most:
            break
    seconds = time.perf_counter() - began
    after = os.times()
    assert total == samples * place.size
    return {
        "seconds": seconds,
        "bytes": total,
        "objects": samples,
        "epochs": epochs,
        "cpu_seconds": sum(after[:4]) - sum(before[:4]),
    }


def main() -> None:
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(event: str, **details: Any) -> None:
        events.write(json.dumps({"event": event, **details}) + "\n")
        events.flush()

    options = json.loads(sys.argv[1])
    place = Place(options)
    try:
        batches = CONTENDERS[options["contender"]](place)
    except ImportError as error:
        send("missing", reason=str(error))
        return
    send("first_batch")  # from here on its memory is watched
    time.sleep(0.3)
    result = measure(batches, place, options["least_seconds"], options["most_seconds"])
    packages = {name: version(name) for name in ("mx8", "s3fs", "torch") if name in sys.modules}
    send("result", versions=packages, **result)
    os._exit(0)  # some have threads that do not end


if __name__ == "__main__":
    main()
