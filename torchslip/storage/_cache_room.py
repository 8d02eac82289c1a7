"""What lies in the folder of a node cache, how much that is, and what goes when room is needed.

::

    <root>/.torchslip-cache             says whose folder this is
    <root>/.lock                        held for moments, by whoever makes, renames or removes files
    <root>/<64 hex>.raw                 an entry, whole; its atime says when it was last opened
    <root>/<64 hex>-<bytes>.part        an entry that is being fetched, and the bytes that are set aside for it
    <root>/<64 hex>.bad                 what was found damaged
    <root>/<16 hex>.plan                names of entries that a process will need, the next one first

The folder is its own ledger: what it holds is the sum of the sizes of its files, with a part as large as it will be.
Processes hold shared locks on the entries that they have open, and exclusive ones on their parts and plans; a part or
a plan that nobody has locked was left by a process that was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torchslip.errors import FormatError
from torchslip.storage._lock import hold_exclusively, release, try_lock

__all__ = ["MARKER_TEXT", "Room", "check_marker", "is_left"]

MARKER = ".torchslip-cache"
MARKER_TEXT = "Copies of files that torchslip has read; safe to delete.\n"

_NAMES = re.compile(r"[0-9a-f]{64}\.(raw|bad)|[0-9a-f]{64}-(?P<reserved>[0-9]+)\.part|[0-9a-f]{16}\.plan")
_NO_PLAN = 1 << 62
# Without a budget, this much of the disk is left to others.
_FREE_SHARE, _MAX_FREE_BYTES = 10, 10 << 30


def check_marker(root: Path) -> None:
    """Make the folder, or check that it is a cache: in any other, nothing may be written or removed.

    Raises:
        FormatError: If it has files, but no marker.
        OSError: If it cannot be made.
    """
    marker = root / MARKER
    if marker.exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    with os.scandir(root) as files:
        found = next((file.name for file in files), None)
    if found is not None and not marker.exists():
        raise FormatError(
            f"{root} is not a cache: it holds {found!r}, but no {MARKER}. Choose a new or an empty folder."
        )
    with contextlib.suppress(FileExistsError), marker.open("x") as file:
        file.write(MARKER_TEXT)


class _File(NamedTuple):
    name: str
    bytes: int
    used_ns: int


class Room:
    """The files of a cache as they are at one moment; only valid while the lock of the folder is held.

    Args:
        root: The folder.
        budget_bytes: What it may hold; None: what leaves a tenth of the disk free, but never more than 10 GiB.
    """

    def __init__(self, root: Path, budget_bytes: int | None) -> None:
        self._root = root
        self._files: dict[str, list[_File]] = {"": [], ".raw": [], ".bad": [], ".part": [], ".plan": []}
        for found in os.scandir(root):
            match = _NAMES.fullmatch(found.name)
            if match is None and found.name != MARKER:
                continue
            with contextlib.suppress(FileNotFoundError):
                status = found.stat(follow_symlinks=False)
                size = max(status.st_size, int((match and match["reserved"]) or 0))
                kind = found.name[found.name.rindex(".") :] if match else ""
                self._files[kind].append(_File(found.name, size, status.st_atime_ns))
        for kind in (".part", ".plan"):
            self._files[kind] = [file for file in self._files[kind] if not is_left(root / file.name)]
        self.used_bytes = sum(file.bytes for files in self._files.values() for file in files)
        if budget_bytes is None:
            disk = shutil.disk_usage(root)
            budget_bytes = self.used_bytes + disk.free - min(disk.total // _FREE_SHARE, _MAX_FREE_BYTES)
        self._free_bytes = budget_bytes - self.used_bytes

    @property
    def capacity_bytes(self) -> int:
        """What the folder can hold at most."""
        return self.used_bytes + self._free_bytes

    def make(self, size_bytes: int, *, next_use: int, own_plan: Sequence[str]) -> bool:
        """Remove what is needed last, until `size_bytes` are free; nothing if that is not possible.

        Entries that are in nobody's plan go first, those that were opened longest ago before others; then those whose
        turn is furthest away. What is open in any process stays.

        Args:
            size_bytes: How much is needed.
            next_use: How far away the use is that it is needed for; entries that are used before stay.
            own_plan: The plan of this process.
        """
        if size_bytes <= self._free_bytes:
            return True
        turns = self._turns(own_plan)
        damaged = [(file, _NO_PLAN) for file in self._files[".bad"]]
        entries = [(file, turns.get(file.name[:-4], _NO_PLAN)) for file in self._files[".raw"]]
        entries = [(file, turn) for file, turn in entries if turn > next_use]
        entries.sort(key=lambda each: (-each[1], each[0].used_ns))
        missing, chosen = size_bytes - self._free_bytes, []
        try:
            for file, _ in (*damaged, *entries):
                if missing <= 0:
                    break
                descriptor = _open_if_idle(self._root / file.name)
                if descriptor is not None:
                    chosen.append((file, descriptor))
                    missing -= file.bytes
            if missing > 0:
                return False
            for file, _ in chosen:
                (self._root / file.name).unlink()
        finally:
            for _, descriptor in chosen:
                release(descriptor)
        return True

    def _turns(self, own_plan: Iterable[str]) -> dict[str, int]:
        """How soon each entry is needed, by the process that needs it first."""
        turns: dict[str, int] = {}
        plans = [own_plan, *((self._root / file.name).read_text().split() for file in self._files[".plan"])]
        for plan in plans:
            for turn, name in enumerate(plan):
                turns[name] = min(turn, turns.get(name, turn))
        return turns


def _open_if_idle(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        if hold_exclusively(descriptor):
            return descriptor
    os.close(descriptor)
    return None


def is_left(path: Path) -> bool:
    """Whether nobody is at work on a part or a plan; one whose owner was killed is removed."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(descriptor, shared=False):
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)
