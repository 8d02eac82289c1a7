"""Packing in another process while this one reads the source.

The process watches its standard input for the end: when the process that started it ends, however it does, so does the
packing. What is finished stays, and the next one goes on with it.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["run_in_background"]

_STOP_SECONDS = 5.0
_NICENESS = 10  # the training comes first
_CODE = "from torchslip.pack._background import main; main({})"
_LOGGER = logging.getLogger(__name__)
_running: dict[Path, tuple[int, subprocess.Popen[bytes]]] = {}


def run_in_background(key: Path, work: Callable[[], object]) -> None:
    """Call `work` in a process of its own, unless this process has one at it for the same key.

    Raises:
        TypeError: If `work` does not pickle, or is made of what only the main script defines.
    """
    before = _running.get(key)
    if before is not None and before[0] == os.getpid() and before[1].poll() is None:
        return
    try:
        job = pickle.dumps(work)
    except Exception as error:  # each class has its own way not to pickle
        raise TypeError(f"With background=True the source must pickle, for another process: {error}") from error
    if b"__main__" in job:
        raise TypeError(
            "With background=True another process must import the class of the source, but it is defined in the main "
            "script. Move it into a module, or leave background out."
        )
    with tempfile.TemporaryFile() as file:
        # Not through the pipe, which holds 64 kB: writing would wait until the process has imported torch.
        pickle.dump(sys.path, file)
        file.write(job)
        file.seek(0)
        descriptor = file.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(descriptor)], stdin=subprocess.PIPE, pass_fds=[descriptor]
        )
    if not _running:
        atexit.register(_stop_all)
    _running[key] = os.getpid(), process


def _stop_all() -> None:
    for pid, process in _running.values():
        if pid != os.getpid():
            continue
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)


def main(descriptor: int) -> None:
    """What the process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(_NICENESS)
    with os.fdopen(descriptor, "rb") as file:
        sys.path[:] = pickle.load(file)
        work = pickle.load(file)
    try:
        work()
    except Exception as error:
        # Nobody else hears of it; without a handler, logging writes it to standard error.
        _LOGGER.error("Packing in the background failed, so the source is read on: %s", error)
        sys.exit(1)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
