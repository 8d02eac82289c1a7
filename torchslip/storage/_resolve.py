"""From a link to a snapshot: one process lists, and the others wait for what it finds."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.storage._folder import open_folder
from torchslip.storage._link import Link, parse_link
from torchslip.storage._manifest import NO_VERSION, Manifest, ManifestWriter, read_pins
from torchslip.storage._selection import LabelMode, Row, Selection, UnsortedError, select
from torchslip.storage._snapshot import Snapshot
from torchslip.storage._snapshot_store import Pointer, SnapshotStore, place_of

__all__ = ["resolve"]

LEASE_SECONDS = 30.0
TIMEOUT_SECONDS = 3600.0

_POLL_SECONDS = 0.05
_REMOTE_POLL_SECONDS = 0.5
_Known = tuple[Manifest, npt.NDArray[np.uint64]]
_proof = logging.getLogger("torchslip.proof")


def resolve(
    link: str | os.PathLike[str],
    *,
    recursive: bool = True,
    label_mode: LabelMode = "auto",
    require_labels: bool = False,
    extensions: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    lease_seconds: float = LEASE_SECONDS,
) -> Snapshot:
    """Find out which objects a dataset consists of, once for all processes that use the same store.

    Args:
        link: ``base``, ``base@refresh`` or ``base@sha256:<64 hex>``; the base is a folder, or a URL that fsspec knows.
            Without a state it means what it meant the last time, and what is there now if there was none.
        recursive: Whether to take objects in sub-folders.
        label_mode: ``imagefolder`` takes the first part of the key as the class, and leaves out objects that lie
            directly in the base; ``none`` takes everything, without labels; ``auto`` decides by what is there, and
            refuses a base that has both.
        require_labels: Whether an object without a class is an error.
        extensions: Endings of the keys to take, in any case, such as ``[".jpg", ".png"]``; None for all.
        store: The folder or URL that keeps snapshots. Default: ``torchslip/snapshots`` in the user's cache folder.
            Processes of several machines list only once if they share one.
        storage_options: For fsspec, of the base and of a store that is a URL.
        timeout_seconds: How long to wait for another process that lists the same.
        lease_seconds: How long a process that died while it listed keeps the others waiting; on a disk, not at all.

    Raises:
        FileNotFoundError: If there is no such base, nothing in it, or no snapshot with the hash in the store.
        FormatError: If labels are ambiguous or missing, or the store is damaged.
        ValueError: If the link or a combination of options is not valid.
        TimeoutError: If another process was still listing after `timeout_seconds`.
    """
    parsed = parse_link(link)
    endings = None if extensions is None else tuple(sorted({each.lower() for each in extensions}))
    selection = Selection(recursive, label_mode, require_labels, endings)
    options = dict(storage_options or {})
    kept = SnapshotStore(store, options)
    if parsed.hash is not None:
        snapshot = Snapshot(parsed.base, parsed.hash, kept, options).open()
        _proof.info("%s", {"event": "snapshot_resolved", "mode": "pinned", "manifest_hash": parsed.hash})
        return snapshot
    job = _Resolution(parsed, selection, options, kept)
    mode, digest = job.run(timeout_seconds, lease_seconds)
    _proof.info("%s", {"event": "snapshot_resolved", "mode": mode, "intent_key": job.key, "manifest_hash": digest})
    return Snapshot(parsed.base, digest, kept, options).open()


class _Resolution:
    """One process that wants to know what a link means."""

    def __init__(self, link: Link, selection: Selection, options: Mapping[str, Any], store: SnapshotStore) -> None:
        self._base = link.base
        self._refresh = link.refresh
        self._selection = selection
        self._options = dict(options)
        self._store = store
        self._place = place_of(link.base, options)
        self.key = hashlib.sha256(f"{self._place}{selection.text()}".encode()).hexdigest()[:32]

    def run(self, timeout_seconds: float, lease_seconds: float) -> tuple[str, str]:
        """How it was found, and the hash."""
        before = self._store.pointer(self.key)
        if before is not None and not self._refresh and self._is_kept(before):
            return "plain", before.hash
        if self._refresh:
            _proof.info("%s", {"event": "snapshot_refresh_requested", "intent_key": self.key})
        lease = self._store.lease(self.key, seconds=lease_seconds)
        poll_seconds = min(_POLL_SECONDS if self._store.is_local else _REMOTE_POLL_SECONDS, lease_seconds / 10)
        begin = time.monotonic()
        waits = False
        while True:
            if lease.take():
                try:
                    # Who held the lease a moment ago has published first.
                    if found := self._newer_than(before):
                        return "wait", found.hash
                    _proof.info("%s", {"event": "snapshot_indexer_elected", "intent_key": self.key})
                    return "refresh" if self._refresh else "create", self._index()
                finally:
                    lease.release()
            if found := self._newer_than(before):
                return "wait", found.hash
            if not waits:
                waits = True
                _proof.info("%s", {"event": "snapshot_index_wait", "intent_key": self.key})
            waited = time.monotonic() - begin
            if waited > timeout_seconds:
                _proof.warning("%s", {"event": "snapshot_index_wait_timeout", "intent_key": self.key})
                raise TimeoutError(
                    f"Another process has been listing {self._base} for more than {waited:.0f} s. Wait for it, or pass "
                    "a larger timeout_seconds."
                )
            time.sleep(poll_seconds)

    def _newer_than(self, before: Pointer | None) -> Pointer | None:
        found = self._store.pointer(self.key)
        return found if found is not None and (before is None or found.serial > before.serial) else None

    def _is_kept(self, pointer: Pointer) -> bool:
        try:
            self._store.manifest(pointer.hash)
        except FileNotFoundError:
            return False
        return True

    def _index(self) -> str:
        before = self._store.pointer(self.key)
        last = None if before is None else self._known(before.hash)
        digest, clash = self._list(last)
        while clash is not None:
            # Another link had this hash at this place when other bytes were there.
            digest, clash = self._list(clash)
        self._store.point(self.key, Pointer(digest, before.serial + 1 if before else 1))
        return digest

    def _list(self, last: _Known | None) -> tuple[str, _Known | None]:
        """The hash of what is there; and what was known under this hash, if objects were written again since."""
        try:
            return self._write(last, sort=False)
        except UnsortedError:
            return self._write(last, sort=True)

    def _write(self, last: _Known | None, *, sort: bool) -> tuple[str, _Known | None]:
        begin = time.monotonic()
        folder = open_folder(self._base, self._options)
        entries = folder.entries(recursive=self._selection.recursive)
        labels, rows = select(entries, self._selection, self._base, sort=sort)
        writer = ManifestWriter(self._store.temporary_folder(), labels=labels)
        try:
            for row in _marked(rows, last):
                writer.add(*row)
            digest = writer.finish()
            known = self._known(digest)
            if known is not None and not np.array_equal(known[1], read_pins(writer.pins_path, writer.objects)):
                return digest, known
            self._store.put(writer.path, digest, writer.pins_path, self._place)
        finally:
            writer.close()
        _proof.info(
            "%s",
            {
                "event": "snapshot_index_summary",
                "base": self._base,
                "recursive": self._selection.recursive,
                "label_mode": self._selection.label_mode,
                "objects_indexed": writer.objects,
                "scan_ms": round(1000 * (time.monotonic() - begin)),
            },
        )
        return digest, None

    def _known(self, digest: str) -> _Known | None:
        """A snapshot that was taken at this place, if the store has it whole."""
        pins = self._store.pins(digest, self._place)
        if pins is None:
            return None
        try:
            manifest = Manifest(self._store.manifest(digest), digest)
            return manifest, read_pins(pins, len(manifest))
        except (FileNotFoundError, FormatError):
            return None


def _marked(rows: Iterator[Row], last: _Known | None) -> Iterator[Row]:
    """Mark objects that were written again with the same size, where the store tells nothing of their content.

    Without the mark the manifest would be that of the older snapshot, which is not the same data any more. The mark
    stays in later snapshots.
    """
    if last is None:
        yield from rows
        return
    manifest, pins = last
    at = 0
    for key, size, version, pin in rows:
        while at < len(manifest) and manifest.key_bytes(at) < key:
            at += 1
        found = at < len(manifest) and manifest.key_bytes(at) == key
        if found and version == NO_VERSION and int(manifest.sizes[at]) == size:
            same = int(pins[at]) == pin
            version = manifest.version(at) if same else hashlib.sha256(b"pin%d" % pin).digest()[:16]
        yield key, size, version, pin
