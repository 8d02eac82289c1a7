"""Runs a trial in a process of its own, until its deadline, and watches its memory while nothing is timed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import psutil

__all__ = ["Outcome", "run_module"]

_BENCHMARKS = Path(__file__).parents[1]
_SAMPLE_SECONDS = 0.1
_EXIT_SECONDS = 10.0


@dataclass(slots=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: ``ok``, ``missing`` (a library is not installed), ``failed`` or ``timeout``.
        reason: Why it is not ok.
        result: What it reported.
        peak_pss_mib: The largest sum over the process tree of proportional set sizes, while it warmed up; None if it
            never was in that phase.
        peak_unmapped_pss_mib: The same without pages of mapped files, which the kernel can drop.
        peak_private_mib: The same of pages that were written to and that no other process maps.
        first_private_mib: What it was when that phase began.
        first_pss_mib: And of proportional set sizes.
    """

    status: Literal["ok", "missing", "failed", "timeout"] = "failed"
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    peak_pss_mib: float | None = None
    peak_unmapped_pss_mib: float | None = None
    peak_private_mib: float | None = None
    first_private_mib: float | None = None
    first_pss_mib: float | None = None

    def add_sample(self, pid: int) -> None:
        """Take the memory of the tree below `pid` now."""
        total, unmapped, private = (value / 2**20 for value in _tree_bytes(pid))
        self.peak_pss_mib = max(self.peak_pss_mib or 0, total)
        self.peak_unmapped_pss_mib = max(self.peak_unmapped_pss_mib or 0, unmapped)
        self.peak_private_mib = max(self.peak_private_mib or 0, private)
        if self.first_private_mib is None:
            self.first_private_mib, self.first_pss_mib = private, total


def run_module(python: str, module: str, arguments: Sequence[object], *, deadline_seconds: float) -> Outcome:
    """Run ``python -m module arguments``; at the deadline it and all its children are killed."""
    outcome = Outcome()
    deadline = time.monotonic() + deadline_seconds
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [python, "-m", module, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=_BENCHMARKS,
            env=_environment(),
            start_new_session=True,
        )
        try:
            finished = _follow(process, outcome, deadline)
        finally:
            _kill(process)
        if not finished:
            outcome.status, outcome.reason = "timeout", f"not finished after {deadline_seconds:.0f} s"
        elif outcome.status == "failed":
            outcome.reason = _last_line(errors) or f"exit status {process.returncode}"
    return outcome


def _environment() -> dict[str, str]:
    paths = [str(_BENCHMARKS.parent), str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _follow(process: subprocess.Popen[bytes], outcome: Outcome, deadline: float) -> bool:
    """Listen until the process ends; False if it does not by the deadline."""
    warming_up = False
    for line in _lines(process, deadline):
        if line is None:
            if warming_up:
                outcome.add_sample(process.pid)
            continue
        event = json.loads(line)
        name = event.pop("event")
        warming_up = name == "first_batch"
        if warming_up:
            outcome.add_sample(process.pid)
        if name == "missing":
            outcome.status, outcome.reason = "missing", event["reason"]
        elif name == "result":
            outcome.status, outcome.result = "ok", event
            deadline = min(deadline, time.monotonic() + _EXIT_SECONDS)
    try:
        code = process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        # A loader that has delivered everything and then does not exit is measured all the same.
        return outcome.status == "ok"
    if code == 0 and outcome.status == "failed":
        outcome.status = "ok"  # a module that has nothing to report
    return True


def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[bytes | None]:
    """Each line that the process writes, and None in every tenth of a second without one."""
    assert process.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(_SAMPLE_SECONDS):
                yield None
                continue
            received = os.read(process.stdout.fileno(), 1 << 16)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            yield from lines
            if any(b'"result"' in line for line in lines):
                return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and the workers it has left behind; they are in a session of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _tree_bytes(pid: int) -> tuple[int, int, int]:
    total = unmapped = private = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            # A worker may end between the listing and the reading.
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                of_process, of_files, alone = _process_bytes(process)
                total += of_process
                unmapped += of_process - of_files
                private += alone
    return total, unmapped, private


def _process_bytes(process: psutil.Process) -> tuple[int, int, int]:
    """Proportional set size, of it mapped files, and private pages; elsewhere resident size, 0, resident size."""
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except FileNotFoundError:
        return (resident := process.memory_info().rss), 0, resident
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in fields.items()}
    # Not "Private_Clean": pages of a library become private when another program that has it loaded ends.
    return kib["Pss"] * 1024, kib.get("Pss_File", 0) * 1024, kib["Private_Dirty"] * 1024


def _last_line(stream: IO[str]) -> str:
    stream.seek(0)
    lines = [line.strip() for line in stream.read().splitlines() if line.strip()]
    return lines[-1] if lines else ""
