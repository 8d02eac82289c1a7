"""Taking a folder for a new dataset, without removing what is not ours."""

from __future__ import annotations

import os
import re

from torchslip.errors import FormatError
from torchslip.sources.mds import INDEX_NAME, SIDECAR_NAME, Index
from torchslip.storage import TEMPORARY_PREFIX, Folder, refuse_pinned

__all__ = ["PACKING_MARKER", "WRITING_MARKER", "claim", "packing_note"]

WRITING_MARKER = ".torchslip-writing"
"""Lies in a local folder while a writer is at work there, and stays if it is killed."""

PACKING_MARKER = ".torchslip-packing"
"""Lies in a folder while `pack` is at work there, with notes of what is finished, and stays if it is killed."""

_MARKERS = (WRITING_MARKER, PACKING_MARKER)
_SHARD_NAME = re.compile(r"shard\.\d{5,}\.mds(\.[a-z0-9]+)?")


def claim(folder: Folder, *, exist_ok: bool, remote: bool, store: str | os.PathLike[str] | None = None) -> None:
    """Make sure that no dataset is in `folder`, or remove the one that is.

    Removed are the index, first, then the files that it lists, and what a killed writer left. If there is anything
    else, or if a snapshot has one of these files, nothing is removed.

    Args:
        folder: Where the dataset will go.
        exist_ok: Whether a dataset may be removed.
        remote: Whether the folder is only uploaded to. Then shards without an index are no obstacle: they are what an
            upload left that did not end, and are written over.
        store: The folder or URL that keeps snapshots.

    Raises:
        FileExistsError: If there is something and `exist_ok` is False, something that is not part of a dataset, or
            something that a snapshot has.
    """
    names = folder.names()
    unfinished = any(marker in names for marker in _MARKERS)
    if not names:
        return
    if remote and not unfinished and INDEX_NAME not in names:
        written_over = [name for name in names if name == SIDECAR_NAME or _SHARD_NAME.fullmatch(name)]
        refuse_pinned(folder, written_over, store=store)
        return
    if all(name.startswith(TEMPORARY_PREFIX) for name in names):  # killed at its very first file
        folder.remove(names)
        return
    if not exist_ok:
        what = "an unfinished dataset" if unfinished and INDEX_NAME not in names else f"files ({names[0]}, ...)"
        raise FileExistsError(
            f"There are already {what} in {folder}. Choose an empty folder, or pass exist_ok=True to replace a dataset "
            "that is there."
        )
    ours = {INDEX_NAME, SIDECAR_NAME, *_listed(folder)} if INDEX_NAME in names else set()
    ours |= {name for name in names if name.startswith((TEMPORARY_PREFIX, f"{PACKING_MARKER}-"))}
    if unfinished:
        ours |= {*_MARKERS, SIDECAR_NAME, *(name for name in names if _SHARD_NAME.fullmatch(name))}
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise FileExistsError(
            f"{folder} holds what is not part of an MDS dataset ({', '.join(foreign[:3])}), so nothing was removed "
            "from it. exist_ok=True replaces what an index there lists, and nothing else: choose another folder, or "
            "empty this one yourself."
        )
    refuse_pinned(folder, ours, store=store)
    if not unfinished:  # should this be killed, the rest must not look like the files of somebody else
        folder.write(WRITING_MARKER, b"A dataset is being replaced here.\n")
        ours.add(WRITING_MARKER)
    folder.remove(sorted(ours, key=lambda name: (name != INDEX_NAME, name in _MARKERS, name)))


def packing_note(number: int) -> str:
    """The name of the note that a packer leaves of shard `number`."""
    return f"{PACKING_MARKER}-{number:05}"


def _listed(folder: Folder) -> list[str]:
    try:
        index = Index(folder.read(INDEX_NAME).decode())
    except (FormatError, UnicodeDecodeError) as error:
        raise FileExistsError(
            f"{INDEX_NAME} in {folder} is not the index of an MDS dataset, so nothing was removed: {error}"
        ) from error
    return [file.basename for info in index for file in info.files.values()]
