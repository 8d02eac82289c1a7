"""The manifest: which objects a snapshot consists of, in one file that is mapped and read at any place.

All numbers are little-endian, all sections begin at multiples of 8 bytes (the gaps are zero).

==========  ==================  ========================================================================
magic       8 bytes             ``TSLIPSN1``; another layout gets another number
length      uint64              bytes of the header
header      JSON                canonical (sorted keys, no spaces), see below
key ends    uint64 ``[n]``      where the key of object i ends in `keys`
sizes       uint64 ``[n]``      bytes of object i
versions    16 bytes ``[n]``    content of object i where the store tells it, see below; only if ``versions``
runs        uint64 ``[c]``      the first object of each class; only with labels
keys        bytes               relative keys in UTF-8, end to end, in the order of their bytes
==========  ==================  ========================================================================

The header has ``objects`` (n), ``key_bytes``, ``bytes`` (all sizes together), ``classes`` (c), ``labels`` (whether the
first part of a key is its class) and ``versions``. Since the keys are sorted, each class is one run of objects; its
label is the place of its name among all names sorted.

The SHA-256 of the whole file is the hash of the snapshot. Nothing in the file tells where the data lies or when it was
listed, so equal data at two places has equal hashes. That is why a time of modification is not in it: copies differ in
it. An ETag that is the MD5 of the object is (32 hexadecimal digits), in `versions`; a zero there says that the store
tells nothing of the content but its size. What pins an object at one place, times and other ETags included, is in the
`Pins` beside the manifest.
"""

from __future__ import annotations

import array
import hashlib
import json
import mmap
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.storage._stat import FileStat

__all__ = ["NO_VERSION", "Manifest", "ManifestWriter", "content_version", "file_hash", "pin_of", "read_pins"]

MAGIC = b"TSLIPSN1"
NO_VERSION = bytes(16)

_BLOCK_BYTES = 1 << 20
_BUFFERED = 1 << 14  # rows


def content_version(stat: FileStat) -> bytes:
    """What the store tells of the content of an object, 16 bytes; zeros if it tells nothing."""
    if stat.etag is not None and len(stat.etag) == 32:
        try:
            return bytes.fromhex(stat.etag)
        except ValueError:
            pass
    return NO_VERSION


def pin_of(stat: FileStat) -> int:
    """A number that changes when the object at its place does: from its etag, else its time of modification."""
    identity = f"etag:{stat.etag}" if stat.etag is not None else f"mtime:{stat.mtime_ns}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "little")


