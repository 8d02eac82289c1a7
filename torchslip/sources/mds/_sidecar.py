"""What MDS has no place for: a file beside ``index.json``, written by `torchslip.pack`.

It is called ``torchslip.sidecar`` and is a file of arrays (see `_array_file`), so ``head torchslip.sidecar`` shows the
JSON text::

    version      1
    dataset      the fingerprint of the index that it belongs to; with another index, it is not believed
    samples      how many there are
    fields       name to kind: a column of encoding bytes can be an image
    classes      the names of the values of `label`
    statistics   image field to mean and std per channel, if they were computed
    source       the fingerprint of what was packed
    packed       how: the options
    skipped      id, where and reason of each record of the source that was left out
    values       indexed field to the values that occur, rising

    sizes/F      int32 [samples, 2]: height and width of the images in field F
    ends/F       int64 [values]: where the ids of each value of field F end
    ids/F        int64 [samples]: the ids, value after value
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.sources._field_index import FieldIndex
from torchslip.sources._source import FieldKind
from torchslip.sources.mds._array_file import ArrayFile, dump_arrays
from torchslip.storage import Folder, LocalFolder, NodeCache

__all__ = ["SIDECAR_NAME", "Sidecar", "cached_index", "find_sidecar"]

SIDECAR_NAME = "torchslip.sidecar"
_VERSION = 1
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What is known of a dataset beyond its index.

    Attributes:
        dataset: The fingerprint of the dataset.
        samples: How many it has.
        fields: Name to kind.
        classes: The names of the values of ``label``; empty if they have none.
        statistics: Image field to ``{"mean": [3], "std": [3], "pixels": int}``, of values from 0 to 1.
        source: The fingerprint of what was packed.
        packed: How it was packed.
        skipped: ``{"id", "where", "reason"}`` of each record of the source that was left out.
    """

    dataset: str
    samples: int
    fields: Mapping[str, FieldKind]
    classes: Sequence[str]
    statistics: Mapping[str, Any]
    source: str
    packed: Mapping[str, Any]
    skipped: Sequence[Mapping[str, Any]]
    _values: Mapping[str, Sequence[int | str]] = field(repr=False)
    _arrays: ArrayFile = field(repr=False)

    @classmethod
    def parse(cls, arrays: ArrayFile) -> Sidecar:
        """The sidecar in a file.

        Raises:
            FormatError: If it is of another version, or something is missing.
        """
        head = arrays.head
        if head.get("version") != _VERSION:
            raise FormatError(f"it has version {head.get('version')!r}; this torchslip reads {_VERSION}")
        try:
            return cls(
                dataset=head["dataset"],
                samples=head["samples"],
                fields=head["fields"],
                classes=head["classes"],
                statistics=head["statistics"],
                source=head["source"],
                packed=head["packed"],
                skipped=head["skipped"],
                _values=head["values"],
                _arrays=arrays,
            )
        except KeyError as error:
            raise FormatError(f"it has no {error}") from error

    @property
    def indexed_fields(self) -> list[str]:
        """The fields that have an index."""
        return list(self._values)

    @staticmethod
    def dump(
        *,
        dataset: str,
        samples: int,
        fields: Mapping[str, FieldKind],
        classes: Sequence[str],
        statistics: Mapping[str, Any],
        source: str,
        packed: Mapping[str, Any],
        skipped: Sequence[Mapping[str, Any]],
        image_sizes: Mapping[str, npt.NDArray[np.int32]],
        indexes: Mapping[str, FieldIndex],
    ) -> bytes:
        """The bytes of a sidecar: its attributes, the sizes of the image fields, and the indexes of others."""
        head = {
            "version": _VERSION,
            "dataset": dataset,
            "samples": samples,
            "fields": dict(fields),
            "classes": list(classes),
            "statistics": dict(statistics),
            "source": source,
            "packed": dict(packed),
            "skipped": list(skipped),
            "values": {name: list(index) for name, index in indexes.items()},
        }
        arrays: dict[str, npt.NDArray[Any]] = {f"sizes/{name}": sizes for name, sizes in image_sizes.items()}
        for name, index in indexes.items():
            arrays |= {f"ends/{name}": index.ends, f"ids/{name}": index.ids}
        return dump_arrays(head, arrays)

    def image_sizes(self, name: str) -> npt.NDArray[np.int32] | None:
        """Height and width of every image of a field, int32 ``[samples, 2]``, or None if they are not there.

        Raises:
            FormatError: If the file is damaged.
        """
        key = f"sizes/{name}"
        return self._checked(key, (self.samples, 2)) if key in self._arrays else None

    def index(self, name: str) -> FieldIndex | None:
        """The index of a field, or None if it has none.

        Raises:
            FormatError: If the file is damaged.
        """
        if name not in self._values:
            return None
        values = self._values[name]
        ends = self._checked(f"ends/{name}", (len(values),))
        ids = self._checked(f"ids/{name}", (self.samples,))
        try:
            return FieldIndex(values, ends, ids)
        except ValueError as error:
            raise FormatError(f"The index of {name!r} in {SIDECAR_NAME} is wrong: {error}") from error

    def _checked(self, key: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        array = self._arrays.array(key)
        if array.shape != shape:
            raise FormatError(f"The array {key} in {SIDECAR_NAME} has the shape {array.shape}, not {shape}.")
        return array


def find_sidecar(folder: Folder, fingerprint: Callable[[], str]) -> Sidecar | None:
    """The sidecar in a folder, if there is one that belongs to its index; a warning if it does not or is damaged.

    Args:
        folder: The folder of the index.
        fingerprint: Gives the dataset's; it is only asked for if there is a sidecar.
    """
    path = f"{folder}/{SIDECAR_NAME}"
    try:
        if isinstance(folder, LocalFolder):
            sidecar = Sidecar.parse(ArrayFile.read(folder.path / SIDECAR_NAME))
        else:
            sidecar = Sidecar.parse(ArrayFile.parse(folder.read(SIDECAR_NAME), path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s cannot be read, and is passed over: %s", path, error)
        return None
    if sidecar.dataset != fingerprint():
        _LOGGER.warning("%s belongs to another index than the one beside it, and is passed over.", path)
        return None
    return sidecar


def cached_index(cache: NodeCache, identity: str, name: str, make: Callable[[], FieldIndex]) -> FieldIndex:
    """The index of a field from the cache, or made and put there.

    Args:
        cache: The cache; the indexes are in a sub-folder of its folder, and not counted.
        identity: Of the dataset and its version.
        name: The field.
        make: Makes it.
    """
    key = hashlib.sha256(f"{identity}\0{name}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = LocalFolder(cache.root / "indexes")
    path = folder.path / key
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        arrays = ArrayFile.read(path)
        return FieldIndex(arrays.head["values"], arrays.array("ends"), arrays.array("ids"))
    index = make()
    try:
        cache.claim()
        folder.write(key, dump_arrays({"values": list(index)}, {"ends": index.ends, "ids": index.ids}))
    except OSError as error:
        _LOGGER.debug("The index of %s is not kept in %s: %s", name, cache.root, error)
    return index
