"""What a shuffled order costs: samples per second and memory, against whole permutations in memory.

torchslip computes the sample at any position alone, so an epoch's order is never held. Cases:

* ``whole``: all positions of an epoch in one call, which is how numpy and torch make a permutation;
* ``batches``: the positions of the epoch a batch of 256 at a time, which is how a loader asks; for a million
  positions of it where the epoch is longer;
* ``windowed``: the two-level order that keeps 64 blocks of 1,024 samples together, in batches as before.

An epoch has a million samples, or a billion that exist nowhere: there, numpy and torch would have to make 8 GB
first, which is measured only with ``--huge``.

Every case runs in a fresh process, once to warm up on a small order and once measured. Memory is the growth of the
process's largest resident set (Linux) from before the call to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import commit, describe_machine, versions

import torchslip as ts

MILLION, BILLION = 10**6, 10**9
BATCH = 256


@dataclass(frozen=True, slots=True)
class Case:
    """A way to make the order of an epoch of `length` samples.

    Attributes:
        generate: Makes `samples` positions of it.
        length: Samples of the epoch.
        samples: How many of them are made.
        huge: Needs 8 GB or more.
    """

    generate: Callable[[int, int], None]
    length: int
    samples: int
    huge: bool = False


def torchslip_whole(length: int, samples: int) -> None:
    ts.Shuffled(length, seed=1).at(np.arange(samples), epoch=0)


def torchslip_batches(length: int, samples: int, **options: Any) -> None:
    order = ts.Shuffled(length, seed=1, **options)
    for start in range(0, samples, BATCH):
        order.at(np.arange(start, min(start + BATCH, samples)), epoch=0)


def torchslip_windowed(length: int, samples: int) -> None:
    torchslip_batches(length, samples, window=64)


def numpy_whole(length: int, samples: int) -> None:
    np.random.default_rng(1).permutation(length)


def torch_whole(length: int, samples: int) -> None:
    torch.randperm(length, generator=torch.Generator().manual_seed(1))


CASES = {
    "torchslip whole, 1e6": Case(torchslip_whole, MILLION, MILLION),
    "torchslip batches, 1e6": Case(torchslip_batches, MILLION, MILLION),
    "torchslip windowed, 1e6": Case(torchslip_windowed, MILLION, MILLION),
    "numpy permutation, 1e6": Case(numpy_whole, MILLION, MILLION),
    "torch.randperm, 1e6": Case(torch_whole, MILLION, MILLION),
    "torchslip batches, 1e9": Case(torchslip_batches, BILLION, MILLION),
    "torchslip windowed, 1e9": Case(torchslip_windowed, BILLION, MILLION),
    "numpy permutation, 1e9": Case(numpy_whole, BILLION, BILLION, huge=True),
    "torch.randperm, 1e9": Case(torch_whole, BILLION, BILLION, huge=True),
}


def peak_bytes() -> int:
    """The largest resident set of this process so far; 0 where there is no /proc."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    except OSError:
        return 0
    return int(fields["VmHWM"].split()[0]) * 1024


def measure(case: Case) -> dict[str, float]:
    """In this process: seconds and bytes of one case."""
    case.generate(1000, 1000)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the largest becomes the present resident set
    before, start = peak_bytes(), time.perf_counter()
    case.generate(case.length, case.samples)
    seconds = time.perf_counter() - start
    return {"samples_per_second": case.samples / seconds, "peak_mib": (peak_bytes() - before) / 2**20}


def measure_in_fresh_process(name: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", name]
    measured: dict[str, float] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout
    )
    return measured


def measure_all(names: list[str], repetitions: int) -> dict[str, list[dict[str, float]]]:
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for repetition in range(repetitions):
        for name in random.Random(repetition).sample(names, len(names)):
            trials[name].append(measure_in_fresh_process(name))
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--huge", action="store_true", help="numpy and torch at 1e9 too: 8 GB and a minute each")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    parser.add_argument("--case", choices=CASES, help="measure one case in this process")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(CASES[options.case])))
        return
    trials = measure_all([name for name in CASES if options.huge or not CASES[name].huge], options.repetitions)
    results = {}
    for name, of_case in trials.items():
        medians = {key: statistics.median(trial[key] for trial in of_case) for key in of_case[0]}
        results[name] = {**medians, "trials": of_case}
        print(f"{name:26} {medians['samples_per_second']:14,.0f} samples/s {medians['peak_mib']:10,.1f} MiB")
    if options.out:
        report = {
            "benchmark": "order_generation",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "numpy", "torch"),
            "options": {"repetitions": options.repetitions, "batch": BATCH},
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
