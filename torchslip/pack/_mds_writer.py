"""Writing MDS datasets."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torchslip.pack._claim import WRITING_MARKER, claim
from torchslip.pack._upload import Uploader
from torchslip.sources.mds import (
    INDEX_NAME,
    checked_hashes,
    hash_bytes,
    index_text,
    parse_compression,
    parse_encoding,
)
from torchslip.storage import LocalFolder, open_folder, parse_bytes

if TYPE_CHECKING:
    from rich.progress import Progress
    from typing_extensions import Self

__all__ = ["MDSWriter"]

Place = str | os.PathLike[str]

_MAX_BYTES = (1 << 32) - 1  # offsets are uint32


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

    Raises:
        ValueError: If an encoding, compression, hash or size is not a valid one.
        FileExistsError: If there is something in `out`, or a dataset at `remote`.
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
    ) -> None:
        self._columns = [(name, parse_encoding(columns[name])) for name in sorted(columns)]
        if not self._columns:
            raise ValueError("columns must name at least one column.")
        self._compression = parse_compression(compression) if compression else None
        self._hashes = checked_hashes(hashes)
        self._size_limit = _parse_size(size_limit) if size_limit else None
        self._config = {
            "column_encodings": [encoding.name for _, encoding in self._columns],
            "column_names": [name for name, _ in self._columns],
            "column_sizes": [encoding.size for _, encoding in self._columns],
            "compression": compression or None,
            "format": "mds",
            "hashes": self._hashes,
            "size_limit": self._size_limit,
            "version": 2,
        }
        self._config_bytes = json.dumps(self._config, sort_keys=True).encode()

        local, url = _places(out, remote)
        self._remote = None if url is None else open_folder(url, storage_options, retry={"attempts": retry + 1})
        if local is not None:
            claim(LocalFolder(local), exist_ok=exist_ok, remote=False)
        if self._remote is not None:
            claim(self._remote, exist_ok=exist_ok, remote=True)
        self._made_folder = local is None or not local.exists()
        self._local = LocalFolder(local if local is not None else Path(tempfile.mkdtemp(prefix="torchslip-")))
        self._local.write(WRITING_MARKER, b"A dataset is being written here; without an index it is not complete.\n")
        self._keeps = self._remote is None or (keep_local and local is not None)
        self._uploader = (
            None if self._remote is None else Uploader(self._remote, max_workers=max_workers, keep_local=self._keeps)
        )

        self._shards: list[dict[str, Any]] = []
        self._written: list[str] = []
        self._done = self._aborted = False
        self._progress = _start_progress() if progress else None
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._samples: list[list[bytes]] = []
        self._sizes: list[int] = []
        self._shard_bytes = 8 + len(self._config_bytes)

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
        parts = self._encode(sample)
        size = sum(map(len, parts))
        try:
            if self._uploader is not None:
                self._uploader.check()
            if self._size_limit and self._samples and self._size_limit < self._shard_bytes + size + 4:
                self._flush()
        except BaseException:
            self.abort()
            raise
        if self._shard_bytes + size + 4 > _MAX_BYTES:
            raise ValueError(
                f"A sample of {size} bytes would make the shard larger than the 4 GiB that its 32-bit offsets can "
                f"reach; {'divide it' if not self._samples else 'set size_limit'}."
            )
        self._samples.append(parts)
        self._sizes.append(size)
        self._shard_bytes += size + 4
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])

    def _encode(self, sample: Mapping[str, Any]) -> list[bytes]:
        if len(sample) != len(self._columns) or not all(name in sample for name, _ in self._columns):
            names = [name for name, _ in self._columns]
            missing = [name for name in names if name not in sample]
            unknown = [str(name) for name in sample if name not in names]
            raise ValueError(
                f"The sample must have the columns {', '.join(names)}"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + (f"; unknown: {', '.join(unknown)}" if unknown else "")
                + "."
            )
        data, head = [], []
        for name, encoding in self._columns:
            try:
                value = encoding.encode(sample[name])
                if encoding.size is None:
                    head.append(struct.pack("<I", len(value)))
            except (KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # Pillow, json and pickle have classes of their own
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"Column {name!r} ({encoding.name}): {error}.") from error
            data.append(value)
        return [*head, *data]

    def _flush(self) -> None:
        count = len(self._samples)
        first = 4 + 4 * (count + 1) + len(self._config_bytes)
        raw = b"".join(
            (
                struct.pack(f"<{count + 2}I", count, *accumulate(self._sizes, initial=first)),
                self._config_bytes,
                *(part for parts in self._samples for part in parts),
            )
        )
        self._begin_shard()
        name = f"shard.{len(self._shards):05}.mds"
        entry = {**self._config, "samples": count, "raw_data": self._describe(name, raw), "zip_data": None}
        if self._compression is not None:
            raw = self._compression.compress(raw)
            name = f"{name}.{self._compression.name}"
            entry["zip_data"] = self._describe(name, raw)
        self._written.append(name)
        self._local.write(name, raw)
        self._shards.append(entry)
        if self._uploader is not None:
            self._uploader.submit(self._local.path / name)

    def _describe(self, name: str, data: bytes) -> dict[str, Any]:
        return {
            "basename": name,
            "bytes": len(data),
            "hashes": {algorithm: hash_bytes(algorithm, data) for algorithm in self._hashes},
        }

    def finish(self) -> None:
        """Write the last shard, wait for the uploads, and write the index. After it, nothing can be written."""
        if self._aborted:
            raise ValueError("The dataset is not complete, because an earlier call failed; there is no index.")
        if self._done:
            return
        try:
            if self._samples:
                self._flush()
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
        self._begin_shard()
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


def _parse_size(size: int | str) -> int:
    number = parse_bytes(size)
    if number is None or number > _MAX_BYTES:
        raise ValueError(
            "size_limit must be a number of bytes from 1 to 4294967295 (the offsets have 32 bits), or such as '64mb' "
            f"or '1.5gb'; got {size!r}."
        )
    return number


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
