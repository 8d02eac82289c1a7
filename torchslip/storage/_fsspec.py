"""Files through fsspec: one attempt of every operation, within a time limit where the file system knows one."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchslip.errors import MissingDependencyError, StorageError
from torchslip.storage._listing import Entry
from torchslip.storage._retry import WrongAnswerError
from torchslip.storage._stat import FileStat, too_short

__all__ = ["FsspecClient", "filesystem_of", "stat_of"]

# What different file systems call it; "created" is that of the version, where there is nothing else.
_MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")
_FILESYSTEMS: dict[tuple[int, str, str], tuple[Any, str]] = {}


def filesystem_of(
    url: str,
    options: Mapping[str, Any],
    *,
    depends_on: Mapping[str, str] | None = None,
    prepare: Callable[[Any], None] = lambda _: None,
) -> Any:
    """The file system of a URL, and the path there; one for each process and set of options.

    fsspec has such a cache too, which a forked process clears: then its file systems wait for a thread that the fork
    did not copy in order to close their connections. What a parent made stays untouched here, so nothing closes it.

    Args:
        url: With a scheme.
        options: For fsspec.
        depends_on: What else it is made from: with other values, another one is made.
        prepare: Called with a file system that was made anew.
    """
    import fsspec

    key = (os.getpid(), url, fsspec.utils.tokenize(options, depends_on))
    found = _FILESYSTEMS.get(key)
    if found is None:
        try:
            made = fsspec.core.url_to_fs(url, **({} if "::" in url else {"skip_instance_cache": True}), **options)
        except ImportError as error:
            raise MissingDependencyError(f"{url} needs another package: {error}") from error
        prepare(made[0])
        # Two threads may both come here; both then use the first one's.
        found = _FILESYSTEMS.setdefault(key, made)
    return found


class FsspecClient:
    """Operations on the files below one URL of any file system that fsspec knows.

    Args:
        url: The folder.
        options: For fsspec.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._fs, root = filesystem_of(url, options)
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _limit(self, seconds: float) -> dict[str, float]:
        return {"timeout": seconds} if self._fs.async_impl else {}

    def names(self, seconds: float) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=False, **self._limit(seconds))
        except FileNotFoundError:
            return []
        return sorted(name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]))

    def walk(self, name: str, seconds: float) -> list[str]:
        self._fs.invalidate_cache()
        prefix = f"{self._root}/"
        found = (str(each) for each in self._fs.find(self._root, **self._limit(seconds)))
        below = (each[each.index(prefix) + len(prefix) :] for each in found if prefix in each)
        return sorted(each for each in below if each.endswith(f"/{name}"))

    def stat(self, name: str, seconds: float) -> FileStat:
        self._fs.invalidate_cache(self._path(name))
        info = self._fs.info(self._path(name), **self._limit(seconds))
        if info.get("type") == "directory":
            raise FileNotFoundError(f"{self._url}/{name} is a folder")
        return stat_of(info, f"{self._url}/{name}")

    def read(self, name: str, seconds: float) -> bytes:
        return self.read_whole(name, seconds)[0]

    def read_whole(self, name: str, seconds: float) -> tuple[bytes, FileStat | None]:
        """All bytes of a file, and what the answer says of it, if anything."""
        return bytes(self._fs.cat_file(self._path(name), **self._limit(seconds))), None

    def read_many(
        self, names: Sequence[str], sizes: Sequence[int], seconds: float
    ) -> list[tuple[bytes, FileStat] | None]:
        """Of each file what `read_whole` gives, in one try; None for what has to be read by itself."""
        return [None] * len(names)

    def read_range(self, name: str, start: int, stop: int, seconds: float) -> tuple[bytes, FileStat | None]:
        """The bytes, and what the answer says of the whole file, if anything."""
        data = bytes(self._fs.cat_file(self._path(name), start=start, end=stop, **self._limit(seconds)))
        if len(data) != stop - start:
            size = self.stat(name, seconds).bytes
            if size < stop:
                raise too_short(f"{self._url}/{name}", size, start, stop)
            raise WrongAnswerError(f"{len(data)} bytes came instead of {stop - start}")
        return data, None

    def write(self, name: str, data: bytes, seconds: float) -> None:
        self._fs.pipe_file(self._path(name), data, **self._limit(seconds))

    def write_if(self, name: str, data: bytes, etag: str | None, seconds: float) -> bool:
        # fsspec has no common way to make this one step.
        if etag is None and self._fs.exists(self._path(name), **self._limit(seconds)):
            return False
        self.write(name, data, seconds)
        return True

    def upload(self, path: Path, name: str, seconds: float) -> None:
        self._fs.put_file(str(path), self._path(name), **self._limit(seconds))

    def remove(self, name: str, seconds: float) -> None:
        if self._fs.exists(self._path(name), **self._limit(seconds)):
            self._fs.rm_file(self._path(name), **self._limit(seconds))

    def page(self, place: str, recursive: bool, seconds: float) -> tuple[list[Entry], list[str]]:
        """Some files, and the places where there are more: sub-folders here, the next page in an object store."""
        self._fs.invalidate_cache()
        root = f"{self._root}/{place}".rstrip("/")
        found = self._fs.ls(root, detail=True, **self._limit(seconds))
        files, folders = [], []
        for info in found:
            name = place + str(info["name"]).rstrip("/").rpartition("/")[2]
            if info["type"] != "directory":
                files.append((name, stat_of(info, f"{self._url}/{name}")))
            elif recursive:
                folders.append(f"{name}/")
        return files, folders


def stat_of(info: Mapping[str, Any], url: str) -> FileStat:
    """What fsspec's description of a file says."""
    size = info.get("size")
    if size is None:
        raise StorageError(f"{url}: the server does not tell its size, so it cannot be read in parts or checked.")
    etag = info.get("ETag") or info.get("etag")
    modified = next((info[key] for key in _MODIFIED if info.get(key)), None)
    if isinstance(modified, datetime.datetime):
        modified = modified.timestamp()
    return FileStat(
        bytes=int(size),
        etag=str(etag).strip('"') if etag else None,
        mtime_ns=round(modified * 1e9) if isinstance(modified, int | float) else None,
    )
