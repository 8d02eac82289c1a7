"""`torchslip demo`: two processes train one network, the second from where the first stopped, and a table says how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from torchslip.cli._demo_data import Split, split_pictures
from torchslip.cli._demo_pictures import PICTURES, draw_pictures
from torchslip.cli._demo_training import Plan, batch_size_for
from torchslip.cli._progress import training_progress
from torchslip.errors import TorchslipError

__all__ = ["run_demo"]

_LIMIT = 4000
"""So many pictures of a large folder are taken, that the demo stays short."""
_SILENCE_SECONDS = 300.0
"""A training process that reports nothing for so long is ended."""


@dataclass(slots=True)
class _Outcome:
    """What the training processes reported."""

    device: str = "cpu"
    images: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    skipped: int = 0
    gpu_peak_bytes: int | None = None
    accuracies: list[float] = field(default_factory=list)
    ids_by_epoch: dict[int, list[int]] = field(default_factory=dict)
    processes: int = 0
    peak_bytes: int = 0

    def add(self, report: dict[str, Any]) -> None:
        match report.pop("event"):
            case "start":
                self.device = report["device"]
                self.processes += 1
            case "batch":
                self.ids_by_epoch.setdefault(report["epoch"], []).extend(report["sample_ids"])
            case "pass":
                self.images += report["images"]
                self.seconds += report["seconds"]
                self.waited_seconds += report["waited_seconds"]
            case "epoch":
                self.accuracies.append(report["accuracy"])
            case "done":
                self.skipped += report["skipped"]
                self.gpu_peak_bytes = report["gpu_peak_bytes"]
            case "error":
                raise TorchslipError(report["text"])

    def is_exact(self, split: Split, epochs: int) -> bool:
        """Whether every epoch, also the interrupted one, gave each training picture exactly once."""
        expected = sorted(split.train_ids.tolist())
        if self.skipped:  # replaced by others
            return all(len(ids) == len(expected) for ids in self.ids_by_epoch.values())
        return len(self.ids_by_epoch) == epochs and all(sorted(ids) == expected for ids in self.ids_by_epoch.values())


def run_demo(console: Console, *, data: Path | None, epochs: int, out: Path) -> None:
    """Draw or take pictures, train in two processes, print the table, and leave ``batch.png`` in `out`.

    Raises:
        FormatError: If `data` is not a folder of pictures in at least two classes.
        TorchslipError: If a training process fails, or if resuming was not exact.
    """
    begin = time.perf_counter()
    split = split_pictures(data if data is not None else _draw(console, out / "pictures"), limit=_LIMIT)
    out.mkdir(parents=True, exist_ok=True)
    batches = -(-len(split.train_ids) // batch_size_for(len(split.train_ids)))
    plan = Plan(
        data=str(data if data is not None else out / "pictures"),
        limit=_LIMIT,
        epochs=epochs,
        stop_epoch=epochs // 2,
        stop_batch=max(1, batches * 2 // 5),
        state=str(out / "state.pt"),
        resume=False,
        sheet=str(out / "batch.png"),
        workers=min(2, os.cpu_count() or 1),
    )
    console.print(
        f"{len(split.train_ids):,} pictures to train on and {len(split.val_ids):,} to measure with ({split.how}); "
        f"{len(split.classes)} classes; {epochs} epoch{'s' * (epochs > 1)} of {batches} batches."
    )
    outcome = _Outcome()
    with training_progress(console) as progress, _watched_memory(outcome):
        bar = progress.add_task("train", total=epochs * batches, note="")
        for part in (plan, replace(plan, resume=True)):
            for report in _reports(part):
                _show(console, progress, bar, report, part, batches)
                outcome.add(report)
    console.print(_table(outcome, split, epochs, time.perf_counter() - begin))
    console.print(f"A batch as the network was given it: {plan.sheet}")
    if not outcome.is_exact(split, epochs):
        raise TorchslipError("An epoch did not give each picture once. Please report this as a bug.")


def _draw(console: Console, folder: Path) -> Path:
    with training_progress(console) as progress:
        bar = progress.add_task("draw", total=PICTURES, note="pictures")
        if draw_pictures(folder, progress=lambda drawn: progress.update(bar, completed=drawn)):
            console.print(f"Drew {PICTURES:,} pictures in {folder}.")
    return folder


def _reports(plan: Plan) -> Iterator[dict[str, Any]]:
    """Run a training process and yield what it reports, until it ends."""
    command = [sys.executable, "-m", "torchslip.cli._demo_training", plan.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last_seconds = time.monotonic()
        ended, silent = threading.Event(), threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                if time.monotonic() - last_seconds > _SILENCE_SECONDS:
                    silent.set()
                    process.kill()

        threading.Thread(target=watch, daemon=True).start()
        try:
            for line in process.stdout:
                last_seconds = time.monotonic()
                yield json.loads(line)
        finally:
            ended.set()
            if process.poll() is None:
                process.terminate()
    if silent.is_set():
        raise TorchslipError(f"The training process reported nothing for {_SILENCE_SECONDS:.0f} seconds and was ended.")
    # A process that reported an error ends with 1, and the report has the text.
    if process.returncode not in (0, 1):
        raise TorchslipError(
            f"The training process ended with exit code {process.returncode}. If it was killed, the machine may lack "
            "memory: see torchslip doctor."
        )


def _show(console: Console, progress: Progress, bar: Any, report: dict[str, Any], plan: Plan, batches: int) -> None:
    event, epoch = report["event"], report.get("epoch", 0)
    if event == "start" and plan.resume:
        console.print(f"Resumed in a new process: epoch {epoch + 1}, batch {report['trained'] + 1}.")
    elif event == "batch":
        progress.update(bar, completed=epoch * batches + report["trained"], note=f"loss {report['loss']:.2f}")
    elif event == "epoch":
        console.print(f"Epoch {epoch + 1} of {plan.epochs}: accuracy {report['accuracy']:.1%}")
    elif event == "done" and not plan.resume:
        console.print(
            f"Stopped in epoch {plan.stop_epoch + 1} after batch {plan.stop_batch} of {batches}; saved {plan.state}."
        )


@contextmanager
def _watched_memory(outcome: _Outcome) -> Iterator[None]:
    """Keep the largest memory of the training process and its workers together, looked at five times a second."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            used = sum(map(_memory_of, psutil.Process().children(recursive=True)))
            outcome.peak_bytes = max(outcome.peak_bytes, used)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


