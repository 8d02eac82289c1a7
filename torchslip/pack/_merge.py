"""One index for the datasets that several writers made side by side."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from torchslip.errors import FormatError
from torchslip.sources.mds import INDEX_NAME, Index, index_text
from torchslip.storage import open_folder, refuse_pinned

__all__ = ["merge_index"]

_FILES = ("raw_data", "raw_meta", "zip_data", "zip_meta")


def merge_index(
    parts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    exist_ok: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
) -> None:
    """Write the index of a dataset whose shards lie in sub-folders, one per writer.

    ::

        # in worker i of n:        MDSWriter(columns=columns, out=f"train/{i:05}")
        merge_index("train")

    Args:
        parts: The folder above them, of which every ``index.json`` at any depth is taken, in the order of their paths;
            or a list of the indexes, or of their folders, in the order that the samples shall have.
        out: With a list, the folder for the merged index; all parts must lie below it.
        exist_ok: Replace an index that is in the folder.
        storage_options: For URLs, as fsspec takes them.
        store: The folder or URL that keeps snapshots, see `torchslip.resolve`. What one of them has is not replaced.

    Raises:
        FileNotFoundError: If there is no part.
        FileExistsError: If there is an index in the folder.
        FormatError: If a part is not an MDS dataset, or has other columns than the first.
        ValueError: If `out` is missing, or a part does not lie below it.
    """
    if isinstance(parts, str | os.PathLike):
        if out is not None:
            raise ValueError("With one folder, the index goes into it; leave out the second argument.")
        out = parts
        folder = open_folder(out, storage_options)
        names = folder.walk(INDEX_NAME)
    else:
        if out is None:
            raise ValueError("With a list of parts, pass the folder for the merged index as second argument.")
        folder = open_folder(out, storage_options)
        names = [_below(os.fspath(part), os.fspath(out)) for part in parts]
    if not names:
        raise FileNotFoundError(f"There is no {INDEX_NAME} in the sub-folders of {out}.")
    if not exist_ok and INDEX_NAME in folder.names():
        raise FileExistsError(f"There is already an {INDEX_NAME} in {out}; pass exist_ok=True to replace it.")
    if INDEX_NAME in folder.names():
        refuse_pinned(folder, [INDEX_NAME], store=store)
    shards: list[dict[str, Any]] = []
    columns: object = None
    for name in names:
        text = folder.read(name).decode()
        for layout in _checked(text, name).layouts:
            columns = columns or layout.columns
            if layout.columns != columns:
                raise FormatError(f"{name} has the columns {layout.columns}, but the first part has {columns}.")
        for shard in json.loads(text)["shards"]:
            for key in _FILES:
                if shard.get(key):
                    shard[key]["basename"] = posixpath.join(posixpath.dirname(name), shard[key]["basename"])
            shards.append(shard)
    folder.write(INDEX_NAME, index_text(shards).encode())


def _checked(text: str, name: str) -> Index:
    try:
        return Index(text)
    except FormatError as error:
        raise FormatError(f"{error}: {name}") from error


def _below(part: str, out: str) -> str:
    """The index of `part` relative to `out`."""
    prefix = out.rstrip("/") + "/"
    name = part[len(prefix) :].strip("/")
    if not part.startswith(prefix) or not name:
        raise ValueError(f"Each part must lie below {out!r}; got {part!r}.")
    return name if posixpath.basename(name) == INDEX_NAME else f"{name}/{INDEX_NAME}"
