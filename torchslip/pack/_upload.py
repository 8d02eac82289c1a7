"""Copying finished files to another place while the next ones are written."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from torchslip.storage import Folder

__all__ = ["Uploader"]


class Uploader:
    """Uploads files in the background, and reports a failure to the next caller.

    Args:
        folder: Where to.
        max_workers: How many uploads run at once. Twice as many may wait; then `submit` waits too, so that the local
            folder does not fill up.
        keep_local: Whether a file stays where it was after its upload.
    """

    def __init__(self, folder: Folder, *, max_workers: int, keep_local: bool) -> None:
        self._folder = folder
        self._max_workers = max_workers
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
        self._folder.upload(path)
        if not self._keep_local:
            path.unlink()
