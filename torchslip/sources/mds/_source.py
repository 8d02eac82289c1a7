"""MDS datasets as a source."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError, MissingDependencyError, SampleError
from torchslip.sources._source import FieldKind, Record, Schema, checked_indices
from torchslip.sources.mds._encodings import parse_encoding
from torchslip.sources.mds._files import ShardFiles, default_cache
from torchslip.sources.mds._hashing import HASHES
from torchslip.sources.mds._index import INDEX_NAME, Index
from torchslip.sources.mds._layout import Layout
from torchslip.sources.mds._shard import FieldPlan, open_shard, read_sizes
from torchslip.sources.mds._split_shard import open_split_shard

__all__ = ["MDS"]


class MDS:
    """A dataset in the MDS format, version 2: the shards that `MDSWriter` and mosaicml-streaming write.

    Shards are mapped into memory, compressed ones after they were decompressed, once, into a cache; the dataset's own
    folder is only read. A record has the columns in alphabetical order, images as the bytes that are stored:

    ==========================================================  ======  ================================================
    encoding                                                    kind    value
    ==========================================================  ======  ================================================
    ``jpeg``, ``png``                                           image   the file
    ``pil``                                                     image   a PNG without compression, made when it is read;
                                                                        TIFF for the modes that PNG lacks, L for P
    ``int``, ``int8`` to ``int64``, ``uint8`` to ``uint64``,    int     `int`
    ``str_int``
    ``float16`` to ``float64``, ``str_float``                   float   `float`
    ``str``, ``str_decimal``                                    str     `str`
    ``json``                                                    json    what the text says
    ``ndarray[:dtype[:shape]]``                                 array   `numpy.ndarray`, writable
    ``bytes``, ``jpeg_array``, ``list[jpeg]`` and its like      bytes   as stored
    ``pkl``                                                     bytes   the pickle; with `allow_pickle` kind json, the
                                                                        object
    ==========================================================  ======  ================================================

    Shards of the formats json, xsv, csv and tsv are read too. A file that is cut short while it is mapped ends the
    process with SIGBUS, as with every memory map: replace the files of a dataset by renaming, not in place.

    Args:
        path: The folder of ``index.json``.
        split: A sub-folder of `path` to read instead.
        columns: The columns to read. The bytes of all others stay untouched. Default: all.
        cache: The folder for decompressed shards. Default: ``torchslip/mds`` in the user's cache folder. It grows to
            the uncompressed size of the shards that are read and may be deleted at any time.
        validate_hash: Check each file against its hash in the index when a process first opens it: an algorithm, or
            True for the first that the index has. Sizes are always checked.
        allow_pickle: Unpickle ``pkl`` columns. A pickle can run any code: only for data of your own.
        image_columns: Columns of encoding ``bytes`` whose values are image files.
        decoded: Give every value as it was written: PIL images instead of their bytes, numpy's own scalars, `Decimal`.

    Raises:
        FileNotFoundError: If there is no ``index.json``.
        FormatError: If it is not an index, or its shards do not have the same columns.
        ValueError: If a column does not exist or cannot be an image, or there are no hashes to check.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        columns: Sequence[str] | None = None,
        cache: str | Path | None = None,
        validate_hash: bool | str = False,
        allow_pickle: bool = False,
        image_columns: Sequence[str] = (),
        decoded: bool = False,
    ) -> None:
        self.root = Path(path) / (split or "")
        """The folder of the index."""
        self._index = Index.read(self.root / INDEX_NAME)
        _check_hashes(self._index, validate_hash, self.root)
        self._files = ShardFiles(self.root, Path(cache) if cache else default_cache(), validate_hash)
        self._allow_pickle = allow_pickle
        self._decoded = decoded
        self._schema = _schema(self._index, self.root, columns, image_columns, allow_pickle)
        ends = np.cumsum(self._index.samples)
        self._unsigned_ends = ends.astype(np.uint64)
        self._starts = np.concatenate(([0], ends))
        self._plans: dict[int, FieldPlan] = {}
        self._opened: dict[int, Callable[[int], Record]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"MDS({str(self.root)!r}: {len(self)} samples in {len(self._index)} shards)"

    def __getstate__(self) -> dict[str, Any]:
        # Maps stay with their process; a plan has functions that do not pickle.
        return {**self.__dict__, "_plans": {}, "_opened": {}}

    @property
    def schema(self) -> Schema:
        """The columns that are read, and their kinds."""
        return dict(self._schema)

    @property
    def encodings(self) -> dict[str, str]:
        """The encodings of the columns that are read, as the index has them."""
        columns = dict(self._index.layouts[0].columns) if self._index.layouts else {}
        return {name: columns[name] for name in self._schema}

    @property
    def fingerprint(self) -> str:
        """A hash of what the index says of the shards: columns, samples, names, sizes, hashes."""
        return f"mds:sha256:{self._index.fingerprint}"

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """How many samples each shard holds, int64 ``[shards]``."""
        return self._index.samples.copy()

    @property
    def sizes(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each sample with all its columns, int64 ``[len]``, from the shards' tables; see `Source`.

        None where the tables cannot be read without the data (compressed and text shards), or say less than a record
        will have (``pil``, which becomes a PNG).
        """
        kinds = {(layout.format, layout.compression) for layout in self._index.layouts}
        if kinds - {("mds", None)} or self._decoded or "pil" in self.encodings.values():
            return None
        names = (self._index[shard].files["raw_data"].basename for shard in range(len(self._index)))
        counts = self._index.samples.tolist()
        parts = [read_sizes(self.root / name, count) for name, count in zip(names, counts, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def locate(self, index: int) -> str:
        """The path of the shard of a sample, and which of its samples it is."""
        (index,) = checked_indices([index], len(self))
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        files = self._index[shard].files
        name = files.get("zip_data", files["raw_data"]).basename
        return f"{self.root / name}, sample {index - self._starts[shard]}"

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read records. See `Source.fetch`."""
        ids = np.asarray(indices)
        if ids.dtype != np.int64:
            ids = np.array(checked_indices(indices, len(self)), np.int64)
        # As unsigned integers, negative indices are as much too large as those that are: `_open` finds no such shard.
        shards = self._unsigned_ends.searchsorted(ids.view(np.uint64), "right")
        rows = ids - self._starts[shards]
        find = self._opened.get
        records: list[Record] = []
        try:
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
                read = find(shard) or self._open(shard)
                records.append(read(row))
        except MissingDependencyError:
            raise
        except Exception as error:  # damaged bytes can fail in the decoder of any column
            index = checked_indices(indices, len(self))[len(records)]
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SampleError(f"Sample {index} cannot be read ({self.locate(index)}): {reason}") from error
        return records

    def _open(self, shard: int) -> Callable[[int], Record]:
        info = self._index[shard]
        if info.layout.format == "mds":
            plan = self._plan(int(self._index.layout_numbers[shard]))
            read = open_shard(self._files.open(info, "data", sparse=plan.leaves_out), info.samples, plan)
        else:
            data, meta = (self._files.open(info, part) for part in ("data", "meta"))
            read = open_split_shard(data, meta, info.samples, info.layout, self._schema)
        # The oldest go first: a map holds a file descriptor, and the kernel limits the number of maps.
        while len(self._opened) >= _max_opened():
            self._opened.pop(next(iter(self._opened)), None)
        self._opened[shard] = read
        return read

    def _plan(self, number: int) -> FieldPlan:
        if number not in self._plans:
            columns = self._index.layouts[number].columns
            encodings = [(name, parse_encoding(encoding)) for name, encoding in columns]
            convert: dict[str, Callable[[bytes], Any]] = {
                name: encoding.decode
                for name, encoding in encodings
                if (self._allow_pickle if encoding.name == "pkl" else self._decoded)
            }
            self._plans[number] = FieldPlan(encodings, self._schema, convert)
        return self._plans[number]


def _max_opened() -> int:
    if sys.version_info >= (3, 13):
        return 16_384
    try:
        import resource
    except ImportError:
        return 512
    return max(8, min(16_384, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def _schema(
    index: Index, root: Path, columns: Sequence[str] | None, image_columns: Sequence[str], allow_pickle: bool
) -> dict[str, FieldKind]:
    schemas = [_layout_schema(layout, image_columns, allow_pickle) for layout in index.layouts]
    for other in schemas[1:]:
        if other != schemas[0]:
            raise FormatError(f"The shards do not have the same columns: {schemas[0]} and {other}: {root / INDEX_NAME}")
    schema = schemas[0] if schemas else {}
    for name in (*(columns or ()), *image_columns) if schemas else ():
        if name not in schema:
            raise ValueError(f"There is no column {name!r}; the dataset has {', '.join(schema)}.")
    return {name: kind for name, kind in schema.items() if columns is None or name in columns}


def _layout_schema(layout: Layout, image_columns: Sequence[str], allow_pickle: bool) -> dict[str, FieldKind]:
    schema: dict[str, FieldKind] = {}
    for name, encoding in layout.columns:
        # The text formats have an encoding that mds has not, called as its kind.
        kind: FieldKind = "float" if encoding == "float" else parse_encoding(encoding).kind
        if name in image_columns:
            if encoding != "bytes" and kind != "image":
                raise ValueError(f"The column {name!r} has encoding {encoding}; only bytes can be declared images.")
            kind = "image"
        elif encoding == "pkl" and allow_pickle:
            kind = "json"
        schema[name] = kind
    return schema


def _check_hashes(index: Index, validate_hash: bool | str, root: Path) -> None:
    if isinstance(validate_hash, str) and validate_hash not in HASHES:
        raise ValueError(f"validate_hash must be True, False or one of {', '.join(HASHES)}; got {validate_hash!r}.")
    for layout in index.layouts if validate_hash is not False else ():
        for key, hashes in layout.files:
            if not hashes or (validate_hash is not True and validate_hash not in hashes):
                raise ValueError(
                    f"The index has {' and '.join(hashes) or 'no hashes'} for {key}, so {validate_hash} cannot be "
                    f"checked; pass validate_hash=False: {root / INDEX_NAME}"
                )
