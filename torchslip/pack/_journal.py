"""What a packer has finished, beside the shards, so that a killed one can be taken up again.

::

    .torchslip-packing          whose shards these are: JSON with the fingerprint of source and options
    .torchslip-packing-00003    what the index and the sidecar will say of shard 3; written when the shard is durable

Both vanish when the index is there. The index and the sidecar are made of these notes whether the packer was
interrupted or not, which is why they come out the same.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.pack._claim import PACKING_MARKER, packing_note
from torchslip.pack._shard_builder import Shard
from torchslip.sources.mds import ArrayFile, dump_arrays
from torchslip.storage import TEMPORARY_PREFIX, Folder, LocalFolder

__all__ = ["Journal", "ShardNote"]

_LOGGER = logging.getLogger(__name__)
_UPLOADS = 4


@dataclass(frozen=True, slots=True)
class ShardNote:
    """What is known of one shard.

    Attributes:
        entry: What the index says of it.
        next_record: The first record of the source that is behind it.
        skipped: The records that were left out since the shard before.
        image_sizes: Image field to height and width, int32 ``[samples, 2]``.
        values: Indexed field to the value of each sample.
        histograms: Image field to how many pixels have each value, int64 ``[3, 256]``, if that is wanted.
    """

    entry: Mapping[str, Any]
    next_record: int
    skipped: Sequence[Mapping[str, Any]]
    image_sizes: Mapping[str, npt.NDArray[np.int32]]
    values: Mapping[str, Sequence[int | str]]
    histograms: Mapping[str, npt.NDArray[np.int64]]

    def dump(self) -> bytes:
        """The bytes of a note."""
        arrays: dict[str, npt.NDArray[Any]] = {f"sizes/{name}": sizes for name, sizes in self.image_sizes.items()}
        arrays |= {f"histogram/{name}": histogram for name, histogram in self.histograms.items()}
        distinct: dict[str, list[int | str]] = {}
        for name, values in self.values.items():
            codes: dict[int | str, int] = {}
            arrays[f"codes/{name}"] = np.array([codes.setdefault(value, len(codes)) for value in values], np.int32)
            distinct[name] = list(codes)
        head = {
            "entry": dict(self.entry),
            "next_record": self.next_record,
            "skipped": list(self.skipped),
            "image_fields": list(self.image_sizes),
            "measured_fields": list(self.histograms),
            "values": distinct,
        }
        return dump_arrays(head, arrays)

    @classmethod
    def parse(cls, data: bytes, name: str) -> ShardNote:
        """The note in a file.

        Raises:
            FormatError: If it is damaged.
        """
        file = ArrayFile.parse(data, name)
        head = file.head
        return cls(
            entry=head["entry"],
            next_record=head["next_record"],
            skipped=head["skipped"],
            image_sizes={field: file.array(f"sizes/{field}") for field in head["image_fields"]},
            values={
                field: [distinct[code] for code in file.array(f"codes/{field}").tolist()]
                for field, distinct in head["values"].items()
            },
            histograms={field: file.array(f"histogram/{field}") for field in head["measured_fields"]},
        )


class Journal:
    """Stores shards and the notes of them, in the background.

    Args:
        folder: Where the dataset goes.
        fingerprint: Of source and options.
    """

    def __init__(self, folder: Folder, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        remote = not isinstance(folder, LocalFolder)
        self._limit = _UPLOADS if remote else 1
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def found_fingerprint(self) -> str | None:
        """The fingerprint of the unfinished dataset that is in the folder, or None if there is none."""
        if PACKING_MARKER not in self._folder.names():
            return None
        try:
            return str(json.loads(self._folder.read(PACKING_MARKER))["fingerprint"])
        except (ValueError, KeyError, TypeError):
            return ""

    def begin(self) -> None:
        """Say whose the shards will be."""
        head = {"fingerprint": self._fingerprint, "about": "A dataset is being packed here; it is not complete."}
        self._folder.write(PACKING_MARKER, json.dumps(head, indent=1).encode())

    def resume(self) -> list[ShardNote]:
        """The notes of the shards that are whole, up to the first that is not."""
        names = set(self._folder.names())
        self._folder.remove(name for name in names if name.startswith(TEMPORARY_PREFIX))
        notes: list[ShardNote] = []
        while packing_note(len(notes)) in names:
            name = packing_note(len(notes))
            try:
                note = ShardNote.parse(self._folder.read(name), name)
            except (ValueError, KeyError, TypeError) as error:
                _LOGGER.warning("%s in %s is damaged; packing goes on before it: %s", name, self._folder, error)
                break
            if not self._is_whole(note, names):
                break
            notes.append(note)
        return notes

    def _is_whole(self, note: ShardNote, names: set[str]) -> bool:
        stored = note.entry["zip_data"] or note.entry["raw_data"]
        name = stored["basename"]
        if not isinstance(self._folder, LocalFolder):
            return name in names
        return name in names and (self._folder.path / name).stat().st_size == stored["bytes"]

    def add(self, number: int, shard: Shard, note: ShardNote) -> None:
        """Store a shard, then the note of it.

        Raises:
            Exception: Whatever made an earlier one fail.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix="torchslip-store")
        # As many again may wait, so that reading and encoding go on meanwhile.
        while len(self._pending) >= 2 * self._limit:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._store, number, shard, note))

    def _store(self, number: int, shard: Shard, note: ShardNote) -> None:
        self._folder.write(shard.name, shard.data)
        self._folder.write(packing_note(number), note.dump())

    def wait(self) -> None:
        """Wait until everything is stored; raises as `add`."""
        while self._pending:
            self._pending.popleft().result()

    def stop(self) -> None:
        """Drop what has not begun to be stored, and wait for what has."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._pending.clear()

    def clear(self) -> None:
        """Remove the notes and what was half written, and then what says whose they are."""
        names = self._folder.names()
        ours = [name for name in names if name.startswith((f"{PACKING_MARKER}-", TEMPORARY_PREFIX))]
        self._folder.remove([*ours, *(name for name in names if name == PACKING_MARKER)])
