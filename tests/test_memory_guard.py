"""The memory of the process and its workers: measured from outside against the cap, and guarded from within."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from bytes_sources import Numbers

import torchslip as ts
from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._deliveries import Deliveries
from torchslip.loading._limits import Machine, derive_limits
from torchslip.loading._memory_guard import MemoryGuard, tree_memory_bytes

MIB = 1 << 20


def private_bytes(pid):
    """What a process and its children hold in memory that no file backs; pages that they share count once."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        fields = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        total += (fields["Pss_Anon"] + fields["Pss_Shmem"]) * 1024
    return total


def read_and_measure(folder, cap_bytes, workers):
    """Samples that a child read, and the most memory above its baseline, looked at all the time."""
    command = [
        sys.executable,
        str(Path(__file__).with_name("memory_child.py")),
        str(folder),
        str(cap_bytes),
        str(workers),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.5)  # for the last batch of a worker to go
        base, peak, deadline = private_bytes(child.pid), 0, time.monotonic() + 170
        child.stdin.write("go\n")
        child.stdin.flush()
        os.set_blocking(child.stdout.fileno(), False)
        while time.monotonic() < deadline and not (line := child.stdout.readline()):
            peak = max(peak, private_bytes(child.pid))
            time.sleep(0.01)
        child.stdin.close()
    return int(line.split()[0]), peak - base


def make_objects(root, total_bytes, size):
    """Files of one content; they are links to a few real ones, all of which are read through and through."""
    root.mkdir(exist_ok=True)
    real = [root / f"{number}.bin" for number in range(16)]
    for path in real:
        path.write_bytes(np.random.default_rng(1).bytes(size))
    for number in range(16, total_bytes // size):
        os.link(real[number % 16], root / f"{number}.bin")
    return root


def test_a_cap_holds_as_measured_from_outside(tmp_path):
    folder = make_objects(tmp_path / "objects", 1024 * MIB, MIB)
    samples, grown = read_and_measure(folder, 128 * MIB, 0)
    assert samples == 1024
    assert 16 * MIB < grown <= 128 * MIB * 1.15


def test_a_cap_holds_over_all_workers_as_measured_from_outside(tmp_path):
    folder = make_objects(tmp_path / "objects", 1024 * MIB, MIB)
    samples, grown = read_and_measure(folder, 256 * MIB, 2)
    assert samples == 1024
    assert 16 * MIB < grown <= 256 * MIB * 1.15


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cap_of_256_mb_holds_over_4_gb(tmp_path, workers):
    folder = make_objects(tmp_path / "objects", 4096 * MIB, 2 * MIB)
    samples, grown = read_and_measure(folder, 256 * MIB, workers)
    assert samples == 2048
    assert grown <= 256 * MIB * 1.15


def test_what_processes_share_counts_once():
    code = "import sys, time; block = bytearray(b'x' * (64 << 20)); print(1, flush=True); sys.stdin.read()"
    before = tree_memory_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with_child = tree_memory_bytes(os.getpid())
        child.stdin.close()
    assert 60 * MIB < with_child - before < 90 * MIB


def budget_of(ram_bytes):
    machine = Machine(memory_bytes=64 << 30, base_bytes=0, environment={})
    constraints = ts.Constraints(max_ram_bytes=ram_bytes, max_inflight_bytes=1000)
    return ByteBudget(derive_limits(machine, constraints=constraints), Deliveries(), alone=True)


@pytest.mark.parametrize(("part", "event"), [(0.5, "memory_exceeded"), (1.05, "memory_throttled"), (4, None)])
def test_the_guard_says_once_which_threshold_was_passed(part, event, caplog):
    caplog.set_level("INFO", "torchslip.proof")
    budget = budget_of(int(tree_memory_bytes(os.getpid()) * part))
    guard = MemoryGuard(budget, os.getpid())
    guard.look()
    guard.look()
    assert [record.args["event"] for record in caplog.records] == ([event] if event else [])
    assert budget.memory_bytes[0] > 50 * MIB


def test_between_the_soft_and_the_hard_threshold_batches_come_one_at_a_time():
    budget = budget_of(1 << 40)
    budget.begin(1)
    budget.report_memory(10, "throttled")
    held = [budget.reserve(position, 100, then=position + 1) for position in range(2)]
    began = time.monotonic()
    import threading

    threading.Timer(0.3, budget.release, [held[0]]).start()
    budget.reserve(2, 100, then=None)
    assert time.monotonic() - began > 0.25
    assert budget.inflight_bytes == 200


class Greedy(Numbers):
    """Takes memory that no cap on batches can know of."""

    def fetch(self, indices):
        self.hoard = [*getattr(self, "hoard", []), bytearray(b"x" * (24 << 20))]
        return super().fetch(indices)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_hard_threshold_is_an_error_with_the_figure_and_the_knob(workers, monkeypatch):
    limit = tree_memory_bytes(os.getpid()) + 500 * MIB
    monkeypatch.setenv("TORCHSLIP_MAX_PROCESS_RSS_BYTES", str(limit))
    greedy = Greedy([1000] * 4000, seconds=0.005)
    dataset = ts.BytesDataset(greedy, batch_size=8, constraints=ts.Constraints(max_inflight_bytes="1mb"))
    with pytest.raises(ts.MemoryLimitError, match=rf"use \d+ bytes, more than the {limit} that TORCHSLIP_MAX_PROCESS"):
        for _ in ts.DataLoader(dataset, num_workers=workers):
            pass
    greedy.hoard = []


def test_a_limit_below_what_the_process_uses_already_is_an_error_at_once():
    with pytest.raises(ValueError, match="of which the process uses"):
        ts.BytesDataset(Numbers([10] * 4), max_ram_gb=0.05)
