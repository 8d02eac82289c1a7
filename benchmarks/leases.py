"""What leases cost: milliseconds per batch to hand it out and acknowledge it, against the time to load it.

A process hosts a `TCPStore` on loopback. Eight others share the batches of one epoch through it. Cases:

* ``saturated``: all of them draw and acknowledge as fast as they can, which no loader does; on a machine with fewer
  cores than processes this is mostly waiting for a core;
* ``paced``: each sleeps between batches, so that all together ask for 100 batches per second: 25,600 pictures;
* ``file``: paced, with a file as the store;
* ``load``: one process alone loads batches of 256 pictures, which is what the others are compared with.

The cost of a batch is the time from asking for it to having it, plus the time of `ack`, as the training loop feels it;
grants of leases, looks for dead ranks and heartbeats are in it. The ratio is that of the means, in one run. Cases
follow each other; each process measures its own batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from _image_loading.pictures import default_source
from _machine import commit, describe_machine, versions

import torchslip as ts

PROCESSES = 8
BATCH = 256
BATCHES_PER_SECOND = 100


def share(address: int | str, batches: int, pause_seconds: float, begin: Any, costs: Any) -> None:
    """Take part in the epoch; sends the seconds of each batch."""
    store: Any = address
    if isinstance(address, int):
        store = dist.TCPStore("127.0.0.1", address, is_master=False, timeout=timedelta(seconds=30))
    sampler = ts.LeaseSampler(ts.Shuffled(batches * BATCH, seed=1), batch_size=BATCH, store=store, world_size=PROCESSES)
    draws = iter(sampler)
    begin.wait(120)
    seconds = []
    while True:
        start = time.perf_counter()
        if next(draws, None) is None:
            break
        drawn = time.perf_counter()
        time.sleep(pause_seconds)
        consumed = time.perf_counter()
        sampler.ack()
        seconds.append(drawn - start + time.perf_counter() - consumed)
    costs.put((seconds, sampler.stats()["store_operations"]))


def measure(address: int | str, batches: int, pause_seconds: float) -> dict[str, float]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchslip"])
    begin, costs = context.Barrier(PROCESSES), context.Queue()
    arguments = (address, batches, pause_seconds, begin, costs)
    processes = [context.Process(target=share, args=arguments) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [costs.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    # The first batch has the connection in it.
    milliseconds = np.array([1e3 * cost for seconds, _ in found for cost in seconds[1:]])
    return {
        "mean_ms": float(milliseconds.mean()),
        "median_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "batches": batches,
        "operations_per_batch": sum(operations for _, operations in found) / batches,
    }


def measure_loading(folder: Path, batches: int) -> dict[str, float]:
    dataset = ts.ImageMapDataset(folder, views=ts.RandomResizedCrop(224))
    ids = np.arange(BATCH) % len(dataset)
    dataset.__getitems__(ids.tolist())
    milliseconds = []
    for _ in range(batches):
        start = time.perf_counter()
        dataset.__getitems__(ids.tolist())
        milliseconds.append(1e3 * (time.perf_counter() - start))
    return {"mean_ms": statistics.mean(milliseconds), "median_ms": statistics.median(milliseconds), "batches": batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, help="a folder of pictures; default: the test photographs, else drawn ones"
    )
    parser.add_argument("--batches", type=int, default=2000, help="of each case")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        pause_seconds = PROCESSES / BATCHES_PER_SECOND
        results: dict[str, dict[str, float]] = {}
        results["load"] = measure_loading(options.data or default_source(Path(work)), 5)
        for name, pause in (("saturated", 0.0), ("paced", pause_seconds)):
            server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            results[name] = measure(server.port, options.batches, pause)
        results["file"] = measure(str(Path(work) / "leases"), options.batches, pause_seconds)
    for name, result in results.items():
        result["ratio"] = result["mean_ms"] / results["load"]["mean_ms"]
        print(f"{name:10}", *(f"{key} {value:.4f}" for key, value in result.items()))
    if options.out:
        report = {
            "benchmark": "leases",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip", "torch"),
            "options": {"processes": PROCESSES, "batch": BATCH, "batches": options.batches},
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
