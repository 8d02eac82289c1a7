"""Where files lie: a folder on this machine, or a URL that fsspec knows.

A file appears under its name only when it is whole: on a disk by writing a temporary file, fsync and rename; in an
object store by the store itself.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torchslip.errors import StorageError
from torchslip.storage._listing import Entry, list_local
from torchslip.storage._remote import RemoteFolder, emptied_on_error
from torchslip.storage._retry import Retry
from torchslip.storage._stat import FileStat, check_range, too_short

__all__ = ["TEMPORARY_PREFIX", "Folder", "LocalFolder", "is_remote", "open_folder"]

TEMPORARY_PREFIX = ".torchslip-tmp-"


class Folder(Protocol):
    """A place for files."""

    def names(self) -> list[str]:
        """What is directly in it; nothing if it does not exist."""

    def stat(self, name: str) -> FileStat:
        """Size and version of a file.

        Raises:
            FileNotFoundError: If there is none.
        """

    def read(self, name: str) -> bytes:
        """The bytes of a file."""

    def read_whole(self, name: str) -> tuple[bytes, FileStat]:
        """The bytes of a file, and what `stat` says of this version of it.

        Where a storage does not tell both in one answer, it is asked for the second after the first.
        """

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, exclusive.

        Raises:
            StorageError: If the file ends before `stop`, or another number of bytes came, however often it was tried.
        """

    def download(self, name: str, path: Path) -> None:
        """Copy a file into the local file `path`, a new one or one that is there, without holding it in memory.

        Raises:
            StorageError: If it did not arrive whole, or changed meanwhile. The local file is empty then.
        """

    def write(self, name: str, data: bytes) -> None:
        """Make a file, or replace it; durable when this returns."""

    def write_if(self, name: str, data: bytes, *, etag: str | None = None) -> bool:
        """Make a file if there is none, or replace the version `etag` of it; returns whether this happened.

        An object store that does not know conditional requests writes always, and returns True.
        """

    def upload(self, path: Path, name: str | None = None) -> None:
        """Make a copy of a local file, under the same name or another."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, in this order; those that are not there are passed over."""

    def walk(self, name: str) -> list[str]:
        """Paths of the files called `name` in sub-folders of any depth, relative and with ``/``, sorted."""

    def entries(self, *, recursive: bool = True) -> Iterator[Entry]:
        """All files below, listed while they are taken, with their sizes and versions.

        They come in the order of the bytes of their relative paths, but for object stores that list in another one.

        Raises:
            FileNotFoundError: If there is no such folder or bucket.
        """


def open_folder(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    retry: Retry | Mapping[str, Any] | None = None,
) -> Folder:
    """The folder at a path or URL; nothing is made and nothing is connected to yet.

    Args:
        url: A path, ``file://``, or what fsspec knows, such as ``s3://bucket/prefix``.
        storage_options: For fsspec; what is here wins over the environment, such as ``S3_ENDPOINT_URL``. A key
            ``"retry"`` is taken for the argument `retry`.
        retry: How often and how long a remote operation is tried: a `Retry`, or some of its attributes by name.
    """
    text = os.fspath(url)
    if is_remote(text):
        options = dict(storage_options or {})
        given = options.pop("retry", None)
        return RemoteFolder(text, options, Retry.of(retry if retry is not None else given))
    return LocalFolder(Path(text.partition("://")[2] if "://" in text else text).expanduser())


def is_remote(url: str) -> bool:
    """Whether `url` is a URL of another machine or store, not a path of this one."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme not in ("file", "local")


class LocalFolder:
    """A folder on this machine.

    Attributes:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        """See `Folder`."""
        return sorted(os.listdir(self.path)) if self.path.exists() else []  # noqa: PTH208  (names, not paths)

    def stat(self, name: str) -> FileStat:
        """See `Folder`."""
        status = (self.path / name).stat()
        if stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "Not a file but a folder", str(self.path / name))
        return FileStat(bytes=status.st_size, mtime_ns=status.st_mtime_ns)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self.path / name).read_bytes()

    def read_whole(self, name: str) -> tuple[bytes, FileStat]:
        """See `Folder`."""
        path = f"{self.path}{os.sep}{name}"
        # Half the time of `open(path, "rb").read()`; without O_NONBLOCK, a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path} is not a regular file.")
            parts = [os.read(descriptor, status.st_size)]
            while parts[-1] and sum(map(len, parts)) < status.st_size:
                parts.append(os.read(descriptor, status.st_size))
        finally:
            os.close(descriptor)
        data = b"".join(parts)
        return data, FileStat(bytes=len(data), mtime_ns=status.st_mtime_ns)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Folder`."""
        check_range(start, stop)
        with (self.path / name).open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
            if len(data) != stop - start:
                raise too_short(str(self.path / name), os.fstat(file.fileno()).st_size, start, stop)
        return data

    def download(self, name: str, path: Path) -> None:
        """See `Folder`."""
        with path.open("wb") as file, emptied_on_error(file), (self.path / name).open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            shutil.copyfileobj(source, file, 1 << 20)
            if file.tell() != size:
                raise StorageError(f"{self.path / name} had {size} bytes and then {file.tell()}: it changed meanwhile.")

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        descriptor, temporary = self._temporary()
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        self._publish(Path(temporary), name)

    def write_if(self, name: str, data: bytes, *, etag: str | None = None) -> bool:
        """See `Folder`. There are no etags here."""
        if etag is not None:
            raise ValueError("A file on a disk has no etag.")
        descriptor, temporary = self._temporary()
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        try:
            self._publish(Path(temporary), name, replace=False)
        except FileExistsError:
            return False
        return True

    def upload(self, path: Path, name: str | None = None) -> None:
        """See `Folder`."""
        descriptor, temporary = self._temporary()
        with os.fdopen(descriptor, "wb") as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        self._publish(Path(temporary), name or path.name)

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def walk(self, name: str) -> list[str]:
        """See `Folder`."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.glob(f"*/**/{name}"))

    def _temporary(self) -> tuple[int, str]:
        self.path.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=self.path)

    def entries(self, *, recursive: bool = True) -> Iterator[Entry]:
        """See `Folder`."""
        return list_local(str(self.path), recursive=recursive)

    def _publish(self, temporary: Path, name: str, *, replace: bool = True) -> None:
        try:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            # `mkstemp` gives the file to its owner alone.
            temporary.chmod(0o666 & ~_umask())
            if replace:
                temporary.replace(self.path / name)
            else:
                (self.path / name).hardlink_to(temporary)
                temporary.unlink()
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(self.path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fsync_folder(path: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
