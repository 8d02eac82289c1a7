"""What leases would ask of a store at scale: 1,024 ranks, a billion samples, a tenth of the ranks killed.

Nothing is timed. The processes' own state machine (`LeaseHolder`, the one that the sampler runs) is simulated event by
event on a simulated clock, against a dict as the store: every rank takes ``--seconds-per-batch`` (drawn once per rank,
within 20 %) for a batch, prefetches 16, beats its heart as the sampler does, and waits as the sampler does. At half the
time, a tenth of the ranks die at once.

Counted: operations and bytes (keys and values, both ways) per second, on average and in the busiest second; the time
from the deaths until the last of the dead ranks' leases is in other hands; how much longer the epoch takes than the
work that is left would need on the ranks that are left; and the batches that were repeated.

The whole epoch has 3.9 million batches. ``--fraction`` simulates a shorter epoch with the same ranks and leases, which
changes no rate: the middle of an epoch is stationary.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from _machine import commit, describe_machine, versions

from torchslip.order._lease_holder import LeaseHolder
from torchslip.order._lease_plan import LeasePlan

BATCH, LEASE_BATCHES, PREFETCH, TTL = 256, 64, 16, 10.0


class _Store:
    """A dict that counts."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.operations: Counter[int] = Counter()
        self.bytes: Counter[int] = Counter()
        self.names: Counter[str] = Counter()

    def perform(self, name: str, arguments: tuple[Any, ...], now: float) -> Any:
        reply = getattr(self, name)(*arguments)
        second = int(now)
        self.operations[second] += 1
        self.names[name] += 1
        self.bytes[second] += _size(arguments) + _size(reply)
        return reply

    def read_many(self, keys: list[str]) -> list[bytes | None]:
        return [self.values.get(key) for key in keys]

    def compare_set(self, key: str, old: bytes | None, new: bytes) -> bytes | None:
        if self.values.get(key) == old:
            self.values[key] = new
        return self.values.get(key)

    def add(self, key: str, amount: int) -> int:
        self.values[key] = self.values.get(key, 0) + amount
        return int(self.values[key])

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


def _size(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


class _Simulation:
    def __init__(self, ranks: int, samples: int, seconds_per_batch: float) -> None:
        rng = random.Random(1)
        self.store, self.now = _Store(), 0.0
        self.plan = LeasePlan(samples, BATCH, LEASE_BATCHES, {}, "")
        self.holders = [
            LeaseHolder(self.plan, epoch=0, holder=f"{rank}-12345-0123abcd", ttl_seconds=TTL) for rank in range(ranks)
        ]
        self.step_seconds = [seconds_per_batch * rng.uniform(0.8, 1.2) for _ in range(ranks)]
        self.pauses = [0.01] * ranks
        self.dead: set[int] = set()
        self.finished: dict[int, float] = {}
        self.queue: list[tuple[float, int, str]] = []
        for rank in range(ranks):
            heapq.heappush(self.queue, (rng.random() * 0.1, rank, "step"))
            heapq.heappush(self.queue, (TTL / 6 * rng.random(), rank, "beat"))
        self.taken_over = 0.0

    def run(self, kill_at: float, kills: int) -> None:
        while self.queue:
            self.now, rank, what = heapq.heappop(self.queue)
            if kills and self.now >= kill_at:
                self.dead = set(random.Random(2).sample(range(len(self.holders)), kills))
                kills = 0
            if rank in self.dead or rank in self.finished:
                continue
            holder = self.holders[rank]
            if what == "beat":
                self.do(holder.renew())
                heapq.heappush(self.queue, (self.now + TTL / 6, rank, "beat"))
                continue
            self.step(rank, holder)
            if any(event["event"] == "lease_expired" for event in holder.take_events()):
                self.taken_over = self.now

    def step(self, rank: int, holder: LeaseHolder) -> None:
        """Consume a batch, and fill up what is prefetched."""
        if holder.outstanding:
            self.do(holder.acknowledge(1))
        while len(holder.outstanding) <= PREFETCH:
            if self.do(holder.draw(self.now)) is None:
                break
        if holder.outstanding:
            self.pauses[rank], pause = 0.01, self.step_seconds[rank]
        elif holder.drained:
            self.finished[rank] = self.now
            return
        else:
            pause = min(max(self.pauses[rank], holder.open_segments / 1000), TTL / 5)
            self.pauses[rank] *= 2
        heapq.heappush(self.queue, (self.now + pause, rank, "step"))

    def do(self, call: Any) -> Any:
        reply = None
        try:
            while True:
                request = call.send(reply)
                reply = self.store.perform(request.name, request.arguments, self.now)
        except StopIteration as stop:
            return stop.value


def simulate(ranks: int, samples: int, seconds_per_batch: float, dead_fraction: float) -> dict[str, Any]:
    batches = samples / BATCH
    ideal_seconds = batches / ranks * seconds_per_batch
    simulation = _Simulation(ranks, samples, seconds_per_batch)
    kill_at, kills = ideal_seconds / 2, int(ranks * dead_fraction)
    simulation.run(kill_at, kills)
    store, end = simulation.store, max(simulation.finished.values())
    alive = [1 / seconds for rank, seconds in enumerate(simulation.step_seconds) if rank not in simulation.dead]
    everyone = sum(1 / seconds for seconds in simulation.step_seconds)
    needed = kill_at + (batches - kill_at * everyone) / sum(alive)
    middle = [second for second in store.operations if 5 <= second < kill_at - 1]
    counts: Counter[str] = sum((holder.counts for holder in simulation.holders), Counter())
    return {
        "ranks": ranks,
        "samples": samples,
        "batches": int(batches),
        "dead_ranks": kills,
        "operations_per_second": sum(store.operations[second] for second in middle) / len(middle),
        "megabytes_per_second": sum(store.bytes[second] for second in middle) / len(middle) / 1e6,
        "busiest_second_operations": max(store.operations.values()),
        "busiest_second_megabytes": max(store.bytes.values()) / 1e6,
        "operations_per_batch": sum(store.operations.values()) / batches,
        "store_megabytes": sum(len(key) + _size(value) for key, value in store.values.items()) / 1e6,
        "seconds_until_taken_over": simulation.taken_over - kill_at if kills else 0.0,
        "epoch_seconds": end,
        "seconds_beyond_the_work": end - needed,
        "replayed_batches": counts["replayed_batches"],
        "late_batches": counts["late_batches"],
        "leases_expired": counts["leases_expired"],
        "leases_split": counts["leases_split"],
        "operations": dict(store.names),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--fraction", type=float, default=0.1, help="of the epoch that is simulated")
    parser.add_argument("--seconds-per-batch", type=float, default=0.25, help="about 1,000 pictures/s and rank")
    parser.add_argument("--dead", type=float, default=0.1, help="the part of the ranks that dies")
    parser.add_argument("--out", type=Path, help="the result file, JSON")
    options = parser.parse_args()
    start = time.perf_counter()
    samples = int(options.samples * options.fraction)
    result = simulate(options.ranks, samples, options.seconds_per_batch, options.dead)
    for name, value in result.items():
        print(f"{name:28} {value}")
    print(f"simulated in {time.perf_counter() - start:.0f} s")
    if options.out:
        settings = {"batch": BATCH, "lease_batches": LEASE_BATCHES, "prefetch": PREFETCH, "ttl_seconds": TTL}
        report = {
            "benchmark": "lease_scale",
            "machine": describe_machine(),
            "commit": commit(),
            "versions": versions("torchslip"),
            "options": settings | {"fraction": options.fraction, "seconds_per_batch": options.seconds_per_batch},
            "results": result,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
