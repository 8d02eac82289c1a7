"""Copies of remote or decompressed files, shared by all processes of a machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchslip.errors import FormatError
from torchslip.storage._cache_file import Check, Fetch, Held, Part, fetch_into_memory, verify
from torchslip.storage._cache_plan import Plan
from torchslip.storage._cache_room import MARKER_TEXT, Room, check_marker, is_left
from torchslip.storage._lock import locked, try_lock
from torchslip.storage._size import parse_bytes

__all__ = ["Entry", "NodeCache", "Prefetched"]

Prefetched = Literal["kept", "fetched", "busy", "no room"]

_MAX_PLAN = 1000
_POLL_SECONDS = (0.002, 0.05)
_LOCK_SECONDS = 60.0
# What a disk says and a server does not.
_DISK_ERRORS = {errno.ENOSPC, errno.EROFS, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_proof = logging.getLogger("torchslip.proof")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a cache keeps.

    Attributes:
        identity: Tells these bytes from all others: a URL, and an etag, hash or mtime, and what was done with them.
        bytes: How many there are.
        url: Where they come from, for error messages.
    """

    identity: str
    bytes: int
    url: str

    @property
    def name(self) -> str:
        """What the entry is called in the folder: 64 hexadecimal digits."""
        text = f"{self.identity}\0{self.bytes}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class NodeCache:
    """A folder of copies within a budget, for any number of processes and datasets of one machine.

    ::

        cache = ts.NodeCache("/scratch/torchslip", budget_bytes=500 * 10**9)
        train = ts.ImageDataset(MDS("s3://bucket/train", cache=cache), ...)

    A file that several processes want is fetched by one of them. Files appear under their name when they are whole and
    checked; what a killed process left is removed by the next one. Where nothing can be kept, because the disk is full
    or read-only or the budget is too small, files go through memory, and the logger ``torchslip.proof`` says so once.

    Nothing is made before something is to be kept. The folder must be a new or an empty one, or a cache already; only
    files that caches make are ever removed from it, and it may be deleted whenever no process uses it.

    Args:
        root: The folder, on a local disk. Default: ``torchslip/node`` in the user's cache folder.
        budget_bytes: The most that the folder may hold, whoever fills it, as a number or as ``"500gb"``. All processes
            should say the same. Default: as much as leaves a tenth of the disk, or 10 GiB, free.
        wait_seconds: How long to wait for a file that another process fetches, before fetching it too.

    Raises:
        ValueError: If `budget_bytes` is no number of bytes, or `wait_seconds` is negative.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        budget_bytes: int | str | None = None,
        *,
        wait_seconds: float = 300.0,
    ) -> None:
        self.root = _default_root() if root is None else Path(root).expanduser().absolute()
        """The folder."""
        self.budget_bytes = None if budget_bytes is None else parse_bytes(budget_bytes)
        """The most that it may hold; None: what the disk allows."""
        self.wait_seconds = wait_seconds
        if (budget_bytes is not None and self.budget_bytes is None) or wait_seconds < 0:
            raise ValueError(
                f"budget_bytes must be above 0, such as 10**9 or '500gb', and wait_seconds 0 or more; got "
                f"{budget_bytes!r} and {wait_seconds!r}."
            )
        self._own_plan: Plan | None = None
        self._warned_in = 0

    def __repr__(self) -> str:
        return f"NodeCache({str(self.root)!r}, budget_bytes={self.budget_bytes})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own_plan": None, "_warned_in": 0}

    def __contains__(self, entry: Entry) -> bool:
        return self._path(entry).exists()

    def open(
        self,
        entry: Entry,
        fetch: Fetch,
        *,
        check: Check | None = None,
        recheck: bool = False,
        let_go: Callable[[], None] | None = None,
    ) -> Held:
        """Hold an entry, which is fetched if it is not there. While it is held, it is not removed.

        Args:
            entry: Which.
            fetch: Called with the path of a file to write the bytes into; with that of a file in memory if they cannot
                be kept. Its errors are passed on.
            check: Called with the bytes after they were fetched. What it refuses is put aside and fetched once more.
            recheck: Call `check` for an entry that was there, too.
            let_go: Called if there is no room: should close the entries that this process can do without.

        Raises:
            FormatError: If what is fetched has another size, or `check` refuses it, twice; or if the folder is no
                cache.
        """
        held = self._kept(entry, check if recheck else None)
        if held is not None:
            return held
        # What is damaged and cannot be put aside must not be found again.
        keep = not (recheck and entry in self)
        try:
            return self._fetch(entry, fetch, check, let_go, keep=keep)
        except _DamagedError:
            try:
                return self._fetch(entry, fetch, check, let_go, keep=keep)
            except _DamagedError as again:
                raise FormatError(
                    f"{again.__cause__}; it was read twice: {entry.url} (cache entry {entry.name})"
                ) from again

    def claim(self) -> None:
        """Make the folder, if it is not there yet.

        Raises:
            FormatError: If it has files, but is no cache.
            OSError: If it cannot be made.
        """
        check_marker(self.root)

    def capacity_bytes(self) -> int:
        """The most that the folder can hold for entries, now. Makes it, if it is not there yet.

        Raises:
            FormatError: If it has files, but is no cache.
            OSError: If it cannot be made.
        """
        if self.budget_bytes is not None:
            return self.budget_bytes - len(MARKER_TEXT)
        self.claim()
        with self._locked():
            return Room(self.root, None).capacity_bytes - len(MARKER_TEXT)

    def prefetch(self, entry: Entry, fetch: Fetch, *, check: Check | None = None, next_use: int = 0) -> Prefetched:
        """Fetch an entry that will be needed, if there is room and nobody does; never waits for another process.

        Args:
            entry: Which.
            fetch: As for `open`.
            check: As for `open`.
            next_use: Its place in the plan: no entry that is needed before it makes room for it.

        Returns:
            ``kept`` if it was there, ``fetched`` if it is now, ``busy`` if another process fetches it, ``no room``.

        Raises:
            FormatError: If what is fetched has another size, or `check` refuses it.
        """
        if entry in self:
            return "kept"
        found = self._begin(entry, next_use, 0.0)
        if isinstance(found, str):
            return found
        try:
            held = self._fill(found, entry, fetch, check) if isinstance(found, Part) else found
        except _DamagedError as error:
            raise FormatError(f"{error.__cause__}: {entry.url}") from error
        if held is None:
            return "no room"
        held.close()
        return "fetched" if isinstance(found, Part) else "kept"

    def plan(self, names: Sequence[str]) -> None:
        """Say which entries this process will need next, so that no process removes them before others.

        Args:
            names: `Entry.name` of each, the next one first; each call replaces what was said before. Only the first
                thousand count.
        """
        names = list(dict.fromkeys(names))[:_MAX_PLAN]
        plan = self._plan()
        if names == plan.names:
            return
        plan.names = names
        if self._too_small_for(0):
            return
        text = "".join(f"{name}\n" for name in names).encode()
        try:
            check_marker(self.root)
            with self._locked():
                if (more := plan.growth_bytes(text)) > 0:
                    room = Room(self.root, self.budget_bytes)
                    if not room.make(more, next_use=_MAX_PLAN, own_plan=names):
                        text = b""  # this process alone knows it
                plan.write(self.root, text)
        except OSError as error:
            self._cannot_keep(error)

    def _kept(self, entry: Entry, check: Check | None) -> Held | None:
        """The entry, if it is there and good."""
        path = self._path(entry)
        try:
            held = Held(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), path, entry.bytes, kept=True)
        except OSError:
            return None
        try:
            # If others have locked it, they are removing it.
            if try_lock(held.fileno(), shared=True) and _is_at(held.fileno(), path):
                verify(held.fileno(), entry.bytes, check)
                with contextlib.suppress(OSError):  # another user's, or a disk that is read-only
                    os.utime(held.fileno(), ns=(time.time_ns(), os.fstat(held.fileno()).st_mtime_ns))
                return held
        except FormatError as error:
            _proof.warning("%s", {"event": "cache_entry_damaged", "path": str(path), "reason": str(error)})
            self._put_aside(held)
        except OSError as error:
            self._cannot_keep(error)
        held.close()
        return None

    def _put_aside(self, held: Held) -> None:
        try:
            with self._locked():
                if _is_at(held.fileno(), held.path):
                    held.path.replace(held.path.with_suffix(".bad"))
        except OSError as error:
            self._cannot_keep(error)

    def _fetch(
        self, entry: Entry, fetch: Fetch, check: Check | None, let_go: Callable[[], None] | None, *, keep: bool
    ) -> Held:
        found = self._begin(entry, -1, self.wait_seconds) if keep else "no room"
        if found == "no room" and keep and let_go is not None:
            let_go()
            found = self._begin(entry, -1, 0.0)
        held = self._fill(found, entry, fetch, check) if isinstance(found, Part) else found
        if isinstance(held, Held):
            return held
        try:
            return fetch_into_memory(entry.bytes, fetch, check)
        except FormatError as error:
            raise _DamagedError from error

    def _begin(self, entry: Entry, next_use: int, wait_seconds: float) -> Part | Held | Literal["busy", "no room"]:
        """Become the one who fetches an entry, or wait for that one."""
        if self._too_small_for(entry.bytes):
            self._cannot_keep(f"{entry.url} has {entry.bytes} bytes, the budget is {self.budget_bytes}")
            return "no room"
        whole, part = self._path(entry), self.root / f"{entry.name}-{entry.bytes}.part"
        deadline, pause = time.monotonic() + wait_seconds, _POLL_SECONDS[0]
        try:
            check_marker(self.root)
            while True:
                with self._locked():
                    if not whole.exists() and is_left(part):
                        room = Room(self.root, self.budget_bytes)
                        fits = room.make(entry.bytes, next_use=next_use, own_plan=self._plan().names)
                        return Part(part, entry.bytes) if fits else "no room"
                if (held := self._kept(entry, None)) is not None:
                    return held
                if time.monotonic() >= deadline:
                    return "busy"
                time.sleep(pause)
                pause = min(2 * pause, _POLL_SECONDS[1])
        except OSError as error:
            self._cannot_keep(error)
            return "no room"

    def _fill(self, part: Part, entry: Entry, fetch: Fetch, check: Check | None) -> Held | None:
        """Fetch an entry; None if the disk does not take it."""
        try:
            fetch(part.path)
            part.check(check)
        except FormatError as error:
            self._put_part_aside(part, self._path(entry).with_suffix(".bad"))
            raise _DamagedError from error
        except BaseException as error:
            part.remove()
            if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
                self._cannot_keep(error)
                return None
            raise
        try:
            with self._locked():
                return part.publish(self._path(entry))
        except OSError as error:
            part.remove()
            self._cannot_keep(error)
            return None

    def _put_part_aside(self, part: Part, path: Path) -> None:
        try:
            with self._locked():
                part.remove(put_aside=path)
        except OSError as error:
            part.remove()
            self._cannot_keep(error)

    def _path(self, entry: Entry) -> Path:
        return self.root / f"{entry.name}.raw"

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self.root / ".lock", seconds=_LOCK_SECONDS)

    def _too_small_for(self, size_bytes: int) -> bool:
        return self.budget_bytes is not None and size_bytes + len(MARKER_TEXT) > self.budget_bytes

    def _plan(self) -> Plan:
        if self._own_plan is None or self._own_plan.pid != os.getpid():
            self._own_plan = Plan()
        return self._own_plan

    def _cannot_keep(self, reason: object) -> None:
        if self._warned_in != os.getpid():
            self._warned_in = os.getpid()
            event = {"event": "cache_not_kept", "root": str(self.root), "reason": str(reason)}
            _proof.warning("%s", event)


class _DamagedError(Exception):
    """What was fetched is not what it should be; its cause says why."""


def _default_root() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "torchslip" / "node"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
