"""Random records from MDS shards, and opening 100,000 of them, against mosaicml-streaming and LitData, in one run.

Fetching
--------
10,000 records of 43 kB on average (8 to 120 kB; ``image`` of random bytes, ``label`` an integer) in shards of 64 MiB,
uncompressed, in the page cache. All of them once per pass, in an order that is shuffled anew for each pass and the
same for everyone:

* ``torchslip``: ``MDS(root).fetch(ids)`` for 64 ids at a time, as a worker's share of a batch; whole records.
* ``torchslip-image``: the same with ``columns=["image"]``.
* ``mosaicml-streaming``: ``LocalDataset(root)[id]``, which it offers for one record at a time; whole records.
* ``litdata``: ``StreamingDataset(root)[id]``, one record at a time as well, from chunks of 64 MiB of its own format
  that hold the same records; gives views of the mapped chunk instead of bytes.
* ``mmap-loop``: a bare loop that copies each sample out of memory-mapped shards, 64 in a list at a time; what the
  machine allows in Python, without looking into the samples.

A trial is one of them in a fresh process, pinned to one core, that passes four times; the best of the last three
passes counts, since the first maps the pages. What was read is dropped at once; after the timed passes, the records are
compared with what was written.

Opening
-------
An index of 100,000 shards with a ``sha1`` each (36 MB), no shards. Seconds from the path to a dataset that knows its
length, and by how much the resident set grew since the imports, at its peak and then (Linux):

* ``torchslip``: ``MDS(root)``; ``mosaicml-streaming``: ``LocalDataset(root)``. Its `StreamingDataset` does the same
  and more.

Trials of all contenders are interleaved, in an order that is shuffled (seeded) in each repetition. Ratios are taken
within a repetition; the table has the median, the smallest and the largest. **Only ratios of one run mean anything**
on a shared machine. The peers live in an environment of their own: ``--mosaic-python``, see docs/development.md;
without it, they are left out.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _machine import commit, describe_machine, usable_cores, versions

RECORDS, MEAN_BYTES, BATCH, PASSES = 10_000, 43_000, 64, 4
SHARDS = 100_000
FETCHERS = ("torchslip", "torchslip-image", "mosaicml-streaming", "litdata", "mmap-loop")
OPENERS = ("torchslip", "mosaicml-streaming")
PEERS = ("mosaicml-streaming", "litdata")


def rows() -> Iterator[dict[str, Any]]:
    rng = random.Random(0)
    noise = rng.randbytes(200_000)
    for index in range(RECORDS):
        size = int(min(max(rng.gauss(MEAN_BYTES, 12_000), 8_000), 120_000))
        begin = rng.randrange(200_000 - size)
        yield {"image": struct.pack("<I", index) + noise[begin : begin + size - 4], "label": index % 1000}


def write_records(root: Path) -> None:
    from torchslip.pack import MDSWriter

    with MDSWriter(columns={"image": "bytes", "label": "int"}, out=root) as writer:
        for row in rows():
            writer.write(row)


def write_chunks(root: Path) -> None:
    """The same records as LitData has them; runs where it is installed."""
    from litdata.streaming.cache import Cache

    root.mkdir()
    cache = Cache(str(root), chunk_bytes=64 << 20)
    for index, row in enumerate(rows()):
        cache[index] = row
    cache.done()
    cache.merge()


def write_index(root: Path, count: int) -> None:
    """Of shards that are not there."""
    root.mkdir()
    form = {"column_encodings": ["jpeg", "int"], "column_names": ["image", "label"], "column_sizes": [None, 8]}
    form |= {"compression": None, "format": "mds", "hashes": ["sha1"], "size_limit": 1 << 26, "version": 2}
    rng = random.Random(0)
    shards = []
    for number in range(count):
        hashes = {"sha1": f"{rng.getrandbits(160):040x}"}
        file = {"basename": f"shard.{number:05}.mds", "bytes": (1 << 26) - number, "hashes": hashes}
        shards.append(form | {"raw_data": file, "samples": 600 + number % 7, "zip_data": None})
    (root / "index.json").write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))


def open_dataset(name: str, root: Path) -> Any:
    if name == "mosaicml-streaming":
        from streaming import LocalDataset

        return LocalDataset(str(root))
    if name == "litdata":
        from litdata import StreamingDataset

        return StreamingDataset(str(root.parent / "chunks"))
    from torchslip.sources import MDS

    return MDS(root, columns=["image"] if name == "torchslip-image" else None)


def fetcher(name: str, root: Path) -> Callable[[list[int]], Any]:
    """Reads the records of a list of ids."""
    if name == "mmap-loop":
        return mmap_loop(root)
    dataset = open_dataset(name, root)
    return dataset.fetch if name.startswith("torchslip") else lambda ids: [dataset[index] for index in ids]


def mmap_loop(root: Path) -> Callable[[list[int]], list[bytes]]:
    places = []
    for shard in json.loads((root / "index.json").read_text())["shards"]:
        with (root / shard["raw_data"]["basename"]).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        offsets = memoryview(data)[4 : 8 + 4 * shard["samples"]].cast("I")
        places += [(data, offsets, row) for row in range(shard["samples"])]
    # glibc then keeps freed memory; torchslip does the same.
    bytes(31 << 20)

    def read(ids: list[int]) -> list[bytes]:
        found = []
        for index in ids:
            data, offsets, row = places[index]
            found.append(data[offsets[row] : offsets[row + 1]])
        return found

    return read


def time_fetch(name: str, root: Path) -> dict[str, Any]:
    read = fetcher(name, root)
    step = 1 if name in PEERS else BATCH
    seconds = []
    for number in range(PASSES):
        ids = list(range(RECORDS))
        random.Random(number).shuffle(ids)
        begin = time.perf_counter()
        for start in range(0, RECORDS, step):
            read(ids[start : start + step])
        seconds.append(time.perf_counter() - begin)
    for index, row in enumerate(rows()):
        (found,) = read([index])
        assert row["image"] in found if name == "mmap-loop" else all(row[key] == found[key] for key in found)
    return {"records_per_second": RECORDS / min(seconds[1:]), "seconds": seconds}


def time_open(name: str, root: Path) -> dict[str, Any]:
    open_small = root.parent / "small"
    open_dataset(name, open_small)  # imports
    # The imports had a peak of their own; Linux forgets it when asked to.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_mib("VmRSS")
    begin = time.perf_counter()
    dataset = open_dataset(name, root)
    samples = len(dataset)
    seconds = time.perf_counter() - begin
    peak, held = memory_mib("VmHWM") - before, memory_mib("VmRSS") - before
    assert samples == sum(600 + number % 7 for number in range(SHARDS))
    return {"seconds": seconds, "peak_mib": peak, "held_mib": held}


def memory_mib(key: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def run_trial(python: str, kind: str, name: str, work: Path) -> dict[str, Any]:
    command = [python, __file__, "--trial", kind, name, "--work", str(work)]
    environment = dict(os.environ)
    if name in PEERS:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    if done.returncode:
        raise RuntimeError(f"{kind} {name} failed:\n{done.stderr}")
    return {"kind": kind, "name": name, **json.loads(done.stdout.splitlines()[-1])}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def summarise(trials: list[dict[str, Any]], kind: str, figure: str, baseline: str) -> dict[str, Any]:
    """Per contender the figure, and its ratio to the baseline's of the same repetition."""
    by_name: dict[str, list[float]] = {}
    for trial in trials:
        if trial["kind"] == kind:
            by_name.setdefault(trial["name"], []).append(trial[figure])
    base = by_name.get(baseline)
    return {
        name: {
            figure: spread(values),
            "ratio": spread([value / of for value, of in zip(values, base, strict=True)]) if base else None,
        }
        for name, values in by_name.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mosaic-python", help="the python of an environment with mosaicml-streaming")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    parser.add_argument("--trial", nargs=2, metavar=("KIND", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        kind, name = options.trial
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, usable_cores()[-1:])
        if kind == "write":
            write_chunks(options.work / "chunks")
            print("{}")
        elif kind == "fetch":
            print(json.dumps(time_fetch(name, options.work / "records")))
        else:
            print(json.dumps(time_open(name, options.work / "index")))
        return
    with tempfile.TemporaryDirectory(prefix="torchslip-mds-") as folder:
        trials = measure(Path(folder), options.mosaic_python, options.repetitions)
    results = {
        "fetch": summarise(trials, "fetch", "records_per_second", "mosaicml-streaming"),
        "open_seconds": summarise(trials, "open", "seconds", "mosaicml-streaming"),
        "open_peak_mib": summarise(trials, "open", "peak_mib", "mosaicml-streaming"),
        "open_held_mib": summarise(trials, "open", "held_mib", "mosaicml-streaming"),
    }
    for part, contenders in results.items():
        for name, found in contenders.items():
            figure = next(iter(found.values()))
            ratio = found["ratio"]
            text = f"{ratio['median']:8.2f} x ({ratio['smallest']:.2f} to {ratio['largest']:.2f})" if ratio else ""
            print(f"{part:15} {name:20} {figure['median']:12.2f} {text}")
    if options.out:
        report = {
            "benchmark": "mds_fetch",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "numpy", "torch") | peer_versions(options.mosaic_python),
            "options": {"repetitions": options.repetitions, "records": RECORDS, "batch": BATCH, "shards": SHARDS},
            "left_out": [] if options.mosaic_python else list(PEERS),
            "results": results,
            "trials": trials,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def measure(work: Path, mosaic_python: str | None, repetitions: int) -> list[dict[str, Any]]:
    write_records(work / "records")
    write_index(work / "index", SHARDS)
    write_index(work / "small", 1)
    contenders = [("fetch", name) for name in FETCHERS] + [("open", name) for name in OPENERS]
    if mosaic_python is None:
        contenders = [(kind, name) for kind, name in contenders if name not in PEERS]
    else:
        run_trial(mosaic_python, "write", "litdata", work)
    rng = random.Random(0)
    trials = []
    for _ in range(repetitions):
        rng.shuffle(contenders)
        for kind, name in contenders:
            python = mosaic_python if name in PEERS and mosaic_python else sys.executable
            trials.append(run_trial(python, kind, name, work))
    return trials


def peer_versions(mosaic_python: str | None) -> dict[str, str]:
    if mosaic_python is None:
        return {}
    code = f"import importlib.metadata as m, json; print(json.dumps({{name: m.version(name) for name in {PEERS}}}))"
    found = subprocess.run([mosaic_python, "-c", code], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(found))


if __name__ == "__main__":
    main()