def file_hash(file: IO[bytes]) -> str:
    """The SHA-256 of an open file."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()


class ManifestWriter:
    """Writes a manifest, and the pins beside it, while objects are listed; a few MB of memory, however many they are.

    Args:
        folder: A local folder for temporary files, which go when this is closed.
        labels: Whether the first part of each key is its class.
    """

    def __init__(self, folder: Path, *, labels: bool) -> None:
        self._labels = labels
        self._temporary = tempfile.TemporaryDirectory(prefix=".torchslip-tmp-", dir=folder)
        self.path = Path(self._temporary.name) / "manifest"
        self.pins_path = Path(self._temporary.name) / "pins"
        self._sections = {
            name: (Path(self._temporary.name) / name).open("w+b")
            for name in ("ends", "sizes", "versions", "runs", "keys", "tokens")
        }
        self._ends, self._sizes, self._pins = array.array("Q"), array.array("Q"), array.array("Q")
        self._keys: list[bytes] = []
        self._versions: list[bytes] = []
        self._runs = array.array("Q")
        self._class = b""
        self._has_versions = False
        self.objects = self.bytes = self._key_bytes = self._classes = 0

    def add(self, key: bytes, size: int, version: bytes, pin: int) -> None:
        """Add an object; the keys must come in the order of their bytes, each once."""
        self._key_bytes += len(key)
        self._keys.append(key)
        self._ends.append(self._key_bytes)
        self._sizes.append(size)
        self._versions.append(version)
        self._pins.append(pin)
        if version != NO_VERSION:
            self._has_versions = True
        if self._labels and (name := key.partition(b"/")[0]) != self._class:
            self._class = name
            self._classes += 1
            self._runs.append(self.objects)
        self.objects += 1
        self.bytes += size
        if len(self._keys) == _BUFFERED:
            self._flush()

    def _flush(self) -> None:
        for name, numbers in (
            ("ends", self._ends),
            ("sizes", self._sizes),
            ("runs", self._runs),
            ("tokens", self._pins),
        ):
            if sys.byteorder == "big":
                numbers.byteswap()
            numbers.tofile(self._sections[name])
            del numbers[:]
        for name, parts in (("keys", self._keys), ("versions", self._versions)):
            self._sections[name].write(b"".join(parts))
            parts.clear()

    def finish(self) -> str:
        """Write `path` and `pins_path`; returns the hash of the manifest."""
        self._flush()
        header = {
            "bytes": self.bytes,
            "classes": self._classes,
            "key_bytes": self._key_bytes,
            "labels": self._labels,
            "objects": self.objects,
            "versions": self._has_versions,
        }
        text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        names = ["ends", "sizes", *(["versions"] if self._has_versions else []), "runs", "keys"]
        with self.path.open("w+b") as file:
            file.write(MAGIC + len(text).to_bytes(8, "little") + text)
            for name in names:
                file.write(bytes(-file.tell() % 8))
                self._sections[name].seek(0)
                shutil.copyfileobj(self._sections[name], file, _BLOCK_BYTES)
            file.seek(0)
            digest = file_hash(file)
        tokens = self._sections["tokens"]
        tokens.seek(0)
        with self.pins_path.open("wb") as file:
            file.write(bytes.fromhex(file_hash(tokens)))
            tokens.seek(0)
            shutil.copyfileobj(tokens, file, _BLOCK_BYTES)
        return digest

    def close(self) -> None:
        """Remove the temporary files."""
        for file in self._sections.values():
            file.close()
        self._temporary.cleanup()


class Manifest:
    """A manifest on this machine, mapped: opening it reads it once to check its hash, and keeps nothing in memory.

    Args:
        path: The file.
        expected_hash: Its SHA-256.

    Raises:
        FormatError: If the file has another hash, or is not a manifest of this version.
    """

    def __init__(self, path: Path, expected_hash: str) -> None:
        self._path = path
        with path.open("rb") as file:
            found = file_hash(file)
            if found != expected_hash:
                raise FormatError(
                    f"The manifest has the hash {found}; its name says {expected_hash}: {path}. It was damaged or "
                    "changed. Remove it, and resolve the data again."
                )
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._data[: len(MAGIC)] != MAGIC:
            raise FormatError(f"Not a manifest that this version of torchslip reads: {path}")
        offset = 16 + int.from_bytes(self._data[8:16], "little")
        header = json.loads(self._data[16:offset])
        self.objects: int = header["objects"]
        self.bytes: int = header["bytes"]
        self.labels: bool = header["labels"]

        def section(count: int, kind: str) -> npt.NDArray[np.generic]:
            nonlocal offset
            offset += -offset % 8
            values = np.frombuffer(self._data, kind, count, offset)
            offset += values.nbytes
            return values

        self._ends = section(self.objects, "<u8")
        self.sizes = section(self.objects, "<u8").view("<i8")
        """Bytes of each object, int64 ``[len]``."""
        self._versions = section(self.objects * 16 if header["versions"] else 0, "u1")
        self._runs = section(header["classes"], "<u8").astype(np.int64)
        self._keys_at = offset + -offset % 8
        if self._keys_at + header["key_bytes"] != len(self._data):
            raise FormatError(f"The manifest has {len(self._data)} bytes, and its header speaks of others: {path}")
        self._class_names = [self.key_bytes(first).partition(b"/")[0] for first in self._runs.tolist()]
        self.classes = sorted(name.decode("utf-8", "surrogateescape") for name in self._class_names)
        """Names of the classes, sorted; empty without labels."""
        number = {name: label for label, name in enumerate(self.classes)}
        self._label_of_run = np.array(
            [number[name.decode("utf-8", "surrogateescape")] for name in self._class_names], np.int64
        )

    def __len__(self) -> int:
        return self.objects

    def key_bytes(self, index: int) -> bytes:
        """The key of an object in UTF-8."""
        begin = int(self._ends[index - 1]) if index else 0
        return self._data[self._keys_at + begin : self._keys_at + int(self._ends[index])]

    def key(self, index: int) -> str:
        """The key of an object, relative to the base."""
        return self.key_bytes(index).decode("utf-8", "surrogateescape")

    def version(self, index: int) -> bytes:
        """What the store told of the content of an object; zeros if nothing."""
        return self._versions[16 * index : 16 * index + 16].tobytes() if len(self._versions) else NO_VERSION

    def labels_of(self, indices: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The labels of objects, int64; only with labels."""
        return self._label_of_run[np.searchsorted(self._runs, indices, side="right") - 1]

    def ends_with(self, suffixes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each key ends in one of `suffixes`, which are lower case, in any case of ASCII: bool ``[len]``."""
        keys = np.frombuffer(self._data, "u1", offset=self._keys_at)
        lengths = np.diff(self._ends.astype(np.int64), prepend=0)
        found = np.zeros(self.objects, bool)
        for wanted in map(str.encode, suffixes):
            same = lengths >= len(wanted)
            ends = self._ends[same].astype(np.int64)
            for place, letter in enumerate(wanted):
                found_letters = keys[ends - len(wanted) + place]
                upper = ord(bytes([letter]).upper())
                matches = (found_letters == letter) | (found_letters == upper)
                same[same] = matches
                ends = ends[matches]
            found |= same
        return found


def read_pins(path: Path, objects: int) -> npt.NDArray[np.uint64]:
    """Map the pins of a manifest, uint64 ``[objects]``.

    Raises:
        FormatError: If the file is damaged or belongs to another number of objects.
    """
    with path.open("rb") as file:
        expected = file.read(32).hex()
        if file_hash(file) != expected:
            raise FormatError(f"The pins of a snapshot are damaged: {path}. Remove the file, and resolve @refresh.")
    pins = np.memmap(path, "<u8", "r", offset=32) if path.stat().st_size > 32 else np.zeros(0, "<u8")
    if len(pins) != objects:
        raise FormatError(f"The pins of a snapshot are of {len(pins)} objects instead of {objects}: {path}")
    return pins
