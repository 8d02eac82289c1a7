"""A folder behind a URL: every operation is tried until it succeeds, cannot succeed, or runs out of time."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from torchslip.errors import StorageError, TorchslipError
from torchslip.storage._fsspec import FsspecClient
from torchslip.storage._listing import Entry
from torchslip.storage._retry import Retry, of_network
from torchslip.storage._s3 import S3_SCHEMES, S3Client
from torchslip.storage._stat import FileStat, check_range

__all__ = ["RemoteFolder", "emptied_on_error"]

T = TypeVar("T")

# One request and one buffer of a download.
PART_BYTES = 1 << 24

# What is larger costs little per byte in any way.
SMALL_BYTES = 1 << 20


class RemoteFolder:
    """A folder that fsspec reaches. See `Folder` for its methods.

    It holds no connection: each process makes its own when it first needs one, so it can be pickled and forked.
    """

    def __init__(self, url: str, options: Mapping[str, Any], retry: Retry) -> None:
        scheme, _, path = url.partition("://")
        self.url = f"{scheme}://{path.rstrip('/')}"
        self.options = dict(options)
        """For fsspec; they may hold a password."""
        self._retry = retry
        self._made: tuple[int, FsspecClient] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"RemoteFolder({self.url!r})"  # the options may hold a password

    def names(self) -> list[str]:
        """See `Folder`."""
        return self._run("Listing", "", lambda client, left: client.names(left))

    def walk(self, name: str) -> list[str]:
        """See `Folder`."""
        return self._run("Listing", "", lambda client, left: client.walk(name, left))

    def stat(self, name: str) -> FileStat:
        """See `Folder`."""
        return self._run("Asking for", name, lambda client, left: client.stat(name, left))

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return self._run("Reading", name, lambda client, left: client.read(name, left))

    def read_whole(self, name: str) -> tuple[bytes, FileStat]:
        """See `Folder`."""
        data, found = self._run("Reading", name, lambda client, left: client.read_whole(name, left))
        return data, found or dataclasses.replace(self.stat(name), bytes=len(data))

    def read_many(self, names: Sequence[str], sizes: Sequence[int]) -> list[tuple[bytes, FileStat] | None]:
        """Many small files at the same time, where the storage can: one try, with a quarter of the deadline.

        Args:
            names: The files.
            sizes: Their bytes, as far as is known.

        Returns:
            What `read_whole` gives for each; None for those that have to be read by `read_whole`: they failed, are too
            large for this, or have another size.
        """
        small = [number for number, size in enumerate(sizes) if size <= SMALL_BYTES]
        found: list[tuple[bytes, FileStat] | None] = [None] * len(names)
        if small:
            try:
                client = self._client()
            except Exception:
                return found  # `read_whole` tells it with the name of the file
            seconds = self._retry.deadline_seconds / 4
            answers = client.read_many([names[each] for each in small], [sizes[each] for each in small], seconds)
            for number, answer in zip(small, answers, strict=True):
                found[number] = answer
        return found

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """See `Folder`."""
        return self._read_range(name, start, stop)[0]

    def _read_range(self, name: str, start: int, stop: int) -> tuple[bytes, FileStat | None]:
        check_range(start, stop)
        if start == stop:
            return b"", None
        what = f"Reading bytes {start} to {stop} of"
        return self._run(what, name, lambda client, left: client.read_range(name, start, stop, left))

    def download(self, name: str, path: Path) -> None:
        """See `Folder`. The deadline holds for each part of 16 MiB, so that it need not know the size of the file."""
        with path.open("wb") as file, emptied_on_error(file):
            before = self.stat(name)
            versions = set()
            for start in range(0, before.bytes, PART_BYTES):
                data, version = self._read_range(name, start, min(start + PART_BYTES, before.bytes))
                versions.add(version)
                file.write(data)
            if None in versions:
                versions = {self.stat(name)}
            if any((version.bytes, version.etag) != (before.bytes, before.etag) for version in versions if version):
                raise StorageError(f"{self.url}/{name} changed while it was read.")

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        self._run("Writing", name, lambda client, left: client.write(name, data, left))

    def write_if(self, name: str, data: bytes, *, etag: str | None = None) -> bool:
        """See `Folder`. An attempt whose answer was lost may have succeeded, and is then reported as a failure."""
        return self._run("Writing", name, lambda client, left: client.write_if(name, data, etag, left))

    def upload(self, path: Path, name: str | None = None) -> None:
        """See `Folder`. A second for each MiB is added to the deadline, which would not let large files through."""
        extra = path.stat().st_size / 2**20
        name = name or path.name
        self._run("Writing", name, lambda client, left: client.upload(path, name, left + extra))

    def remove(self, names: Iterable[str]) -> None:
        """See `Folder`."""
        for name in names:
            self._run("Removing", name, functools.partial(_remove, name))

    def entries(self, *, recursive: bool = True) -> Iterator[Entry]:
        """See `Folder`. The deadline holds for each page of the list."""
        todo = [""]
        while todo:
            place = todo.pop()
            found, more = self._run("Listing", "", functools.partial(_list_page, place, recursive))
            yield from found
            todo += more

    def _run(self, verb: str, name: str, attempt: Callable[[FsspecClient, float], T]) -> T:
        url = f"{self.url}/{name}" if name else self.url
        try:
            return self._retry.run(f"{verb} {url}", lambda left: attempt(self._client(), left))
        except TorchslipError:
            raise
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "There is no such object", url) from error
        except PermissionError as error:
            raise PermissionError(errno.EACCES, f"The storage refused ({error})", url) from error
        except Exception as error:
            if not isinstance(error, OSError) and not of_network(error):
                raise  # a mistake in the arguments, say
            raise StorageError(f"{verb} {url} failed: {type(error).__name__}: {error}") from error

    def _client(self) -> FsspecClient:
        made = self._made
        if made is None or made[0] != os.getpid():
            kind = S3Client if self.url.startswith(tuple(f"{scheme}://" for scheme in S3_SCHEMES)) else FsspecClient
            self._made = made = os.getpid(), kind(self.url, self.options)
        return made[1]


def _list_page(place: str, recursive: bool, client: FsspecClient, left: float) -> tuple[list[Entry], list[str]]:
    return client.page(place, recursive, left)


def _remove(name: str, client: FsspecClient, left: float) -> None:
    client.remove(name, left)


@contextlib.contextmanager
def emptied_on_error(file: BinaryIO) -> Iterator[None]:
    """Leave no part of a file behind that could be taken for the whole."""
    try:
        yield
    except BaseException:
        file.truncate(0)
        raise
