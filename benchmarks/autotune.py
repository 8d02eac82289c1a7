"""Does autotune help where objects are far away, and does it hurt anywhere?

Protocol: one process without workers reads a source that waits for a given time for each object, one after the other,
as a client that asks for one object at a time does (``LATENCY ms, SIZE``), or files from the page cache (``disk``), in
batches of at most 16. In each case every profile is read twice, with its knobs as they are and with autotune, one
directly after the other, in an order that is drawn (seeded) for each repetition; ratios are taken within a repetition,
and their median. The first seconds of a trial are not counted, because a training run is long: with autotune
``--warm-seconds`` where an object takes its time, a quarter of that elsewhere; without autotune one. Where an object
takes its time rates are steady, and there is one repetition; elsewhere ``--repetitions``.

Two questions are answered: how many times as fast as the static ``safe`` profile is each of the others (``x safe``;
wanted: 3 at 20 ms), and how fast is each profile with autotune, as a part of what it is without (``x static``; wanted:
0.95 or more everywhere).

    python benchmarks/autotune.py --out benchmarks/results/autotune.json
    python benchmarks/autotune.py --cases "20 ms, 40 kB"
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _machine import commit, describe_machine

import torchslip as ts

PROFILES = ("safe", "balanced", "throughput")
DISK_FILES = 2000
BATCH_SIZE = 16


@dataclass(frozen=True, slots=True)
class Case:
    """What is read.

    Attributes:
        latency_ms: For each object; None for files.
        size: Bytes of each.
    """

    latency_ms: float | None
    size: int

    @property
    def name(self) -> str:
        """As in the table."""
        size = f"{self.size // 1000} kB" if self.size < 1_000_000 else f"{self.size // 1_000_000} MB"
        return f"disk, {size}" if self.latency_ms is None else f"{self.latency_ms:g} ms, {size}"


CASES = (
    *(Case(20, size) for size in (4_000, 40_000, 1_000_000)),
    Case(2, 40_000),
    *(Case(0, size) for size in (4_000, 40_000, 1_000_000)),
    Case(None, 40_000),
)


class Distant:
    """Objects that each take their time."""

    schema = {"data": "bytes"}  # noqa: RUF012
    fingerprint = "distant"

    def __init__(self, case: Case) -> None:
        self.sizes = np.full(200_000 if case.size < 1_000_000 else 10_000, case.size, np.int64)
        self._seconds = (case.latency_ms or 0) / 1000
        self._content = bytes(case.size)

    def __len__(self) -> int:
        return len(self.sizes)

    def fetch(self, indices):  # noqa: D102
        records = []
        for _ in indices:
            if self._seconds:
                time.sleep(self._seconds)
            records.append({"data": bytearray(self._content)})
        return records


def measure(case: Case, folder: Path, profile: str, *, tuned: bool, warm_seconds: float, seconds: float):
    """Bytes per second of one contender."""
    source = str(folder) if case.latency_ms is None else Distant(case)
    dataset = ts.BytesDataset(source, batch_size=BATCH_SIZE, profile=profile, autotune=tuned)
    len(dataset)  # plans the epoch
    total, began = 0, time.perf_counter()
    warm: tuple[float, int] | None = None
    while True:
        for batch in dataset:
            total += batch.payload_bytes
            now = time.perf_counter()
            if warm is None and now - began >= warm_seconds:
                warm = now, total
            if warm is not None and now - warm[0] >= seconds:
                stats = dataset.stats()
                return {
                    "case": case.name,
                    "profile": profile,
                    "tuned": tuned,
                    "bytes_per_second": (total - warm[1]) / (now - warm[0]),
                    "bytes_per_second_from_start": total / (now - began),
                    "prefetch_batches": stats["effective_prefetch_batches"],
                    "want": stats["effective_want"],
                }


def run(given: argparse.Namespace, cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """All trials."""
    trials = []
    shuffle = random.Random(0)
    for case in cases:
        for repetition in range(1 if case.latency_ms else given.repetitions):
            # The two of a ratio one after the other: little changes on the machine between them.
            pairs = [(profile, shuffle.random() < 0.5) for profile in shuffle.sample(PROFILES, len(PROFILES))]
            for profile, tuned in ((profile, first != second) for profile, first in pairs for second in (False, True)):
                warm = 1.0 if not tuned else given.warm_seconds if case.latency_ms else given.warm_seconds / 4
                trial = measure(case, folder, profile, tuned=tuned, warm_seconds=warm, seconds=given.seconds)
                trials.append({"repetition": repetition, **trial})
        print(case.name, file=sys.stderr, flush=True)
    return trials


def summarise(trials: list[dict[str, Any]], cases: list[Case]) -> list[dict[str, Any]]:
    """A row for each case, profile and setting."""
    rates = {
        (each["case"], each["profile"], each["tuned"], each["repetition"]): each["bytes_per_second"] for each in trials
    }
    rows = []
    for case in cases:
        for profile in PROFILES:
            for tuned in (False, True):
                mine = [
                    each
                    for each in trials
                    if (each["case"], each["profile"], each["tuned"])
                    == (
                        case.name,
                        profile,
                        tuned,
                    )
                ]
                row = {name: mine[-1][name] for name in ("case", "profile", "tuned", "prefetch_batches", "want")}
                row["bytes_per_second"] = statistics.median(each["bytes_per_second"] for each in mine)
                for name, base in (("times_safe", "safe"), ("times_static", profile)):
                    row[name] = statistics.median(
                        each["bytes_per_second"] / rates[case.name, base, False, each["repetition"]] for each in mine
                    )
                rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as in ``docs/bytes.md``."""
    lines = ["| case | profile | static, MB/s | autotune, MB/s | x static | x safe, static | knobs |", "|" + "---|" * 7]
    for static, tuned in zip(rows[::2], rows[1::2], strict=True):
        cells = (
            static["case"],
            static["profile"],
            f"{static['bytes_per_second'] / 1e6:,.1f}",
            f"{tuned['bytes_per_second'] / 1e6:,.1f}",
            f"{tuned['times_static']:.2f}",
            f"{tuned['times_safe']:.2f}",
            f"{tuned['prefetch_batches']} x {tuned['want']}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    worst = min((row for row in rows if row["tuned"]), key=lambda row: row["times_static"])
    text = f"At worst x {worst['times_static']:.2f} of the static profile: {worst['case']}, {worst['profile']}."
    return "\n".join([*lines, "", text])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--warm-seconds", type=float, default=8, help="with autotune; a quarter where nothing waits")
    parser.add_argument("--seconds", type=float, default=2.5)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = [case for case in CASES if given.cases is None or case.name in given.cases]
    with tempfile.TemporaryDirectory() as name:
        for number in range(DISK_FILES):
            (Path(name) / f"{number:06}.bin").write_bytes(random.Random(number).randbytes(40_000))
        trials = run(given, cases, Path(name))
    rows = summarise(trials, cases)
    print(table(rows))
    if given.out:
        settings = {key: value for key, value in vars(given).items() if key != "out"}
        result = {
            "benchmark": "autotune",
            "machine": describe_machine(),
            "commit": commit(),
            "options": settings,
            "summary": rows,
            "trials": trials,
        }
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
