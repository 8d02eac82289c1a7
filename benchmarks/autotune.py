"""Does autotune help where objects are far away, and does it hurt where they are near?

Protocol: one process without workers reads objects of 40 kB from a source that waits for a given time for each of them,
one after the other, as a client that asks for one object at a time does. Contenders are the static ``safe`` profile
(what one has without knowing anything), each profile with autotune, and the best static setting within the rails of the
profile. Contenders are interleaved, in an order that is shuffled (seeded) in each repetition; ratios are taken within a
repetition. The first ``--warm-seconds`` are not counted, because a training run is long; the table has the rate with
them too.

    python benchmarks/autotune.py --latency-ms 20
    python benchmarks/autotune.py --latency-ms 0     # nothing to gain: at most 5 % may be lost
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import numpy as np

import torchslip as ts

OBJECT_BYTES = 40_000


class Distant:
    """Objects that each take their time."""

    schema = {"data": "bytes"}  # noqa: RUF012
    fingerprint = "distant"

    def __init__(self, count: int, seconds: float) -> None:
        self.sizes = np.full(count, OBJECT_BYTES, np.int64)
        self._seconds = seconds
        self._content = bytes(OBJECT_BYTES)

    def __len__(self) -> int:
        return len(self.sizes)

    def fetch(self, indices):  # noqa: D102
        records = []
        for _ in indices:
            if self._seconds:
                time.sleep(self._seconds)
            records.append({"data": bytearray(self._content)})
        return records


def contenders():
    """Name to the options of `BytesDataset`."""
    best = {"prefetch_batches": 8, "want": 4}
    return {
        "safe, static": {"profile": "safe", "autotune": False},
        "safe": {"profile": "safe"},
        "balanced, static": {"profile": "balanced", "autotune": False},
        "balanced": {"profile": "balanced"},
        "throughput": {"profile": "throughput"},
        "balanced, best static": {"profile": "balanced", "autotune": False, "runtime": ts.RuntimeConfig(**best)},
    }


def measure(options, *, latency_ms: float, batch_size: int, warm_seconds: float, seconds: float):
    dataset = ts.BytesDataset(Distant(10_000_000, latency_ms / 1000), batch_size=batch_size, **options)
    began = time.perf_counter()
    total = warm_bytes = 0
    warm_end = None
    for batch in dataset:
        total += batch.payload_bytes
        now = time.perf_counter()
        if warm_end is None and now - began >= warm_seconds:
            warm_end, warm_bytes = now, total
        if warm_end is not None and now - warm_end >= seconds:
            break
    stats = dataset.stats()
    return {
        "bytes_per_second": (total - warm_bytes) / (now - warm_end),
        "bytes_per_second_from_start": total / (now - began),
        "prefetch_batches": stats["effective_prefetch_batches"],
        "want": stats["effective_want"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--warm-seconds", type=float, default=15)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders()}
    shuffle = random.Random(0)
    for _ in range(given.repetitions):
        names = list(results)
        shuffle.shuffle(names)
        for name in names:
            settings = {key: getattr(given, key) for key in ("latency_ms", "batch_size", "warm_seconds", "seconds")}
            results[name].append(measure(contenders()[name], **settings))
    base = [each["bytes_per_second"] for each in results["safe, static"]]
    print(f"{'':24}{'MB/s':>8}{'from start':>12}{'x safe':>8}{'prefetch':>10}{'want':>6}")
    for name, trials in results.items():
        rate, started = (
            statistics.median(each[key] for each in trials)
            for key in ("bytes_per_second", "bytes_per_second_from_start")
        )
        ratio = statistics.median(each["bytes_per_second"] / b for each, b in zip(trials, base, strict=True))
        last = trials[-1]
        print(f"{name:24}{rate / 1e6:8.2f}{started / 1e6:12.2f}{ratio:8.2f}", end="")
        print(f"{last['prefetch_batches']:10}{last['want']:6}")
    if given.out:
        given.out.write_text(
            json.dumps({"settings": {**vars(given), "out": None}, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
