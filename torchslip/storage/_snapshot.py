"""Snapshots: which objects a dataset consists of, listed once and the same for everyone who has the hash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import StorageError
from torchslip.storage._folder import Folder, is_remote, open_folder
from torchslip.storage._manifest import NO_VERSION, Manifest, content_version, pin_of, read_pins
from torchslip.storage._remote import RemoteFolder
from torchslip.storage._snapshot_store import SnapshotStore, place_of
from torchslip.storage._stat import FileStat

__all__ = ["Snapshot"]


class Snapshot:
    """The objects of a dataset at one time: keys, sizes, labels, and how to tell that they have not changed since.

    It pickles as the path and the hash of its manifest, and each process maps the file when it first asks for
    something, so a million objects cost a process no memory of its own.

    Attributes:
        base: The folder or URL that the keys are relative to.
        hash: SHA-256 of the manifest: equal for equal data at two places.
    """

    def __init__(self, base: str, digest: str, store: SnapshotStore, options: Mapping[str, Any]) -> None:
        self.base = base
        self.hash = digest
        self._store = store
        self._options = dict(options)
        self._folder = open_folder(base, self._options)
        self._opened: tuple[Manifest, npt.NDArray[np.uint64] | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        return f"Snapshot({self.link!r}: {len(self)} objects)"

    def __len__(self) -> int:
        return len(self._manifest)

    @property
    def link(self) -> str:
        """The link to exactly this: ``base@sha256:<hash>``."""
        return f"{self.base}@sha256:{self.hash}"

    @property
    def folder(self) -> Folder:
        """Where the objects lie; it takes their keys as names."""
        return self._folder

    @property
    def total_bytes(self) -> int:
        """Of all objects together."""
        return self._manifest.bytes

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each object, int64 ``[len]``."""
        return self._manifest.sizes

    @property
    def classes(self) -> list[str]:
        """The names of the labels, sorted; empty without labels."""
        return self._manifest.classes

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The label of each object, int64 ``[len]``; None without labels."""
        return self._manifest.labels_of(np.arange(len(self))) if self.classes else None

    def key(self, index: int) -> str:
        """The path of an object below the base, with ``/``."""
        return self._manifest.key(index)

    def keys(self) -> Iterator[str]:
        """All keys, in the order of their bytes."""
        return map(self._manifest.key, range(len(self)))

    def labels_of(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The labels of some objects, int64; only with labels."""
        return self._manifest.labels_of(indices)

    def url(self, index: int) -> str:
        """The path or URL of an object."""
        return f"{self.base}/{self.key(index)}"

    def ends_with(self, suffixes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each key ends in one of `suffixes`, which are lower case, in any case of letters: bool ``[len]``."""
        return self._manifest.ends_with(suffixes)

    def read(self, index: int) -> bytes:
        """The bytes of an object, if they are still those that the snapshot means.

        Raises:
            StorageError: If it cannot be read, or has changed.
            FileNotFoundError: If it is gone.
        """
        data, found = self.folder.read_whole(self.key(index))
        self.check(index, found)
        return data

    def read_many(self, indices: Sequence[int]) -> list[bytes | None]:
        """The bytes of objects that can be read quickly and are still those that the snapshot means.

        Returns:
            None for all others, which `read` reads, or says why it cannot.
        """
        if not isinstance(self.folder, RemoteFolder):
            return [None] * len(indices)
        sizes = self._manifest.sizes[list(indices)].tolist()
        found = self.folder.read_many([self.key(index) for index in indices], sizes)
        return [
            None if answer is None or self._difference(index, answer[1]) else answer[0]
            for index, answer in zip(indices, found, strict=True)
        ]

    @property
    def is_remote(self) -> bool:
        """Whether the objects lie on another machine or in an object store."""
        return is_remote(self.base)

    def check(self, index: int, found: FileStat) -> None:
        """Compare what is there now with what was there when the snapshot was taken.

        Raises:
            StorageError: If it is not the same.
        """
        if what := self._difference(index, found):
            raise StorageError(
                f"{self.url(index)} changed since the snapshot: {what}. Resolve {self.base}@refresh to take the data "
                "as they are now."
            )

    def _difference(self, index: int, found: FileStat) -> str | None:
        manifest, pins = self._open()
        size, version = int(manifest.sizes[index]), manifest.version(index)
        if found.bytes != size:
            return f"it has {found.bytes} bytes and had {size}"
        if pins is not None and pin_of(found) != int(pins[index]):
            return "it was written again" if found.etag is None else "its ETag is another one"
        if pins is None and NO_VERSION not in (version, now := content_version(found)) and version != now:
            return "its ETag is another one"
        return None

    def open(self) -> Snapshot:
        """Check the manifest and map it now, rather than at first use.

        Raises:
            FileNotFoundError: If the store does not have it.
            FormatError: If it is damaged.
        """
        self._open()
        return self

    @property
    def _manifest(self) -> Manifest:
        return self._open()[0]

    def _open(self) -> tuple[Manifest, npt.NDArray[np.uint64] | None]:
        if self._opened is None:
            manifest = Manifest(self._store.manifest(self.hash), self.hash)
            pins = self._store.pins(self.hash, place_of(self.base, self._options))
            self._opened = manifest, None if pins is None else read_pins(pins, len(manifest))
        return self._opened
