"""Where files are written to: a folder on this machine, or a URL that fsspec knows.

A file appears under its name only when it is whole: on a disk by writing a temporary file, fsync and rename; in an
object store by the store itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torchslip.errors import MissingDependencyError

__all__ = ["TEMPORARY_PREFIX", "Folder", "LocalFolder", "open_folder"]

TEMPORARY_PREFIX = ".torchslip-tmp-"


class Folder(Protocol):
    """A place for files."""

    def names(self) -> list[str]:
        """What is directly in it; nothing if it does not exist."""

    def read(self, name: str) -> bytes:
        """The bytes of a file."""

    def write(self, name: str, data: bytes) -> None:
        """Make a file, or replace it; durable when this returns."""

    def upload(self, path: Path) -> None:
        """Make a copy of a local file, under the same name."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, in this order; those that are not there are passed over."""

    def walk(self, name: str) -> list[str]:
        """Paths of the files called `name` in sub-folders of any depth, relative and with ``/``, sorted."""


def open_folder(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or URL; nothing is made and nothing is connected to yet.

    Args:
        url: A path, ``file://``, or what fsspec knows, such as ``s3://bucket/prefix``.
        storage_options: For fsspec; an endpoint here wins over the environment variable ``S3_ENDPOINT_URL``.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ("file", "local"):
        return _RemoteFolder(text, dict(storage_options or {}))
    return LocalFolder(Path(rest if separator else text).expanduser())


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

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        descriptor, temporary = self._temporary()
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        self._publish(Path(temporary), name)

    def upload(self, path: Path) -> None:
        """See `Folder`."""
        descriptor, temporary = self._temporary()
        with os.fdopen(descriptor, "wb") as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)
        self._publish(Path(temporary), path.name)

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

    def _publish(self, temporary: Path, name: str) -> None:
        try:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            # `mkstemp` gives the file to its owner alone.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_folder(self.path)


class _RemoteFolder:
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url.rstrip("/")
        self._options = options

    def __str__(self) -> str:
        return self._url

    def _open(self) -> tuple[Any, str]:
        # fsspec keeps one client per process and set of options, so this is cheap, and no client survives a fork.
        import fsspec

        options = dict(self._options)
        if self._url.startswith(("s3://", "s3a://")) and (endpoint := os.environ.get("S3_ENDPOINT_URL")):
            options.setdefault("endpoint_url", endpoint)
        try:
            return fsspec.core.url_to_fs(self._url, **options)  # type: ignore[no-any-return]
        except ImportError as error:
            raise MissingDependencyError(f"{self._url} needs another package: {error}") from error

    def names(self) -> list[str]:
        """See `Folder`."""
        fs, path = self._open()
        fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]))

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        fs, path = self._open()
        return bytes(fs.cat_file(f"{path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        fs, path = self._open()
        fs.pipe_file(f"{path}/{name}", data)

    def upload(self, path: Path) -> None:
        """See `Folder`."""
        fs, folder = self._open()
        fs.put_file(str(path), f"{folder}/{path.name}")

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        fs, path = self._open()
        for name in names:
            if fs.exists(f"{path}/{name}"):
                fs.rm_file(f"{path}/{name}")

    def walk(self, name: str) -> list[str]:
        """See `Folder`."""
        fs, path = self._open()
        fs.invalidate_cache()
        prefix = f"{path.rstrip('/')}/"
        found = (str(each) for each in fs.find(path))
        below = (each[each.index(prefix) + len(prefix) :] for each in found if prefix in each)
        return sorted(each for each in below if each.endswith(f"/{name}"))


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
