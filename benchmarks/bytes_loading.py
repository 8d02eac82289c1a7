"""How fast stored bytes come out of S3 and from a disk: torchslip, mx8 and a plain loop, in one run.

What is measured
----------------
Reading every byte of 20,000 objects of 40 kB (``--objects``, ``--size``; random bytes), in batches of 64 and in the
order of their keys, into the memory of the training process:

* ``s3``: from a server on loopback that begins each answer 10 ms (``--latency-ms``) after the request. The server is
  ``_bytes_loading/s3_server.c``: one thread, objects in memory. What it can do is measured in each run by a client in C
  that keeps 64 connections busy and throws everything away, with the latency and without (``ceiling``).
* ``disk``: from as many files in one folder; they lie in the page cache.

Contenders
----------
* ``torchslip``: `ts.BytesDataset`, which reads in threads, with default arguments; ``-throughput`` with that profile;
  ``-workers`` in `ts.DataLoader` with ``--workers`` worker processes.
* ``mx8``: ``mx8.load`` with default arguments; ``-best`` with ``profile="throughput"`` and 16 ``prefetch_batches``, the
  best of what was tried. It refuses objects whose lengths are not in its manifest, and its own listing does not write
  them: so it gets a manifest with lengths, which no user would have. ``-packed`` reads, on the disk only, what its
  ``pack_dir`` has made of the folder: two tar files; its own way, and less work than 20,000 files.
* ``plain``: a map-style dataset of ``s3fs.cat_file(key)``, or of ``read_bytes`` on a disk, in a `DataLoader` with
  ``--workers`` worker processes.

How
---
One trial is one contender at one place in a fresh process. Imports and the listing of objects are not timed; making
the loader is, with the start of its workers and connections, for each epoch anew. Epochs follow each other until
``--least-seconds`` are over; what is slower than ``--most-seconds`` for an epoch is broken off there. A sample of each
trial is compared with the file, and lengths and numbers of samples always. Every contender is measured in every
repetition, in an order that is shuffled anew (seeded); ratios are taken within a repetition. No trial outlives
``--deadline``.

Figures are medians over repetitions. CPU seconds are those of the contender's processes, user and system, without the
server, which runs on the same cores. Memory is the largest sum over the process tree of private pages
(``Private_Dirty`` of ``smaps_rollup``, ten times a second: clean ones are those of libraries), less what it was before
the first loader was made; beside it the same of proportional set sizes, which count what workers share with the main
process too.

    python benchmarks/bytes_loading.py --mx8-python MX8/bin/python --out benchmarks/results/bytes_loading.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _bytes_loading.world import BUCKET_URL, Objects, measure_ceiling, prepare, serve
from _image_loading.supervisor import run_module
from _machine import commit, describe_machine

PLACES = {
    "s3": ("torchslip", "torchslip-throughput", "torchslip-workers", "mx8", "mx8-best", "plain"),
    "disk": (
        *("torchslip", "torchslip-throughput", "torchslip-workers"),
        *("mx8", "mx8-best", "mx8-packed", "mx8-packed-best", "plain"),
    ),
}


class Run:
    """All trials of one call."""

    def __init__(self, options: argparse.Namespace, objects: Objects) -> None:
        self.options, self.objects = options, objects
        self.work: Path = options.work
        self.packed = objects.whole.parent / "mx8-packed"
        self.left_out: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.trials: list[dict[str, Any]] = []
        self.ceilings: dict[str, float] = {}

    def run(self) -> None:
        """Measure everything."""
        self._pack()
        with serve(self.objects, self.work, 0) as (_, port):
            self.ceilings["without latency"] = measure_ceiling(self.objects, self.work, port, 64)
        with serve(self.objects, self.work, self.options.latency_ms) as (_, port):
            self.ceilings["with latency"] = measure_ceiling(self.objects, self.work, port, 64)
            for repetition in range(self.options.repetitions):
                shuffled = random.Random(f"17 {repetition}")
                for place in shuffled.sample(self.options.places, len(self.options.places)):
                    for contender in shuffled.sample(PLACES[place], len(PLACES[place])):
                        if contender.partition("-")[0] in ("torchslip", *self.options.peers):
                            self._try(place, contender, repetition)

    def _pack(self) -> None:
        if "mx8" in self.options.peers and "disk" in self.options.places and not self.packed.exists():
            code = "import mx8, sys; mx8.pack_dir(sys.argv[1], out=sys.argv[2])"
            command = [self.options.mx8_python, "-c", code, str(self.objects.folder), str(self.packed)]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False, timeout=300).returncode:
                self.left_out["mx8-packed"] = "it could not pack"

    def _try(self, place: str, contender: str, repetition: int) -> None:
        if contender in self.left_out or (place, contender) in self.left_out:
            return
        options, objects = self.options, self.objects
        settings = {
            "contender": contender,
            "url": BUCKET_URL if place == "s3" else str(objects.folder),
            "folder": str(objects.folder),
            "packed": str(self.packed),
            "store": str(self.work / f"store-{contender.partition('-')[0]}-{objects.count}x{objects.size}"),
            "count": objects.count,
            "size": objects.size,
            "workers": options.workers,
            "batch_size": 64,
            "least_seconds": options.least_seconds,
            "most_seconds": options.most_seconds,
        }
        python = options.mx8_python if contender.startswith("mx8") else sys.executable
        arguments = [json.dumps(settings)]
        outcome = run_module(python, "_bytes_loading.trial", arguments, deadline_seconds=options.deadline)
        if outcome.status != "ok":
            self.left_out[contender] = f"{outcome.status} ({place}): {outcome.reason}"
            _say(f"{contender} is left out: {self.left_out[contender]}")
            return
        result = outcome.result
        self.versions |= result.pop("versions")
        assert outcome.peak_private_mib is not None
        assert outcome.first_private_mib is not None
        assert outcome.peak_pss_mib is not None
        assert outcome.first_pss_mib is not None
        trial = {
            "place": place,
            "contender": contender,
            "repetition": repetition,
            **result,
            "bytes_per_second": result["bytes"] / result["seconds"],
            "cpu_seconds_per_gb": result["cpu_seconds"] / result["bytes"] * 1e9,
            "grown_private_mib": outcome.peak_private_mib - outcome.first_private_mib,
            "grown_pss_mib": outcome.peak_pss_mib - outcome.first_pss_mib,
            "peak_private_mib": outcome.peak_private_mib,
        }
        self.trials.append(trial)
        _say(f"{repetition + 1}  {place:5} {contender:22} {trial['bytes_per_second'] / 1e6:8,.1f} MB/s")

    def summary(self) -> list[dict[str, Any]]:
        """A row for each place and contender; ratios to each peer's fastest row of the same repetition."""
        rows = []
        for place in self.options.places:
            for contender in PLACES[place]:
                mine = self._of(place, contender)
                if not mine:
                    continue
                row: dict[str, Any] = {"place": place, "contender": contender, "trials": len(mine)}
                for name in (
                    "bytes_per_second",
                    "cpu_seconds_per_gb",
                    "grown_private_mib",
                    "grown_pss_mib",
                    "peak_private_mib",
                ):
                    row[name] = statistics.median(trial[name] for trial in mine.values())
                for peer in ("mx8", "mx8-best", "plain"):
                    theirs = self._of(place, peer)
                    ratios = [
                        mine[each]["bytes_per_second"] / theirs[each]["bytes_per_second"]
                        for each in mine
                        if each in theirs
                    ]
                    if ratios:
                        row[f"times_{peer}"] = statistics.median(ratios)
                        row[f"times_{peer}_range"] = [min(ratios), max(ratios)]
                rows.append(row)
        return rows

    def _of(self, place: str, contender: str) -> dict[int, dict[str, Any]]:
        return {
            trial["repetition"]: trial
            for trial in self.trials
            if (trial["place"], trial["contender"]) == (place, contender)
        }

    def table(self) -> str:
        """The summary as in ``docs/performance.md``."""
        lines = [
            "| place | | MB/s | objects/s | CPU s/GB | private / PSS, MiB | x mx8 | x mx8-best | x plain |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.summary():
            cells = [
                row["place"],
                row["contender"],
                f"{row['bytes_per_second'] / 1e6:,.0f}",
                f"{row['bytes_per_second'] / self.objects.size:,.0f}",
                f"{row['cpu_seconds_per_gb']:.2f}",
                f"{row['grown_private_mib']:,.0f} / {row['grown_pss_mib']:,.0f}",
                *(_times(row, peer) for peer in ("mx8", "mx8-best", "plain")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        ceilings = ", ".join(f"{name} {rate:,.0f} objects/s" for name, rate in self.ceilings.items())
        return "\n".join([*lines, "", f"The server, with a client in C and 64 connections: {ceilings}."])

    def result(self) -> dict[str, Any]:
        """All that is written to ``--out``."""
        options = {name: value for name, value in vars(self.options).items() if name not in _LOCAL_OPTIONS}
        return {
            "benchmark": "bytes_loading",
            "machine": describe_machine(),
            "commit": commit(),
            "options": options,
            "versions": self.versions,
            "left_out": self.left_out,
            "ceilings_objects_per_second": self.ceilings,
            "summary": self.summary(),
            "trials": self.trials,
        }


_LOCAL_OPTIONS = ("work", "out", "mx8_python")


def _times(row: dict[str, Any], peer: str) -> str:
    if f"times_{peer}" not in row or row["contender"] == peer:
        return ""
    low, high = row[f"times_{peer}_range"]
    return f"{row[f'times_{peer}']:.1f} ({low:.1f}-{high:.1f})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name and name != "none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=40_000, help="bytes of an object")
    parser.add_argument("--latency-ms", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--least-seconds", type=float, default=5)
    parser.add_argument("--most-seconds", type=float, default=20)
    parser.add_argument("--deadline", type=float, default=120, help="seconds that a trial may take")
    parser.add_argument("--places", type=_names, default=list(PLACES), help="some of s3,disk")
    parser.add_argument("--peers", type=_names, default=["mx8", "plain"], help="some of mx8,plain; or none")
    parser.add_argument("--mx8-python", default=sys.executable, help="the Python that has mx8==1.0.7")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "torchslip-bytes")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args()
    for name in options.places:
        if name not in PLACES:
            parser.error(f"--places must be among {', '.join(PLACES)}; got {name}")
    start = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["NO_PROXY"] = "127.0.0.1"
    run = Run(options, prepare(options.work, options.objects, options.size))
    run.run()
    print(run.table())
    for name, reason in run.left_out.items():
        print(f"Left out: {name}: {reason}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(run.result(), indent=1) + "\n")
    _say(f"\n{time.monotonic() - start:.0f} s in all")
    if "torchslip" in run.left_out:
        raise SystemExit("torchslip itself failed, see above.")


if __name__ == "__main__":
    main()