def _memory_of(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
    except psutil.Error:  # it has ended
        return 0
    # The proportional share counts once what processes share; only Linux has it.
    return int(getattr(info, "pss", info.uss))


def _table(outcome: _Outcome, split: Split, epochs: int, seconds: float) -> Table:
    table = Table(show_header=False, title="torchslip demo", title_justify="left")
    what = "the full number of pictures" if outcome.skipped else "each picture once"
    exact = f"exact: every epoch gave {what}" if outcome.is_exact(split, epochs) else "NOT EXACT"
    rows = {
        "speed": f"{outcome.images / outcome.seconds:,.0f} images/s, training on the {outcome.device.upper()} included",
        "waiting for data": f"{outcome.waited_seconds / outcome.seconds:.0%} of the training time",
        "accuracy": f"{outcome.accuracies[-1]:.1%} on pictures kept for it (always one class: {split.chance:.1%})",
        "stop and resume": f"{exact}, over {outcome.processes} processes",
        "peak memory": f"{outcome.peak_bytes / 2**20:,.0f} MiB (PSS) for the training process and its workers",
        "whole demo": f"{seconds:.0f} s",
    }
    if outcome.gpu_peak_bytes is not None:
        rows["peak GPU memory"] = f"{outcome.gpu_peak_bytes / 2**20:,.0f} MiB"
    if outcome.skipped:
        rows["unreadable"] = f"{outcome.skipped:,} pictures replaced by others"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
