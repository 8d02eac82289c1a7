"""Copying finished files to another place while the next ones are written."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from torchslip.storage import Folder

__all__ = ["Uploader", "with_retries"]

_LOGGER = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.5


class Uploader:
    """Uploads files in the background, and reports a failure to the next caller.

    Args:
        folder: Where to.
        max_workers: How many uploads run at once. Twice as many may wait; then `submit` waits too, so that the local
            folder does not fill up.
        retry: How often an upload that failed is tried again, after 0.5, 1, 2, ... seconds.
        keep_local: Whether a file stays where it was after its upload.
    """

    def __init__(self, folder: Folder, *, max_workers: int, retry: int, keep_local: bool) -> None:
        self._folder = folder
        self._max_workers = max_workers
        self._retry = retry
        self._keep_local = keep_local
        self._pool: ThreadPoolExecutor | None = None
        self._pending: set[Future[None]] = set()

    def submit(self, path: Path) -> None:
        """Upload a file, some time.

        Raises:
            Exception: Whatever made an earlier upload fail for good.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._max_workers, thread_name_prefix="torchslip-upload")
        while len(self._pending) >= 3 * self._max_workers:
            wait(self._pending, return_when=FIRST_COMPLETED)
            self.check()
        self._pending.add(self._pool.submit(self._upload, path))

    def check(self) -> None:
        """Raise what made an upload fail for good."""
        done = {future for future in self._pending if future.done()}
        self._pending -= done
        for future in done:
            future.result()

    def finish(self) -> None:
        """Wait for all uploads; raises as `check`."""
        wait(self._pending)
        self.check()
        self.stop()

    def stop(self) -> None:
        """Drop the uploads that have not begun, and wait for those that have."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _upload(self, path: Path) -> None:
        with_retries(lambda: self._folder.upload(path), path.name, self._retry)
        if not self._keep_local:
            path.unlink()


def with_retries(action: Callable[[], None], name: str, retry: int) -> None:
    """Do what may fail for a while, again after 0.5, 1, 2, ... seconds.

    Args:
        action: It.
        name: Of the file that is uploaded.
        retry: How often it is tried again.

    Raises:
        Exception: What it raised the last time.
    """
    for attempt in range(retry + 1):
        try:
            action()
            return
        except Exception as error:  # each storage has errors of its own
            if attempt == retry:
                raise
            pause_seconds = _FIRST_PAUSE_SECONDS * 2**attempt
            _LOGGER.warning("Upload of %s failed, again in %s s: %s", name, pause_seconds, error)
            time.sleep(pause_seconds)
