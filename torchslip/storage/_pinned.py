"""Which files of a folder snapshots speak of: those may not be written over while a store keeps the snapshot."""

from __future__ import annotations

import bisect
import os
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torchslip.errors import FormatError
from torchslip.storage._folder import Folder, LocalFolder
from torchslip.storage._manifest import Manifest, pin_of, read_pins
from torchslip.storage._remote import RemoteFolder
from torchslip.storage._snapshot_store import SnapshotStore, place_of

__all__ = ["refuse_pinned"]


def refuse_pinned(folder: Folder, names: Collection[str], *, store: str | os.PathLike[str] | None = None) -> None:
    """Make sure that no snapshot has one of these files, as it is now.

    Asked is one store, about the snapshots that were taken of the folder, of those above it, and of those below it
    where the files are.

    Args:
        folder: Where the files are.
        names: Their paths below it, with ``/``.
        store: The folder or URL that keeps snapshots; default: that of `torchslip.resolve`.

    Raises:
        FileExistsError: If a snapshot has one; it names both, and says what to do.
    """
    if not names:
        return
    base = os.path.abspath(folder.path) if isinstance(folder, LocalFolder) else str(folder)  # noqa: PTH100  (as links)
    options: Mapping[str, Any] = folder.options if isinstance(folder, RemoteFolder) else {}
    kept = SnapshotStore(store, options)
    pins_now: dict[str, int] | None = None
    for place_base, keys in _places(base, names):
        place = place_of(place_base, options)
        for digest in kept.taken_at(place):
            for name, pin in _pins(kept, place, digest, keys):
                if pins_now is None:
                    pins_now = {key: pin_of(found) for key, found in folder.entries()}
                # What has changed since then is lost for the snapshot already.
                if pins_now.get(name) == pin:
                    raise FileExistsError(
                        f"{folder}/{name} belongs to the snapshot {place_base}@sha256:{digest}, which could not be "
                        "read any more if the file was replaced, so nothing was changed. Write to another folder; or, "
                        f"if nobody needs that snapshot, remove {kept.url}/pins/{place}/{digest} first."
                    )


def _places(base: str, names: Collection[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Bases that a snapshot with these files can have, with the key of each file below each base and its name."""
    scheme, separator, path = base.partition("://")
    root = path if separator else base
    above, below = root, ""
    while True:
        text = f"{scheme}://{above}" if separator else above
        yield text, {below + name: name for name in names}
        parent, _, last = above.rstrip("/").rpartition("/")
        if not last or (separator and not parent):
            break
        above, below = parent or "/", f"{last}/{below}"
    for sub in sorted({posixpath.dirname(name) for name in names} - {""}):
        yield f"{base}/{sub}", {name[len(sub) + 1 :]: name for name in names if name.startswith(f"{sub}/")}


def _pins(store: SnapshotStore, place: str, digest: str, keys: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Which of the files the snapshot has, and what tells whether they are still the same."""
    try:
        manifest = Manifest(store.manifest(digest), digest)
        path = store.pins(digest, place)
        pins = None if path is None else read_pins(path, len(manifest))
    except (FileNotFoundError, FormatError):  # nobody can read with it
        return
    if pins is None:
        return
    for key, name in keys.items():
        wanted = key.encode("utf-8", "surrogateescape")
        at = bisect.bisect_left(range(len(manifest)), wanted, key=manifest.key_bytes)
        if at < len(manifest) and manifest.key_bytes(at) == wanted:
            yield name, int(pins[at])
