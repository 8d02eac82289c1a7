"""Writing MDS datasets."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torchslip.pack._claim import WRITING_MARKER, claim
from torchslip.pack._shard_builder import Shard, ShardBuilder
from torchslip.pack._upload import Uploader
from torchslip.sources.mds import INDEX_NAME, index_text
from torchslip.storage import LocalFolder, open_folder

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self

__all__ = ["MDSWriter"]

Place = str | os.PathLike[str]


class MDSWriter:
    """Writes samples into an MDS dataset: shards, and the index when all is done.

    ::

        with MDSWriter(columns={"image": "jpeg", "label": "int"}, out="train", compression="zstd") as writer:
            for path, label in items:
                writer.write({"image": path.read_bytes(), "label": label})

    Equal samples give the same bytes as with mosaicml-streaming 0.13, which reads the result (``gz`` has no time stamp
    here). An exception inside ``with`` removes what was written; a kill leaves shards without an index, which nothing
    takes for a dataset.

    Args:
        columns: Name to encoding. A value that is `bytes` already is stored as it is in any column, so image files are
            not decoded; the other values are what each encoding names, see `torchslip.sources.MDS`.
        out: A folder, which must be empty or missing, or a URL, or a folder and a URL.
        compression: ``br``, ``bz2``, ``gz``, ``snappy`` or ``zstd``, or with a level such as ``zstd:7``. JPEG files do
            not get smaller; leave it out for images.
        hashes: Algorithms for the hashes of each file in the index, such as ``sha1`` or ``["sha1", "xxh64"]``.
        size_limit: Bytes of a shard before compression, below 4 GiB: a number, or text such as ``"128mb"`` with units
            of 1024. Larger shards mean fewer files, smaller ones a smaller cache when they are streamed. None or 0
            makes one shard. Only a single sample that is larger makes a larger shard.
        remote: A URL to upload to, in addition to the folder `out`: each shard when it is complete, the index last.
        keep_local: Keep the files in `out` after their upload. Without upload they stay anyway.
        exist_ok: Replace a dataset that is in `out` or at `remote`: removes what its index lists. A folder that has
            anything else in it is refused.
        progress: Show the samples written on a terminal.
        retry: How often an upload that failed is tried again.
        max_workers: How many uploads run at once.
        storage_options: For the storage of the URL, as fsspec takes them.
        store: The folder or URL that keeps snapshots, see `torchslip.resolve`. What one of them has is not replaced.

    Raises:
        ValueError: If an encoding, compression, hash or size is not a valid one.
        FileExistsError: If there is something in `out`, a dataset at `remote`, or what a snapshot has.
    """

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        out: Place | tuple[Place, Place],
        compression: str | None = None,
        hashes: str | Sequence[str] | None = None,
        size_limit: int | str | None = 1 << 26,
        remote: Place | None = None,
        keep_local: bool = False,
        exist_ok: bool = False,
        progress: bool = False,
        retry: int = 2,
        max_workers: int = 8,
        storage_options: Mapping[str, Any] | None = None,
        store: Place | None = None,
    ) -> None:
        self._builder = ShardBuilder(columns=columns, compression=compression, hashes=hashes, size_limit=size_limit)
        local, url = _places(out, remote)
        self._remote = None if url is None else open_folder(url, storage_options, retry={"attempts": retry + 1})
        if local is not None:
            claim(LocalFolder(local), exist_ok=exist_ok, remote=False, store=store)
        if self._remote is not None:
            claim(self._remote, exist_ok=exist_ok, remote=True, store=store)
        self._made_folder = local is None or not local.exists()
        self._local = LocalFolder(local if local is not None else Path(tempfile.mkdtemp(prefix="torchslip-")))
        self._local.write(WRITING_MARKER, b"A dataset is being written here; without an index it is not complete.\n")
        self._keeps = self._remote is None or (keep_local and local is not None)
        self._uploader = (
            None if self._remote is None else Uploader(self._remote, max_workers=max_workers, keep_local=self._keeps)
        )

        self._shards: list[Mapping[str, Any]] = []
        self._written: list[str] = []
        self._done = self._aborted = False
        self._progress = _start_progress() if progress else None

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample. One that cannot be stored changes nothing.

        Args:
            sample: Column name to value.

        Raises:
            TypeError: If a value is not what its column takes.
            ValueError: If a value does not fit, a column is missing or unknown, or a shard would exceed 4 GiB.
            Exception: Whatever made an upload fail.
        """
        if self._done:
            raise ValueError("The writer has finished; open another one.")
        parts = self._builder.encode(sample)
        try:
            if self._uploader is not None:
                self._uploader.check()
            self._store(self._builder.add(parts))
        except BaseException:
            self.abort()
            raise
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def _store(self, shard: Shard | None) -> None:
        if shard is None:
            return
        self._written.append(shard.name)
        self._local.write(shard.name, shard.data)
        self._shards.append(shard.entry)
        if self._uploader is not None:
            self._uploader.submit(self._local.path / shard.name)

    def finish(self) -> None:
        """Write the last shard, wait for the uploads, and write the index. After it, nothing can be written."""
        if self._aborted:
            raise ValueError("The dataset is not complete, because an earlier call failed; there is no index.")
        if self._done:
            return
        try:
            self._store(self._builder.finish())
            index = index_text(self._shards).encode()
            if self._uploader is not None:
                self._uploader.finish()
            if self._keeps:
                self._local.write(INDEX_NAME, index)
            if self._remote is not None:
                self._remote.write(INDEX_NAME, index)
        except BaseException:
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        """Drop the dataset: remove the local files that were written. What was uploaded stays, without an index."""
        if self._done:
            return
        self._aborted = True
        if self._uploader is not None:
            self._uploader.stop()
        self._local.remove([INDEX_NAME, *self._written])
        self._end()

    def _end(self) -> None:
        self._done = True
        self._local.remove([WRITING_MARKER])
        if self._made_folder and not self._local.names():
            self._local.path.rmdir()
        if self._progress is not None:
            self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()


def _places(out: Place | tuple[Place, Place], remote: Place | None) -> tuple[Path | None, str | None]:
    """The local folder, or None for a temporary one, and the URL to upload to, or None."""
    if isinstance(out, tuple | list):
        if remote is not None:
            raise ValueError(f"out names a remote already ({out[1]}); leave out remote={remote!r}.")
        out, remote = out
    if "://" in os.fspath(out) and not os.fspath(out).startswith(("file://", "local://")):
        if remote is not None:
            raise ValueError(f"With remote={remote!r}, out must be a local folder; got {out!r}.")
        return None, os.fspath(out)
    folder = open_folder(out)
    assert isinstance(folder, LocalFolder)
    return folder.path, os.fspath(remote) if remote is not None else None


def _start_progress() -> Progress | None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (SpinnerColumn(), TextColumn("{task.completed:.0f} samples written"), TimeElapsedColumn())
    progress = Progress(*columns, console=console)
    progress.add_task("write", total=None)
    progress.start()
    return progress
