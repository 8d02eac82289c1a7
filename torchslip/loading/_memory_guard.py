"""Watches the memory of the process and its workers, so that an error comes before the kernel ends something."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from torchslip.loading._byte_budget import ByteBudget
from torchslip.loading._limits import Machine
from torchslip.loading._machine import machine_memory_bytes

__all__ = ["SOFT_FRACTION", "MemoryGuard", "this_machine", "tree_memory_bytes"]

SOFT_FRACTION = 0.9
"""From this part of the hard limit on, only what the consumer waits for is read."""

_PERIOD_SECONDS = 1.0
_proof = logging.getLogger("torchslip.proof")


def this_machine() -> Machine:
    """The figures of this machine and process that limits depend on."""
    return Machine(machine_memory_bytes(), tree_memory_bytes(os.getpid()), os.environ)


def tree_memory_bytes(pid: int) -> int:
    """Memory of a process and all its descendants, with what they share counted once.

    The proportional set size where the system tells it; else the resident set without what is shared, to which the
    resident set of the first process is added whole.
    """
    import psutil

    tree = _tree(pid)
    if tree is None:
        try:
            tree = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        except psutil.Error:
            return 0
    return sum(_process_bytes(each, whole=each == pid) for each in tree)


def _tree(pid: int) -> list[int] | None:
    """A process and its descendants as the kernel lists them, which psutil finds by looking at all there are."""
    found, todo = [], [pid]
    while todo:
        found.append(each := todo.pop())
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:
            if each == pid:
                return None
    return found


def _process_bytes(pid: int, *, whole: bool) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux, not ours, or gone
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss if whole else max(memory.rss - getattr(memory, "shared", 0), 0))


class MemoryGuard:
    """A thread that looks at the process tree once a second and writes what it finds into the account.

    A look costs about a millisecond per process and gigabyte, which is why not every batch takes one. Whoever reserves
    room, or takes a batch, then sees that it has to wait or to raise. In worker processes the first one watches, from
    the main process down.

    Args:
        budget: Where the findings go, and where the limit stands.
        pid: The process whose tree is watched.
        period_seconds: How often.
    """

    def __init__(self, budget: ByteBudget, pid: int, *, period_seconds: float = _PERIOD_SECONDS) -> None:
        self._budget, self._pid, self._period = budget, pid, period_seconds
        self._over = threading.Event()
        self._state = "free"
        self._thread = threading.Thread(target=self._watch, name="torchslip-memory", daemon=True)

    def start(self) -> None:
        """Begin, with a first look that is over when this returns."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """End; the thread may take one more look."""
        self._over.set()

    def look(self) -> None:
        """Measure once."""
        used, limits = tree_memory_bytes(self._pid), self._budget.limits
        hard = limits.max_ram_bytes
        # Below the soft limit by a twentieth before it is left: else it would flicker.
        soft = hard * (SOFT_FRACTION if self._state == "free" else SOFT_FRACTION - 0.05)
        state = "exceeded" if used > hard else "throttled" if used > soft else "free"
        if state != self._state:
            event = {"event": f"memory_{state}", "process_rss_bytes": used, "max_process_rss_bytes": hard}
            _proof.log(logging.INFO if state == "free" else logging.WARNING, "%s", {**event, "pid": os.getpid()})
        self._state = state
        self._budget.report_memory(used, state)

    def _watch(self) -> None:
        while not self._over.wait(self._period):
            self.look()
