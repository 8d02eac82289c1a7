"""The objects of a snapshot, wherever they lie, as a source."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from torchslip.errors import SampleError
from torchslip.sources._folder import IMG_EXTENSIONS, LabelMode
from torchslip.sources._source import Record, Schema, checked_indices
from torchslip.storage import Snapshot, resolve

__all__ = ["ObjectKind", "Objects"]

ObjectKind = Literal["image", "bytes"]

# A request waits for the network most of its time. Files of this machine are read one after the other.
_CONCURRENT_READS = 32
_POOLS: dict[int, ThreadPoolExecutor] = {}


class Objects:
    """Files of a folder or objects of a bucket, one record each, as a snapshot pins them.

    Of pictures, the records, `classes` and labels are those of `ImageFolder`, in the order of the keys. An object that
    is not what it was when the snapshot was taken is an error, and never other bytes.

    Args:
        link: A dataset link, see `torchslip.resolve`, or a snapshot, whose options then count.
        kind: ``image`` takes what `extensions` names, into the field ``image``; ``bytes`` takes everything, into the
            field ``data``.
        extensions: Which objects are pictures, lower case with the dot. Default: those of `ImageFolder`. For ``bytes``:
            which ones to take; default all.
        recursive: As for `torchslip.resolve`, like the rest.
        label_mode: ``auto``, ``imagefolder`` or ``none``.
        require_labels: Whether an object without a class is an error.
        store: The folder or URL that keeps snapshots.
        storage_options: For fsspec.

    Raises:
        FileNotFoundError: If there is no such object or snapshot.
        FormatError: If labels are ambiguous or missing.
    """

    def __init__(
        self,
        link: str | os.PathLike[str] | Snapshot,
        *,
        kind: ObjectKind = "image",
        extensions: Sequence[str] | None = None,
        recursive: bool = True,
        label_mode: LabelMode = "auto",
        require_labels: bool = False,
        store: str | os.PathLike[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if kind not in get_args(ObjectKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(ObjectKind))}; got {kind!r}.")
        if isinstance(extensions, str):
            extensions = (extensions,)
        if extensions is None and kind == "image":
            extensions = IMG_EXTENSIONS
        if not isinstance(link, Snapshot):
            link = resolve(
                link,
                extensions=extensions,
                recursive=recursive,
                label_mode=label_mode,
                require_labels=require_labels,
                store=store,
                storage_options=storage_options,
            )
        self.snapshot: Snapshot = link
        """What is read."""
        self.kind: ObjectKind = kind
        """``image`` or ``bytes``."""
        self._suffixes = None if extensions is None else tuple(each.lower() for each in extensions)
        # A snapshot that was taken without `extensions` may have other objects too.
        self._ids = self._choose()
        self._field = "image" if kind == "image" else "data"

    def _choose(self) -> npt.NDArray[np.int64] | None:
        if self._suffixes is None:
            return None
        chosen = self.snapshot.ends_with(self._suffixes)
        if chosen.all():
            return None
        if not chosen.any():
            raise FileNotFoundError(2, f"No object ends in {' or '.join(self._suffixes)} in", self.snapshot.link)
        return np.flatnonzero(chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": self._ids is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Computed anew: eight bytes of each of a million objects would be sent to each worker.
        self._ids = self._choose() if state["_ids"] else None

    def __len__(self) -> int:
        return len(self.snapshot) if self._ids is None else len(self._ids)

    def __repr__(self) -> str:
        labels = f", {len(self.classes)} classes" if self.classes else ""
        what = "pictures" if self.kind == "image" else "objects"
        return f"Objects({self.snapshot.link!r}: {len(self)} {what}{labels})"

    @property
    def schema(self) -> Schema:
        """``image`` or ``data``, and ``label`` where there are classes."""
        field: Schema = {"image": "image"} if self.kind == "image" else {"data": "bytes"}
        return {**field, "label": "int"} if self.classes else field

    @property
    def fingerprint(self) -> str:
        """The hash of the snapshot, and which of its objects are records."""
        return f"objects:{self.kind}:{'' if self._ids is None else 'of:'}sha256:{self.snapshot.hash}"

    @property
    def classes(self) -> list[str]:
        """Sorted names of the classes; empty without labels."""
        return self.snapshot.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to label."""
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The label of every record, int64 ``[len]``.

        Raises:
            AttributeError: If there are no classes.
        """
        if not self.classes:
            raise AttributeError(f"{self!r} has no labels.")
        return self.snapshot.labels_of(np.arange(len(self)) if self._ids is None else self._ids)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each object, int64 ``[len]``."""
        return self.snapshot.sizes if self._ids is None else self.snapshot.sizes[self._ids]

    def locate(self, index: int) -> str:
        """The path or URL of record `index`."""
        return self.snapshot.url(self._objects_of([index])[0])

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read objects, those of servers concurrently. See `Source.fetch`."""
        objects = self._objects_of(indices)
        data = self._read_all(objects, indices)
        if not self.classes:
            return [{self._field: each} for each in data]
        labels = self.snapshot.labels_of(objects).tolist()
        return [{self._field: each, "label": label} for each, label in zip(data, labels, strict=True)]

    def _objects_of(self, indices: Sequence[int]) -> list[int]:
        checked = checked_indices(indices, len(self))
        return checked if self._ids is None else self._ids[checked].tolist()

    def _read_all(self, objects: list[int], indices: Sequence[int]) -> list[bytes]:
        if not self.snapshot.is_remote or len(objects) == 1:
            return [self._read(number, index) for number, index in zip(objects, indices, strict=True)]
        data = self.snapshot.read_many(objects)
        tasks = {
            place: _pool().submit(self._read, objects[place], indices[place])
            for place, each in enumerate(data)
            if each is None
        }
        try:
            return [tasks[place].result() if each is None else each for place, each in enumerate(data)]
        finally:
            # After an error, those that have not begun never will. The others end by themselves and change nothing.
            for task in tasks.values():
                task.cancel()

    def _read(self, number: int, index: int) -> bytes:
        try:
            return self.snapshot.read(number)
        except OSError as error:
            reason = error.strerror if error.filename is not None and error.strerror else str(error)
            raise SampleError(f"Sample {index} cannot be read: {reason}: {self.snapshot.url(number)}") from error


def _pool() -> ThreadPoolExecutor:
    # Threads do not survive a fork, so each process has its own.
    pid = os.getpid()
    if pid not in _POOLS:
        _POOLS.setdefault(pid, ThreadPoolExecutor(_CONCURRENT_READS, thread_name_prefix="torchslip-read"))
    return _POOLS[pid]
