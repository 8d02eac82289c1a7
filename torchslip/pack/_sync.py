"""A dataset, or any folder, as a copy at another place."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchslip.errors import FormatError
from torchslip.pack._transfer import JOBS, Item, Transfer
from torchslip.sources.mds import INDEX_NAME, SIDECAR_NAME, Index
from torchslip.storage import (
    TEMPORARY_PREFIX,
    Folder,
    LocalFolder,
    Snapshot,
    has_state,
    locked_folder,
    open_folder,
    refuse_pinned,
    resolve,
)

__all__ = ["Dataset", "Synced", "dataset_at", "sync"]

_MAX_NAMED = 3


@dataclass(frozen=True, slots=True)
class Synced:
    """A copy.

    Attributes:
        path: Where it is.
        files: How many it has.
        bytes: How many it has.
        copied_files: How many were copied now; the others were there.
        copied_bytes: Of those.
    """

    path: str
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """The files of an MDS dataset.

    Attributes:
        folder: Where they are.
        index: The bytes of the index, which say what the others are.
        shards: The shards' files.
        sidecar: What goes with the index, if it is there.
    """

    folder: Folder
    index: bytes
    shards: Sequence[Item]
    sidecar: Item | None

    def items(self) -> Iterator[Item]:
        """All files, the index last."""
        yield from self.shards
        if self.sidecar is not None:
            yield self.sidecar
        digest = {"sha256": hashlib.sha256(self.index).hexdigest()}
        yield Item(INDEX_NAME, len(self.index), digest)


def dataset_at(folder: Folder) -> Dataset | None:
    """The MDS dataset in a folder, if there is one.

    Raises:
        FormatError: If its index is damaged.
    """
    try:
        data = folder.read(INDEX_NAME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if b'"shards"' not in data:
        return None
    shards = []
    for info in Index.decode(data, f"{folder}/{INDEX_NAME}"):
        for part in ("data", "meta"):
            file = info.files.get(f"zip_{part}", info.files.get(f"raw_{part}"))
            if file is not None:
                shards.append(Item(file.basename, file.bytes, file.hashes))
    try:
        stat = folder.stat(SIDECAR_NAME)
    except FileNotFoundError:
        return Dataset(folder, data, shards, None)
    return Dataset(folder, data, shards, Item(SIDECAR_NAME, stat.bytes, stat=stat))


def sync(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    replace: bool = False,
    jobs: int = JOBS,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    target_storage_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Synced:
    """Make a copy of a dataset, or complete one: a URL into a folder, a folder to a URL, or any two of these.

    Of an MDS dataset the shards are copied, then the sidecar, and the index last, so that nobody takes an unfinished
    copy for a whole one. Of any other folder or snapshot, all files are copied. A file appears under its name when it
    is whole and checked: its size, its hash where the index has one, and that it is what was listed.

    Killed at any moment, the same call goes on with the files that are missing. What is there is compared first: by
    the hash of the index, an MD5 that the store tells, or the time of modification, which copies of a disk keep.

    Args:
        source: A folder, a URL, or a link to a snapshot, see `torchslip.resolve`.
        target: A folder or a URL.
        replace: Whether files that are there under the same names, but are others, may be replaced, and with them the
            dataset that they belong to.
        jobs: How many files to copy at a time.
        progress: Show progress bars on a terminal.
        storage_options: For the storage of the source, as fsspec takes them.
        target_storage_options: For that of the target. Default: those of the source, if that is a URL too.
        store: The folder or URL that keeps snapshots. What one of them has is not replaced.

    Raises:
        FileNotFoundError: If there is nothing at the source.
        FileExistsError: If there is something else at the target, and `replace` is False, or a snapshot has it.
        FormatError: If a file is damaged at the source, or its name would lead out of the target.
        TimeoutError: If another process copies into the same folder.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}.")
    there = open_folder(target, storage_options if target_storage_options is None else target_storage_options)
    dataset: Dataset | None = None
    if has_state(source):
        snapshot = resolve(source, label_mode="none", store=store, storage_options=storage_options)
        here, items = snapshot.folder, _items_of(snapshot)
    else:
        here = open_folder(source, storage_options)
        dataset = dataset_at(here)
        items = list(dataset.items()) if dataset is not None else _listed(here)
    if not items:
        raise FileNotFoundError(2, "There is nothing to copy in", str(here))
    with _alone_in(there):
        return _copy(here, there, items, dataset, replace=replace, jobs=jobs, show=progress, store=store)


def _items_of(snapshot: Snapshot) -> list[Item]:
    sizes = snapshot.sizes.tolist()
    return [
        Item(key, size, check=functools.partial(snapshot.check, number))
        for number, (key, size) in enumerate(zip(snapshot.keys(), sizes, strict=True))
    ]


def _listed(folder: Folder) -> list[Item]:
    """All files, save what was never finished."""
    return [
        Item(name, stat.bytes, stat=stat)
        for name, stat in folder.entries()
        if not PurePosixPath(name).name.startswith(TEMPORARY_PREFIX)
    ]


def _copy(
    here: Folder,
    there: Folder,
    items: Sequence[Item],
    dataset: Dataset | None,
    *,
    replace: bool,
    jobs: int,
    show: bool,
    store: str | os.PathLike[str] | None,
) -> Synced:
    # What makes the others a dataset comes after them.
    last = [item for item in items if PurePosixPath(item.name).name == INDEX_NAME]
    first = [item for item in items if item not in last]
    transfers = [Transfer(here, there, group, jobs=jobs, show=show) for group in (first, last)]
    for transfer in transfers:
        transfer.compare()
    different = [item.name for transfer in transfers for item in transfer.different]
    # Under an index that is the same, a file that is not what the index says is damaged.
    is_repair = dataset is not None and not (transfers[1].missing or transfers[1].different)
    if different and not (replace or is_repair):
        named = ", ".join(different[:_MAX_NAMED]) + (", ..." if len(different) > _MAX_NAMED else "")
        raise FileExistsError(
            f"{len(different)} files in {there} are others than those of the same names in {here} ({named}), so "
            "nothing was changed. Choose another folder, or pass replace=True (--replace) to replace them."
        )
    obsolete: list[str] = []
    if dataset is not None and transfers[1].different:
        obsolete = sorted(_names_in(there) - {item.name for item in items})
    refuse_pinned(there, [*different, *obsolete], store=store)
    if dataset is not None and transfers[1].different:
        there.remove([INDEX_NAME])
    todo = [item for transfer in transfers for item in (*transfer.missing, *transfer.different)]
    for transfer in transfers:
        transfer.copy()
    there.remove(obsolete)
    return Synced(
        str(there),
        files=len(items),
        bytes=sum(item.bytes for item in items),
        copied_files=len(todo),
        copied_bytes=sum(item.bytes for item in todo),
    )


def _names_in(folder: Folder) -> set[str]:
    """The files of the dataset in a folder, save its index; nothing if there is none that can be read."""
    try:
        dataset = dataset_at(folder)
    except FormatError:
        return set()
    return set() if dataset is None else {item.name for item in dataset.items()} - {INDEX_NAME}


@contextlib.contextmanager
def _alone_in(folder: Folder) -> Iterator[None]:
    if not isinstance(folder, LocalFolder):
        yield
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder.path):
        yield
