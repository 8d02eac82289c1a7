"""How long a folder of 100,000 pictures takes to open, and what the open folder weighs, against torchvision.

A drawn folder of 100 classes with 1,000 empty files each; the pictures are never read. Reported are

* the seconds to open it when the kernel already knows its directories (warm), the median of the repetitions;
* the bytes per file that Python holds when it is open, and at the peak while it is being opened, by `tracemalloc`,
  in runs of their own, because tracing slows down everything.

The two libraries take turns. torchslip also asks for the size of each file, which its fingerprint covers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision.datasets
from _machine import commit, describe_machine, versions

import torchslip as ts

OPENERS: dict[str, Callable[[Path], Any]] = {
    "torchslip": ts.ImageFolder,
    "torchvision": torchvision.datasets.ImageFolder,
}


def draw_folder(root: Path, files: int, classes: int) -> None:
    for number in range(classes):
        folder = root / f"n{number:08}"
        folder.mkdir()
        for index in range(number, files, classes):
            (folder / f"n{number:08}_{index:08}.jpg").touch()


def measure_seconds(opener: Callable[[Path], Any], root: Path) -> float:
    gc.collect()
    start = time.perf_counter()
    opened = opener(root)
    seconds = time.perf_counter() - start
    del opened
    return seconds


def measure_bytes(opener: Callable[[Path], Any], root: Path) -> tuple[int, int]:
    """Bytes that the open folder holds, and the peak while it was being opened."""
    gc.collect()
    tracemalloc.start()
    opened = opener(root)
    gc.collect()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del opened
    return held, peak


def measure(root: Path, files: int, repetitions: int) -> dict[str, Any]:
    for opener in OPENERS.values():
        opener(root)  # warm
    seconds: dict[str, list[float]] = {name: [] for name in OPENERS}
    for _ in range(repetitions):
        for name, opener in OPENERS.items():
            seconds[name].append(measure_seconds(opener, root))
    results = {}
    for name, opener in OPENERS.items():
        held, peak = measure_bytes(opener, root)
        results[name] = {
            "median_seconds": statistics.median(seconds[name]),
            "seconds": seconds[name],
            "held_bytes_per_file": held / files,
            "peak_bytes_per_file": peak / files,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torchslip-open-") as root:
        draw_folder(Path(root), options.files, options.classes)
        results = measure(Path(root), options.files, options.repetitions)
    for name, result in results.items():
        print(
            f"{name:12} {result['median_seconds']:7.3f} s   {result['held_bytes_per_file']:7.1f} bytes per file held, "
            f"{result['peak_bytes_per_file']:7.1f} at the peak"
        )
    if options.out:
        report = {
            "benchmark": "open_folder",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "torchvision"),
            "options": {"files": options.files, "classes": options.classes, "repetitions": options.repetitions},
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
