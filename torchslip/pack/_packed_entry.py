"""One packed dataset in a folder of such, and the same in a place that machines share.

::

    <root>/.torchslip-cache         says whose folder this is
    <root>/<64 hex>/                a packed dataset, named by the fingerprint of its source and options
    <root>/<64 hex>.lock            held by the process that builds, downloads or uploads it
    <root>/<64 hex>.shared          URLs at which it is known to be whole

    <remote>/<64 hex>/              the same dataset
    <remote>/<64 hex>.lock          the lease of the machine that builds or uploads it

The kernel releases a lock when its holder dies, and a lease ends by itself, so nobody waits for the dead. In both
places the index comes last: without it there is nothing. Equal fingerprints have equal bytes, so whoever goes on with
what another one left ends with the same.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torchslip.errors import FormatError, StorageError
from torchslip.pack._claim import PACKING_MARKER
from torchslip.pack._sync import dataset_at
from torchslip.pack._transfer import Transfer
from torchslip.sources import MDS
from torchslip.sources.mds import INDEX_NAME, SIDECAR_NAME, ArrayFile, Index, Sidecar
from torchslip.storage import (
    TEMPORARY_PREFIX,
    FileStat,
    Folder,
    Lease,
    LocalFolder,
    NodeCache,
    lease_at,
    locked,
    open_folder,
)

__all__ = ["Outcome", "PackedEntry"]

Outcome = Literal["found", "downloaded", "built", "busy"]

_POLL_SECONDS = 0.5
_DISK_ERRORS = {errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LOGGER = logging.getLogger(__name__)
_proof = logging.getLogger("torchslip.proof")


class PackedEntry:
    """A packed dataset that may be there, here or at the remote.

    Args:
        fingerprint: Of the recipe.
        root: The folder of such datasets on this machine; None for the default one.
        remote: A folder or URL that machines share, or None.
        storage_options: For the remote, as fsspec takes them.
        lease_seconds: How long a machine that died keeps others waiting.
    """

    def __init__(
        self,
        fingerprint: str,
        *,
        root: str | os.PathLike[str] | None,
        remote: str | os.PathLike[str] | None,
        storage_options: Mapping[str, Any] | None,
        lease_seconds: float,
    ) -> None:
        self.fingerprint = fingerprint
        self.name = fingerprint.rpartition(":")[2]
        self.root = NodeCache().root.parent / "packed" if root is None else Path(root).expanduser().absolute()
        self.path = self.root / self.name
        """Where the dataset is, or will be."""
        self._here = LocalFolder(self.path)
        self._url = None if remote is None else os.fspath(remote).rstrip("/")
        self._options = dict(storage_options or {})
        self._lease_seconds = lease_seconds
        self._distrusted: FileStat | None = None

    def find(self) -> MDS | None:
        """The dataset, if it is here and whole."""
        index = _whole(self._here, self.fingerprint)
        if index is None:
            return None
        for info in index:
            file = info.files.get("zip_data", info.files["raw_data"])
            try:
                if self._here.stat(file.basename).bytes != file.bytes:
                    return None
            except FileNotFoundError:
                return None
        return MDS(self.path)

    def obtain(self, build: Callable[[Path], object], *, wait: bool, timeout_seconds: float, show: bool) -> Outcome:
        """See to it that the dataset is here, and at the remote if there is one.

        Args:
            build: Packs it into a folder; goes on with what is there.
            wait: Whether to wait for others that are at it; else the result is ``busy``.
            timeout_seconds: How long.
            show: Whether to show progress bars.

        Raises:
            TimeoutError: If others were still at it after that.
            StorageError: If the root cannot be written.
            OSError: If the remote cannot be read or written.
        """
        here = self.find() is not None
        if here and self.is_shared() and not self._is_untidy():
            return "found"
        # Only the upload may be missing, which others may be at.
        deadline = time.monotonic() + (timeout_seconds if wait and not here else 0.0)
        try:
            NodeCache(self.root).claim()
            with self._locked(deadline) as alone:
                if alone:
                    if wait and here:
                        # Long enough to see whether who holds the lease is alive.
                        deadline = time.monotonic() + 2 * self._lease_seconds
                    return self._obtain(build, deadline, show)
        except OSError as error:
            if error.errno not in _DISK_ERRORS or isinstance(error, StorageError):
                raise
            if error.filename is not None and not str(error.filename).startswith(str(self.root)):
                raise
            raise StorageError(
                f"{self.root} cannot hold the packed dataset ({error.strerror}). Choose another folder as root, on a "
                "disk with room; what is finished there is kept."
            ) from error
        return "found" if self.find() is not None else "busy"

    @contextlib.contextmanager
    def _locked(self, deadline: float) -> Iterator[bool]:
        """Whether the lock is ours; without waiting if the deadline is over."""
        left = deadline - time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.root / f"{self.name}.lock", seconds=max(left, 0.0)))
                alone = True
            except TimeoutError as error:
                if left > 0.0:
                    raise TimeoutError(
                        f"Another process has been building {self.path} for more than {left:.0f} s. Wait for it, pass "
                        "a larger timeout_seconds, or wait=False to read the source meanwhile."
                    ) from error
                alone = False
            yield alone

    def _obtain(self, build: Callable[[Path], object], deadline: float, show: bool) -> Outcome:
        found = self.find() is not None
        if found:
            self._tidy()
        if found and self.is_shared():
            return "found"
        if self._url is None:
            self._build(build)
            return "built"
        there, lease = open_folder(f"{self._url}/{self.name}", self._options), self._lease()
        while True:
            if not found and self._download(there, show):
                self._note_shared()
                return "downloaded"
            if found and _whole(there, self.fingerprint) is not None:
                self._note_shared()
                return "found"
            if lease.take():
                break
            if time.monotonic() >= deadline:
                return "found" if found else "busy"
            time.sleep(min(_POLL_SECONDS, self._lease_seconds / 10))
        try:
            # Who held the lease a moment ago has finished it.
            if not found and self._download(there, show):
                self._note_shared()
                return "downloaded"
            if not found:
                self._build(build)
            self._upload(there, show)
            self._note_shared()
            return "found" if found else "built"
        finally:
            lease.release()

    def _is_untidy(self) -> bool:
        """Whether a packer was killed after its index, but before it removed its notes."""
        return (self.path / PACKING_MARKER).exists() and os.access(self.path, os.W_OK)

    def _tidy(self) -> None:
        self._here.remove(name for name in self._here.names() if name.startswith((PACKING_MARKER, TEMPORARY_PREFIX)))

    def _lease(self) -> Lease:
        return lease_at(open_folder(str(self._url), self._options), f"{self.name}.lock", seconds=self._lease_seconds)

    def _build(self, build: Callable[[Path], object]) -> None:
        names = self._here.names()
        if names and (INDEX_NAME in names or PACKING_MARKER not in names):
            # Damaged, or a download that was not finished: nothing that could be gone on with.
            shutil.rmtree(self.path)
        _proof.info("%s", {"event": "packed_cache_build", "path": str(self.path)})
        build(self.path)

    def _download(self, there: Folder, show: bool) -> bool:
        """Copy the dataset from the remote; False if it is not there, or is not what it should be."""
        try:
            if there.stat(INDEX_NAME) == self._distrusted:
                return False
        except FileNotFoundError:
            return False
        try:
            dataset = dataset_at(there) if _whole(there, self.fingerprint) is not None else None
            if dataset is None:
                raise FormatError("it is not the dataset that its name says")
            if INDEX_NAME in self._here.names():
                self._here.remove([INDEX_NAME])
            for items in ([item for item in dataset.items() if item.name != INDEX_NAME], [*dataset.items()][-1:]):
                transfer = Transfer(there, self._here, items, show=show)
                transfer.compare()
                transfer.copy()
        except (FileNotFoundError, FormatError) as error:
            self._distrust(there, error)
            return False
        self._tidy()
        _proof.info("%s", {"event": "packed_cache_download", "path": str(self.path), "url": str(there)})
        return self.find() is not None

    def _distrust(self, there: Folder, error: Exception) -> None:
        with contextlib.suppress(FileNotFoundError):  # somebody mends it
            self._distrusted = there.stat(INDEX_NAME)
        _LOGGER.warning("%s is damaged and will be built again from its source: %s", there, error)
        _proof.warning("%s", {"event": "packed_cache_damaged", "url": str(there), "reason": str(error)})

    def _upload(self, there: Folder, show: bool) -> None:
        dataset = dataset_at(self._here)
        assert dataset is not None
        if self._distrusted is not None:
            there.remove([INDEX_NAME])
        for items in ([item for item in dataset.items() if item.name != INDEX_NAME], [*dataset.items()][-1:]):
            transfer = Transfer(self._here, there, items, show=show)
            transfer.compare()
            transfer.copy()
        _proof.info("%s", {"event": "packed_cache_upload", "path": str(self.path), "url": str(there)})

    @property
    def _shared_name(self) -> str:
        return f"{self.name}.shared"

    def is_shared(self) -> bool:
        """Whether it is known to be at the remote, or there is none."""
        if self._url is None:
            return True
        try:
            return self._url in (self.root / self._shared_name).read_text().splitlines()
        except FileNotFoundError:
            return False

    def _note_shared(self) -> None:
        path = self.root / self._shared_name
        urls = path.read_text().splitlines() if path.exists() else []
        LocalFolder(self.root).write(self._shared_name, "".join(f"{url}\n" for url in {*urls, self._url}).encode())


def _whole(folder: Folder, fingerprint: str) -> Index | None:
    """The index of the dataset in a folder, if that is the one with this fingerprint."""
    try:
        index = Index.decode(folder.read(INDEX_NAME), f"{folder}/{INDEX_NAME}")
        sidecar = Sidecar.parse(ArrayFile.parse(folder.read(SIDECAR_NAME), SIDECAR_NAME))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    ours = sidecar.dataset == f"mds:sha256:{index.fingerprint}" and sidecar.packed.get("fingerprint") == fingerprint
    return index if ours else None
