"""Where snapshots are kept, on a disk or in an object store.

::

    manifests/<hash>            which objects; never changes, and is named by its content
    pins/<place>/<hash>         how to tell that they are still the same at this place; never changes
    links/<key>.json            which snapshot a link without a hash means; the only thing that moves
    links/<key>.lock            held by the process that lists, see `Lease`

``place`` is a hash of the base and the server, ``key`` of these and of everything that the user asked for, so that the
same folder with ``recursive=False``, say, is another link. What is in an object store is copied to the user's cache
folder, and mapped from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchslip.errors import FormatError
from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, open_folder
from torchslip.storage._lease import Lease, lease_at
from torchslip.storage._manifest import file_hash

__all__ = ["Pointer", "SnapshotStore", "default_store", "place_of"]

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pointer:
    """What a link means.

    Attributes:
        hash: Of the manifest.
        serial: Counts how often the link was resolved anew: a larger one is newer, whatever the clocks say.
    """

    hash: str
    serial: int


def default_store() -> Path:
    """``torchslip/snapshots`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "torchslip" / "snapshots"


def place_of(base: str, options: Mapping[str, Any]) -> str:
    """Names a base: two servers may have buckets of one name."""
    endpoint = options.get("endpoint_url") or (options.get("client_kwargs") or {}).get("endpoint_url")
    if endpoint is None and base.startswith(("s3://", "s3a://")):
        variables = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        endpoint = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    return hashlib.sha256(json.dumps([base, endpoint]).encode()).hexdigest()[:32]


class SnapshotStore:
    """Keeps snapshots.

    Args:
        url: A folder or URL; None for the user's cache folder.
        options: For fsspec.
    """

    def __init__(self, url: str | os.PathLike[str] | None, options: Mapping[str, Any] | None = None) -> None:
        self.url = os.fspath(url) if url is not None else str(default_store())
        self.options = dict(options or {})
        place = self._folder("links")
        self._local = place.path.parent if isinstance(place, LocalFolder) else default_store()
        self.is_local = isinstance(place, LocalFolder)
        """Whether it lies on this machine."""

    def _folder(self, name: str) -> Folder:
        return open_folder(f"{self.url.rstrip('/')}/{name}", self.options)

    def temporary_folder(self) -> Path:
        """Where files are prepared: on the disk that they will be on."""
        self._local.mkdir(parents=True, exist_ok=True)
        return self._local

    def lease(self, key: str, *, seconds: float) -> Lease:
        """The right to list what a link names."""
        return lease_at(self._folder("links"), f"{key}.lock", seconds=seconds)

    def pointer(self, key: str) -> Pointer | None:
        """What a link means; None if it was never resolved."""
        try:
            text = self._folder("links").read(f"{key}.json")
        except FileNotFoundError:
            return None
        try:
            values = json.loads(text)
            return Pointer(hash=values["hash"], serial=values["serial"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(
                f"{self.url}/links/{key}.json is not what torchslip wrote there ({error}); remove it, and the link is "
                "resolved anew."
            ) from error

    def point(self, key: str, pointer: Pointer) -> None:
        """Let a link mean something else from now on."""
        self._folder("links").write(f"{key}.json", json.dumps(asdict(pointer)).encode())

    def put(self, manifest: Path, digest: str, pins: Path, place: str) -> None:
        """Keep a manifest and its pins. What is there already stays, unless it is damaged."""
        for path, folder, name, expected in (
            (pins, f"pins/{place}", digest, None),
            (manifest, "manifests", digest, digest),
        ):
            target = self._local / folder / name
            if not target.exists() or (expected is not None and _hash(target) != expected):
                LocalFolder(target.parent).upload(path, name)
            if not self.is_local:
                remote = self._folder(folder)
                if name not in remote.names() or remote.stat(name).bytes != target.stat().st_size:
                    remote.upload(target)

    def manifest(self, digest: str) -> Path:
        """The file of a manifest on this machine.

        Raises:
            FileNotFoundError: If the store has none with this hash.
        """
        found = self._fetch("manifests", digest, digest)
        if found is None:
            raise FileNotFoundError(2, f"There is no snapshot sha256:{digest} in the store", self.url)
        return found

    def pins(self, digest: str, place: str) -> Path | None:
        """The file of the pins of a snapshot at a place, if it was taken there."""
        return self._fetch(f"pins/{place}", digest, None)

    def taken_at(self, place: str) -> list[str]:
        """The hashes of the snapshots that were taken at a place."""
        return [name for name in self._folder(f"pins/{place}").names() if _HASH.fullmatch(name)]

    def _fetch(self, folder: str, name: str, expected: str | None) -> Path | None:
        path = self._local / folder / name
        if path.exists():
            # A damaged copy of what the store has is fetched again; a damaged original is found by its reader.
            if self.is_local or expected is None or _hash(path) == expected:
                return path
        elif self.is_local:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=path.parent) as temporary:
            copy = Path(temporary) / name
            try:
                self._folder(folder).download(name, copy)
            except FileNotFoundError:
                return None
            copy.replace(path)
        return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_hash(file)
