"""MDS datasets as a snapshot pins them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torchslip.errors import StorageError
from torchslip.sources.mds._index import INDEX_NAME, Index
from torchslip.sources.mds._sidecar import SIDECAR_NAME
from torchslip.storage import Folder, Snapshot, has_state, open_folder, resolve

__all__ = ["check_pinned", "open_place"]


def open_place(
    path: str | os.PathLike[str], split: str | None, storage_options: Mapping[str, Any] | None
) -> tuple[Folder, Snapshot | None]:
    """The folder of a path, URL or link, or its sub-folder `split`, and what a link with a state means.

    Raises:
        FileNotFoundError: If there is no such snapshot.
    """
    base, snapshot = os.fspath(path), None
    if has_state(base):
        snapshot = resolve(base, label_mode="none", storage_options=storage_options)
        base = snapshot.base
    return open_folder(f"{base.rstrip('/') or '/'}/{split}" if split else base, storage_options), snapshot


def check_pinned(snapshot: Snapshot | None, folder: Folder, split: str | None, index: Index) -> None:
    """Compare the files of a dataset with what they were when the snapshot was taken, if there is one: in one listing.

    Raises:
        FileNotFoundError: If the snapshot lacks one.
        StorageError: If one is gone or has changed.
    """
    if snapshot is None:
        return
    wanted = {INDEX_NAME, SIDECAR_NAME}
    for info in index:
        kind = "zip_{}" if any(part.startswith("zip_") for part in info.files) else "raw_{}"
        wanted |= {
            info.files[kind.format(part)].basename for part in ("data", "meta") if kind.format(part) in info.files
        }
    prefix = f"{split}/" if split else ""
    pinned = {key.removeprefix(prefix): number for number, key in enumerate(snapshot.keys()) if key.startswith(prefix)}
    missing = sorted(wanted - {SIDECAR_NAME} - pinned.keys())
    if missing:
        raise FileNotFoundError(
            2, "A file of the dataset is not in the snapshot", f"{snapshot.link}: {prefix}{missing[0]}"
        )
    found = {name: stat for name, stat in folder.entries() if name in wanted}
    for name in sorted(wanted & pinned.keys()):
        if name not in found:
            raise StorageError(f"{snapshot.url(pinned[name])} is gone since the snapshot {snapshot.link}.")
        snapshot.check(pinned[name], found[name])
