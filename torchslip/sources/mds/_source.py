"""MDS datasets as a source."""

from __future__ import annotations

import copy
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchslip.errors import MissingDependencyError, SampleError
from torchslip.sources._field_index import FieldIndex, index_values
from torchslip.sources._source import Record, Schema, checked_indices, image_fields
from torchslip.sources.mds._cached import CachedShards
from torchslip.sources.mds._encodings import parse_encoding
from torchslip.sources.mds._files import Place, ShardFiles
from torchslip.sources.mds._hashing import HASHES
from torchslip.sources.mds._index import INDEX_NAME, Index
from torchslip.sources.mds._pinned import check_pinned, open_place
from torchslip.sources.mds._schema import read_schema
from torchslip.sources.mds._shard import FieldPlan, ShardReader, open_shard, read_sizes
from torchslip.sources.mds._sidecar import Sidecar, cached_index, find_sidecar
from torchslip.sources.mds._split_shard import open_split_shard
from torchslip.storage import LocalFolder, NodeCache

__all__ = ["MDS"]

# The two functions of a `ShardReader`.
_READ, _LEND = 0, 1
# Shards that the cache cannot keep.
_MAX_IN_MEMORY = 2


class MDS:
    """A dataset in the MDS format, version 2: the shards that `MDSWriter` and mosaicml-streaming write.

    Shards are mapped into memory; those behind a URL, and compressed ones, after they were downloaded and decompressed
    into a cache, once for all processes. The dataset's own folder is only read. A record has the columns in
    alphabetical order, images as the bytes that are stored:

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
        path: The folder of ``index.json``, its URL, or a dataset link, see `torchslip.resolve`, whose files have to be
            those of the snapshot when it is opened.
        split: A sub-folder of `path` to read instead.
        columns: The columns to read. The bytes of all others stay untouched. Default: all.
        cache: A `NodeCache`, or its folder, for shards that are downloaded or decompressed. Default: ``NodeCache()``.
        prefetch: How many such shards to fetch in the background ahead of their use, where `prepare` has said what
            comes next.
        storage_options: For fsspec, if `path` is a URL.
        validate_hash: Check each file against its hash in the index when a process first opens it: an algorithm, or
            True for the first that the index has. Sizes are always checked, and what was downloaded where there are
            hashes.
        allow_pickle: Unpickle ``pkl`` columns. A pickle can run any code: only for data of your own.
        image_columns: Columns of encoding ``bytes`` whose values are image files. What `torchslip.pack` wrote says so
            itself.
        decoded: Give every value as it was written: PIL images instead of their bytes, numpy's own scalars, `Decimal`.

    Raises:
        FileNotFoundError: If there is no ``index.json``, or no such snapshot.
        StorageError: If a file has changed since the snapshot.
        FormatError: If it is not an index, or its shards do not have the same columns.
        ValueError: If a column does not exist or cannot be an image, or there are no hashes to check.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        columns: Sequence[str] | None = None,
        cache: NodeCache | str | os.PathLike[str] | None = None,
        validate_hash: bool | str = False,
        allow_pickle: bool = False,
        image_columns: Sequence[str] = (),
        decoded: bool = False,
        prefetch: int = 4,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.snapshot = open_place(path, split, storage_options)
        """Where the index lies; and what is read, if `path` was a link with a state."""
        self.root = str(self.folder)
        """Path or URL of that."""
        where = f"{self.root}/{INDEX_NAME}"
        self._index = Index.decode(self.folder.read(INDEX_NAME), where)
        check_pinned(self.snapshot, self.folder, split, self._index)
        _check_hashes(self._index, validate_hash, where)
        cache = cache if isinstance(cache, NodeCache) else NodeCache(cache)
        local = isinstance(self.folder, LocalFolder)
        version = "" if local else repr(self.folder.stat(INDEX_NAME))
        self._files = ShardFiles(self.folder, cache, validate_hash, version)
        # Whether every shard is mapped where it lies, so that nothing need be known of what comes next.
        self._in_place = local and not any(layout.compression for layout in self._index.layouts)
        self.prefetch = prefetch
        """How many shards to fetch ahead; changes count until the first record is read."""
        self._cached: CachedShards | None = None
        self._places: dict[int, Place] = {}
        self._allow_pickle = allow_pickle
        self._decoded = decoded
        self.sidecar: Sidecar | None = find_sidecar(self.folder, lambda: self.fingerprint)
        """What `torchslip.pack` knew of the dataset; None if it was written by something else."""
        fields = self.sidecar.fields if self.sidecar is not None else {}
        image_columns = [*image_columns, *(name for name, kind in fields.items() if kind == "image")]
        self._whole_schema = read_schema(self._index, where, None, image_columns, allow_pickle)
        self._schema = read_schema(self._index, where, columns, image_columns, allow_pickle)
        ends = np.cumsum(self._index.samples)
        self._unsigned_ends = ends.astype(np.uint64)
        self._starts = np.concatenate(([0], ends))
        self._plans: dict[int, FieldPlan] = {}
        self._opened: dict[int, ShardReader] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"MDS({self.root!r}: {len(self)} samples in {len(self._index)} shards)"

    def __getstate__(self) -> dict[str, Any]:
        # Maps stay with their process; a plan has functions that do not pickle.
        return {**self.__dict__, "_plans": {}, "_opened": {}, "_places": {}, "_cached": None}

    @property
    def schema(self) -> Schema:
        """The columns that are read, and their kinds."""
        return dict(self._schema)

    @property
    def fingerprint(self) -> str:
        """A hash of what the index says of the shards: columns, samples, names, sizes, hashes."""
        return f"mds:sha256:{self._index.fingerprint}"

    @property
    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """How many samples each shard holds, int64 ``[shards]``."""
        return self._index.samples.copy()

    @property
    def encodings(self) -> dict[str, str]:
        """The columns that are read and the MDS encoding of each; empty where shards are of another format."""
        layouts = [layout for layout in self._index.layouts if layout.format == "mds"]
        return {name: encoding for layout in layouts for name, encoding in layout.columns if name in self._schema}

    @property
    def classes(self) -> list[str]:
        """The names of the values of ``label``, if `torchslip.pack` has written them; else nothing."""
        return list(self.sidecar.classes) if self.sidecar is not None else []

    def image_sizes(self, name: str) -> npt.NDArray[np.int32]:
        """Height and width of every image of a field in pixels, int32 ``[len, 2]``, without reading the images.

        Raises:
            ValueError: If the dataset was not written by `torchslip.pack`, or there is no such field.
        """
        sizes = self.sidecar.image_sizes(name) if self.sidecar is not None else None
        if sizes is None:
            raise ValueError(f"The image sizes of {name!r} are not stored; torchslip.pack does it: {self!r}")
        return sizes

    def index(self, name: str) -> FieldIndex:
        """The samples of each value of a field: ``ts.Subset(source.index("label")[3])``.

        `torchslip.pack` has stored it. Otherwise that column alone is read, once, and the result kept in `cache`.

        Raises:
            ValueError: If there is no such field, or its values are neither integers nor strings.
            SampleError: If a sample cannot be read.
        """
        kind = self._whole_schema.get(name)
        if kind not in ("int", "str"):
            fields = [each for each, kind in self._whole_schema.items() if kind in ("int", "str")]
            raise ValueError(
                f"index takes one of the fields of integers or strings ({', '.join(fields)}); got {name!r}."
            )
        stored = self.sidecar.index(name) if self.sidecar is not None else None
        if stored is not None:
            return stored
        column = copy.copy(self)
        column._schema = {name: kind}
        # The fingerprint of an index without hashes does not tell labels from others of the same size.
        identity = f"{self.fingerprint}\0{self.root}\0{self.folder.stat(INDEX_NAME)!r}"
        return cached_index(self._files.cache, identity, name, lambda: index_values(column, name))

    @property
    def sizes(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each sample with all its columns, int64 ``[len]``, from the shards' tables; see `Source`.

        None where the tables cannot be read without the data (remote, compressed and text shards), or say less than a
        record will have (``pil``, which becomes a PNG).
        """
        text = any(layout.format != "mds" for layout in self._index.layouts)
        if not self._in_place or text or self._decoded or "pil" in self.encodings.values():
            return None
        names = (self._index[shard].files["raw_data"].basename for shard in range(len(self._index)))
        counts = self._index.samples.tolist()
        parts = [read_sizes(Path(self.root, name), count) for name, count in zip(names, counts, strict=True)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def locate(self, index: int) -> str:
        """The path of the shard of a sample, and which of its samples it is."""
        (index,) = checked_indices([index], len(self))
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        files = self._index[shard].files
        name = files.get("zip_data", files["raw_data"]).basename
        return f"{self.root}/{name}, sample {index - self._starts[shard]}"

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read records. See `Source.fetch`."""
        return self._fetch(indices, _READ)

    def lend(self, indices: Sequence[int]) -> list[Record]:
        """Read records, images as views of the mapped shards. See `Source`."""
        return self._fetch(indices, _LEND)

    def _fetch(self, indices: Sequence[int], how: int) -> list[Record]:
        ids = np.asarray(indices)
        if ids.dtype != np.int64:
            ids = np.array(checked_indices(indices, len(self)), np.int64)
        # As unsigned integers, negative indices are as much too large as those that are: `_open` finds no such shard.
        shards = self._unsigned_ends.searchsorted(ids.view(np.uint64), "right")
        rows = ids - self._starts[shards]
        if not (self._in_place or self._opened.keys() >= set(shards.tolist())):
            return self._fetch_by_shard(indices, shards.tolist(), rows.tolist(), how)
        find = self._opened.get
        records: list[Record] = []
        try:
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
                records.append((find(shard) or self._open(shard))[how](row))
        except MissingDependencyError:
            raise
        except Exception as error:  # damaged bytes can fail in the decoder of any column
            raise self._named(checked_indices(indices, len(self))[len(records)], error) from error
        return records

    def prepare(self, indices: Sequence[int], counts: Sequence[int] | None = None) -> bool:
        """Say which records will be fetched next, so that their shards are fetched ahead. See `Source`.

        Each call replaces what was said before.

        Args:
            indices: Record numbers, the next one first.
            counts: How many records each of them stands for; default: one.
        """
        if self._in_place:
            return False
        ids = np.array(checked_indices(indices, len(self)), np.int64)
        if len(ids):
            shards = self._unsigned_ends.searchsorted(ids.view(np.uint64), "right")
            stand_for = np.ones(len(ids), np.int64) if counts is None else np.asarray(counts, np.int64)
            wanted_now = self._shards().expect(shards, stand_for)
            self._close([shard for shard in list(self._places) if shard not in wanted_now])
        return True

    def _fetch_by_shard(self, indices: Sequence[int], shards: list[int], rows: list[int], how: int) -> list[Record]:
        """For shards that take long to open: one after the other, and ranges of several at a time."""
        places: dict[int, list[int]] = {}
        for place, shard in enumerate(shards):
            places.setdefault(shard, []).append(place)
        if len(self._index) in places:
            checked_indices(indices, len(self))
        cached, ranges = self._shards(), {}
        for shard, at in places.items():
            if shard not in self._opened and cached.by_range(shard, info := self._index[shard], len(at)):
                plan = self._plan(int(self._index.layout_numbers[shard]))
                ranges[shard] = cached.ranges.start(shard, info, plan, [rows[place] for place in at])
        records: list[Record] = [{}] * len(rows)
        for shard in sorted(places, key=ranges.__contains__):
            place = places[shard][0]
            try:
                if shard in ranges:
                    for place, record in zip(places[shard], ranges[shard].result(), strict=True):
                        records[place] = record
                else:
                    read = (self._opened.get(shard) or self._open(shard))[how]
                    for place in places[shard]:
                        records[place] = read(rows[place])
            except MissingDependencyError:
                raise
            except Exception as error:
                raise self._named(operator.index(indices[place]), error) from error
        return records

    def _named(self, index: int, error: Exception) -> SampleError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return SampleError(f"Sample {index} cannot be read ({self.locate(index)}): {reason}")

    def _shards(self) -> CachedShards:
        # Threads do not survive a fork.
        if self._cached is None or self._cached.pid != os.getpid():
            self._cached = CachedShards(self._index, self._files, self.prefetch)
        return self._cached

    def _close(self, shards: Iterable[int]) -> None:
        """Let go of shards, so that they can be removed from the cache."""
        for shard in shards:
            self._opened.pop(shard, None)
            self._places.pop(shard, None)

    def _let_go(self) -> None:
        self._close([shard for shard, place in list(self._places.items()) if place == "cache"])

    def _open(self, shard: int) -> ShardReader:
        info = self._index[shard]
        if info.layout.format == "mds":
            plan = self._plan(int(self._index.layout_numbers[shard]))
            data, place = self._files.open(info, "data", sparse=plan.leaves_out, let_go=self._let_go)
            reader = open_shard(data, info.samples, plan)
        else:
            (data, place), (meta, _) = (self._files.open(info, part, let_go=self._let_go) for part in ("data", "meta"))
            reader = open_split_shard(data, meta, info.samples, info.layout, self._schema)
        if not self._in_place:
            self._shards().opened(shard)
            in_memory = [each for each, at in list(self._places.items()) if at == "memory"]
            if place == "memory":
                self._close(in_memory[: len(in_memory) - _MAX_IN_MEMORY + 1])
            self._places[shard] = place
        # The oldest go first: a map holds a file descriptor, and the kernel limits the number of maps.
        while len(self._opened) >= _max_opened():
            # From a copy, because other threads open shards too.
            self._opened.pop(next(iter(tuple(self._opened)), shard), None)
        self._opened[shard] = reader
        return reader

    def _plan(self, number: int) -> FieldPlan:
        if number not in self._plans:
            columns = self._index.layouts[number].columns
            encodings = [(name, parse_encoding(encoding)) for name, encoding in columns]
            convert: dict[str, Callable[[bytes], Any]] = {
                name: encoding.decode
                for name, encoding in encodings
                if (self._allow_pickle if encoding.name == "pkl" else self._decoded)
            }
            self._plans[number] = FieldPlan(encodings, self._schema, convert, image_fields(self._schema))
        return self._plans[number]


def _max_opened() -> int:
    if sys.version_info >= (3, 13):
        return 16_384
    try:
        import resource
    except ImportError:
        return 512
    return max(8, min(16_384, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def _check_hashes(index: Index, validate_hash: bool | str, where: str) -> None:
    if isinstance(validate_hash, str) and validate_hash not in HASHES:
        raise ValueError(f"validate_hash must be True, False or one of {', '.join(HASHES)}; got {validate_hash!r}.")
    for layout in index.layouts if validate_hash is not False else ():
        for key, hashes in layout.files:
            if not hashes or (validate_hash is not True and validate_hash not in hashes):
                raise ValueError(
                    f"The index has {' and '.join(hashes) or 'no hashes'} for {key}, so {validate_hash} cannot be "
                    f"checked; pass validate_hash=False: {where}"
                )
