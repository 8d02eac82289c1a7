"""What a mixture costs: microseconds per sample to compute its order, against shuffling one source.

The positions of an epoch are asked for a batch of 256 at a time, which is how a loader asks. Sources have a million
samples each, with weights 1, 2, 3, ...; the epoch has a billion positions, of which a million are made. Cases:

* ``one source``: `Shuffled`, with as many samples as the mixture;
* ``n sources``: `MixedOrder` over n shuffled sources that are repeated;
* ``..., window``: shuffled within 64 blocks of 1,024 samples at a time;
* ``100 sources, stratified`` and ``per source``: by global batches of 256;
* ``100 sources of 100``: each is passed over many times, so that nearly every sample has a permutation of its own.

Every case runs in a fresh process, once to warm up and once measured, by its processor time, which other work on the
machine disturbs least. `over_one_us` is the difference to ``one
source`` in microseconds per sample: the requirement is less than 2 for 100 sources.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _machine import commit, describe_machine, versions

import torchslip as ts

MILLION, BILLION = 10**6, 10**9
BATCH = 256


def mixed(sources: int, length: int = MILLION, **options: Any) -> ts.Order:
    return ts.MixedOrder(
        [length] * sources,
        weights=range(1, sources + 1),
        source_exhausted="repeat",
        epoch_size=BILLION,
        seed=1,
        **options,
    )


CASES: dict[str, Callable[[], ts.Order]] = {
    "one source": lambda: ts.Shuffled(BILLION, seed=1),
    "2 sources": lambda: mixed(2),
    "10 sources": lambda: mixed(10),
    "100 sources": lambda: mixed(100),
    "1000 sources": lambda: mixed(1000),
    "one source, window": lambda: ts.Shuffled(BILLION, seed=1, window=64),
    "100 sources, window": lambda: mixed(100, window=64),
    "100 sources, stratified": lambda: mixed(100, batching="stratified", batch_size=32 * BATCH),
    "100 sources, per source": lambda: mixed(100, batching="per_source", batch_size=BATCH),
    "100 sources of 100": lambda: mixed(100, 100),
}


def measure(make: Callable[[], ts.Order], samples: int) -> float:
    """In this process: microseconds of processor time per sample."""
    order = make()
    for start in range(0, 20 * BATCH, BATCH):
        order.at(np.arange(start, start + BATCH), epoch=1)
    begin = time.process_time()
    for start in range(0, samples, BATCH):
        order.at(np.arange(start, start + BATCH), epoch=1)
    return (time.process_time() - begin) / samples * 1e6


def measure_in_fresh_process(name: str, samples: int) -> float:
    command = [sys.executable, __file__, "--case", name, "--samples", str(samples)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=600).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--samples", type=int, default=MILLION, help="positions of the epoch that are made")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    parser.add_argument("--case", choices=CASES, help="measure one case in this process")
    options = parser.parse_args()
    if options.case:
        print(measure(CASES[options.case], options.samples))
        return
    trials: dict[str, list[float]] = {name: [] for name in CASES}
    for repetition in range(options.repetitions):
        for name in random.Random(repetition).sample(list(CASES), len(CASES)):
            trials[name].append(measure_in_fresh_process(name, options.samples))
    one = statistics.median(trials["one source"])
    results = {}
    for name, of_case in trials.items():
        median = statistics.median(of_case)
        results[name] = {"us_per_sample": median, "over_one_us": median - one, "trials": of_case}
        print(f"{name:26} {median:8.3f} us a sample {median - one:+8.3f} over one source")
    if options.out:
        report = {
            "benchmark": "mixing",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "numpy", "torch"),
            "options": {"repetitions": options.repetitions, "samples": options.samples, "batch": BATCH},
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
