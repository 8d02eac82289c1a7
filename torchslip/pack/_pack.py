"""Any source to MDS: in parallel, resumable, the same bytes whoever does it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError, SampleError
from torchslip.pack._chunks import map_records
from torchslip.pack._claim import claim
from torchslip.pack._journal import Journal, ShardNote
from torchslip.pack._measure import moments
from torchslip.pack._progress import Progress
from torchslip.pack._recipe import Recipe, make_recipe, open_source
from torchslip.pack._rows import PrepareRecords, Row
from torchslip.pack._shard_builder import Shard, ShardBuilder
from torchslip.pack._transcode import ImageRule, Pixels
from torchslip.sources import FieldIndexBuilder, LabelMode, Source, locate
from torchslip.sources.mds import INDEX_NAME, SIDECAR_NAME, ArrayFile, Index, Sidecar, index_text
from torchslip.storage import Folder, LocalFolder, open_folder

__all__ = ["Packed", "pack"]

OnError = Literal["raise", "skip"]

# The index of a field with more values than this would be as large as the field.
_MAX_INDEXED_VALUES = 1 << 18
_proof = logging.getLogger("torchslip.proof")


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed dataset.

    Attributes:
        path: Where it is: ``ts.ImageDataset(packed.path)``.
        samples: How many it has.
        shards: Of how many files.
        bytes: Of the shards, as they are stored.
        skipped: ``{"id", "where", "reason"}`` of each record of the source that was left out.
        resumed_samples: How many had been packed before by a call that did not end.
    """

    path: str
    samples: int
    shards: int
    bytes: int
    skipped: Sequence[Mapping[str, Any]] = field(repr=False)
    resumed_samples: int = 0


def pack(
    source: Source | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    image: ImageRule = "keep",
    pixels: Pixels = "jpeg",
    shard_bytes: int | str = 1 << 26,
    compression: str | None = None,
    hashes: str | Sequence[str] | None = "sha1",
    label_mode: LabelMode = "auto",
    require_labels: bool = False,
    executor: Executor | None = None,
    resume: bool = True,
    verify: bool = True,
    statistics: bool = False,
    on_error: OnError = "raise",
    exist_ok: bool = False,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    source_storage_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Packed:
    """Write any source as an MDS dataset, which this package and mosaicml-streaming read.

    ::

        ts.pack("photos", "photos-mds")
        train = ts.ImageDataset("photos-mds", views=ts.RandomResizedCrop(224), batch_size=256, shuffle=True)

    The samples keep their order, so sample ids and seeds mean the same. Beside the index goes a sidecar: the names of
    the classes, the size of every image, which samples have which label, and how the dataset was packed.

    Equal sources and options give equal bytes, with any executor, and also when the process was killed and pack called
    again: it goes on behind the last shard that is whole. A dataset that is already there with the same source and
    options is returned as it is.

    Args:
        source: A path that `torchslip.open` knows, or a source.
        out: A folder or URL; nothing else may be in it.
        image: ``keep`` stores image files as they are, ``jpeg`` encodes those that are not JPEG (with quality 95), and
            `Resize` makes the larger ones smaller.
        pixels: ``jpeg`` stores images as image files; ``jpeg-indexed`` writes the JPEG files among them again without
            loss, with restart markers, so that a crop decodes only the tiles it needs. Needs the compiled kernel.
            ``yuv420`` stores planes of Y, Cb and Cr: larger, and decoded several times as fast.
        shard_bytes: Of a shard before compression, below 4 GiB, such as ``"64mb"``.
        compression: ``zstd``, ``br``, ``bz2``, ``gz`` or ``snappy``, or with a level such as ``zstd:7``. JPEG files do
            not get smaller.
        hashes: Of the shards, for `verify` and ``MDS(validate_hash=True)``; see `torchslip.MDSWriter`.
        label_mode: For a folder of pictures: see `torchslip.ImageFolder`. ``none`` leaves out the field ``label`` of
            other sources.
        require_labels: Refuse a source without labels, and a folder in which a picture has no class.
        executor: Where pictures are read, decoded and encoded: any executor of `concurrent.futures`, such as a process
            pool, or one of Dask, Ray or MPI. Default: threads, one per core.
        resume: Go on with an unfinished dataset of the same source and options; else begin it anew.
        verify: Decode every image that is kept as it is, so that none is in the dataset that cannot be.
        statistics: Compute mean and standard deviation over all pixels too, for ``MDS(out).sidecar.statistics``; see
            `torchslip.pack.measure`.
        on_error: What happens with a record that cannot be read or decoded: ``raise`` ends with an error that names it,
            and leaves what is finished to be resumed; ``skip`` leaves it out and lists it in the result.
        exist_ok: Replace another dataset that is in `out`: removes what its index lists.
        progress: Show a progress bar on a terminal.
        storage_options: For the storage of `out`, as fsspec takes them.
        source_storage_options: For that of `source`, if it is a URL.
        store: The folder or URL that keeps snapshots, see `torchslip.resolve`. What one of them has is not replaced.

    Raises:
        FormatError: If `source` is not a dataset, or has no labels and must have some.
        FileExistsError: If another dataset is in `out`, finished or not, or anything else, or what a snapshot has.
        SampleError: If a record cannot be read or decoded.
        ValueError: If an option is not a valid one.
        MissingDependencyError: If ``jpeg-indexed`` is asked for and the kernel is not there.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}; got {on_error!r}.")
    opened = open_source(
        source,
        label_mode=label_mode,
        require_labels=require_labels,
        storage_options=source_storage_options,
    )
    recipe = make_recipe(
        opened,
        image=image,
        pixels=pixels,
        shard_bytes=shard_bytes,
        compression=compression,
        hashes=hashes,
        verify=verify,
        statistics=statistics,
        labels=label_mode != "none",
    )
    folder = open_folder(out, storage_options)
    _refuse_own_folder(opened, folder)
    journal = Journal(folder, recipe.fingerprint)
    if (found := _find_packed(folder, recipe)) is not None:
        journal.clear()
        return found
    finished = _prepare(folder, journal, recipe, resume=resume, exist_ok=exist_ok, store=store)
    packer = _Packer(opened, recipe, folder, journal, finished)
    try:
        packer.run(executor, on_error, progress)
    finally:
        journal.stop()
    return packer.finish()


def _refuse_own_folder(source: Source, folder: Folder) -> None:
    root = getattr(source, "root", None)
    if root is None or not isinstance(folder, LocalFolder) or "://" in str(root):
        return
    inside, out = Path(root).resolve(), folder.path.resolve()
    if inside == out or inside in out.parents:
        raise FileExistsError(
            f"The dataset would lie inside its own source, {inside}; choose another folder than {out}."
        )


def _find_packed(folder: Folder, recipe: Recipe) -> Packed | None:
    """The dataset that is in the folder, if it is this one."""
    names = folder.names()
    if INDEX_NAME not in names or SIDECAR_NAME not in names:
        return None
    try:
        index = Index(folder.read(INDEX_NAME).decode())
        sidecar = Sidecar.parse(ArrayFile.parse(folder.read(SIDECAR_NAME), SIDECAR_NAME))
    except (ValueError, KeyError, TypeError):
        return None
    ours = sidecar.dataset == f"mds:sha256:{index.fingerprint}"
    if not ours or sidecar.packed.get("fingerprint") != recipe.fingerprint:
        return None
    stored = [info.files.get("zip_data", info.files["raw_data"]) for info in index]
    if not {file.basename for file in stored} <= set(names):
        return None
    size = sum(file.bytes for file in stored)
    return Packed(str(folder), sidecar.samples, len(index), size, sidecar.skipped, sidecar.samples)


def _prepare(
    folder: Folder,
    journal: Journal,
    recipe: Recipe,
    *,
    resume: bool,
    exist_ok: bool,
    store: str | os.PathLike[str] | None,
) -> list[ShardNote]:
    """Make sure that the folder is ours; returns what is finished in it."""
    found = None if INDEX_NAME in folder.names() else journal.found_fingerprint()
    if found == recipe.fingerprint and resume:
        return journal.resume()
    if found is not None and found != recipe.fingerprint and not exist_ok:
        raise FileExistsError(
            f"There is an unfinished dataset of another source or with other options in {folder}. Pack with those to "
            "finish it, choose another folder, or pass exist_ok=True (--replace) to begin anew."
        )
    try:
        claim(folder, exist_ok=exist_ok or found is not None, remote=not isinstance(folder, LocalFolder), store=store)
    except FileExistsError as error:
        if INDEX_NAME not in folder.names() or exist_ok:
            raise
        raise FileExistsError(
            f"There is another dataset in {folder}: its source, its options or its files are not those asked for. "
            "Choose another folder, or pass exist_ok=True (--replace) to replace it."
        ) from error
    journal.begin()
    return []


class _Packer:
    """Puts rows into shards, and notes down what the sidecar will say."""

    def __init__(
        self, source: Source, recipe: Recipe, folder: Folder, journal: Journal, finished: Sequence[ShardNote]
    ) -> None:
        self._source = source
        self._recipe = recipe
        self._folder = folder
        self._journal = journal
        self._indexes = {name: FieldIndexBuilder(limit=_MAX_INDEXED_VALUES) for name in recipe.indexed_fields}
        self._decimals = [name for name, encoding in recipe.columns.items() if encoding == "str_decimal"]
        self._entries: list[Mapping[str, Any]] = []
        self._skipped: list[Mapping[str, Any]] = []
        self._image_sizes: dict[str, list[npt.NDArray[np.int32]]] = {name: [] for name in recipe.image_fields}
        self._histograms = self._no_histograms()
        self._next_record = 0
        for note in finished:
            self._take(note)
        self._resumed_samples = sum(entry["samples"] for entry in self._entries)
        self._builder = ShardBuilder(
            columns=recipe.columns,
            compression=recipe.compression,
            hashes=recipe.hashes,
            size_limit=recipe.shard_bytes,
            first=len(finished),
        )
        self._begin_shard()

    def _begin_shard(self) -> None:
        self._sizes_here: dict[str, list[tuple[int, int]]] = {name: [] for name in self._image_sizes}
        self._values_here: dict[str, list[int | str]] = {name: [] for name in self._indexes}
        self._skipped_here: list[Mapping[str, Any]] = []
        self._histograms_here = self._no_histograms()

    def _no_histograms(self) -> dict[str, npt.NDArray[np.int64]]:
        measured = self._recipe.image_fields if self._recipe.statistics else []
        return {name: np.zeros((3, 256), np.int64) for name in measured}

    def _take(self, note: ShardNote) -> None:
        self._entries.append(note.entry)
        self._skipped += note.skipped
        self._next_record = note.next_record
        for name, sizes in note.image_sizes.items():
            self._image_sizes[name].append(sizes)
        for name, histogram in note.histograms.items():
            self._histograms[name] += histogram
        for name in list(self._indexes):
            if name in note.values:
                self._indexes[name].add(note.values[name])
            if name not in note.values or self._indexes[name].is_over():
                del self._indexes[name]

    def run(self, executor: Executor | None, on_error: OnError, progress: bool) -> None:
        """Pack all records that are not packed yet."""
        work = PrepareRecords(self._recipe)
        rows = map_records(self._source, work, executor=executor, begin=self._next_record)
        with (
            Progress("Packing", len(self._source), shown=progress, done=self._next_record) as bar,
            contextlib.closing(rows),
        ):
            for row in rows:
                reason = row.reason or self._add(row)
                if reason:
                    self._leave_out(row.index, reason, on_error)
                bar.advance()
            self._store(self._builder.finish(), len(self._source))
            self._journal.wait()

    def _add(self, row: Row) -> str:
        """Add a row; returns why that is not possible."""
        try:
            # A source gives decimals as text, which is what is stored.
            decimals = {name: row.record[name].encode() for name in self._decimals}
            parts = self._builder.encode(row.record | decimals)
        except (TypeError, ValueError) as error:
            return str(error)
        self._store(self._builder.add(parts), row.index)
        for name, sizes in self._sizes_here.items():
            sizes.append(row.image_sizes[name])
        for name, histogram in row.histograms.items():
            self._histograms_here[name] += histogram
        for name, values in self._values_here.items():
            value = row.record[name]
            values.append(value if isinstance(value, str) else int(value))
        return ""

    def _leave_out(self, index: int, reason: str, on_error: OnError) -> None:
        where = locate(self._source, index)
        if on_error == "raise":
            raise SampleError(
                f"Sample {index} cannot be packed: {reason if where in reason else f'{where}: {reason}'}. Mend or "
                "remove it, or pass on_error='skip' (--on-error skip) to leave such samples out; what is finished is "
                "kept."
            )
        self._skipped_here.append({"id": index, "where": where, "reason": reason})
        _proof.info("%s", {"event": "sample_skipped", "sample_id": index, "reason": f"{where}: {reason}"})

    def _store(self, shard: Shard | None, next_record: int) -> None:
        """Store a shard of the rows so far, if there is one."""
        if shard is None:
            return
        sizes = {name: np.array(pairs, np.int32).reshape(-1, 2) for name, pairs in self._sizes_here.items()}
        note = ShardNote(shard.entry, next_record, self._skipped_here, sizes, self._values_here, self._histograms_here)
        self._journal.add(len(self._entries), shard, note)
        self._take(note)
        self._begin_shard()

    def finish(self) -> Packed:
        """Write the sidecar, then the index."""
        self._skipped += self._skipped_here
        stored = [entry["zip_data"] or entry["raw_data"] for entry in self._entries]
        missing = sorted({file["basename"] for file in stored} - set(self._folder.names()))
        if missing:
            raise FormatError(f"{missing[0]} has vanished from {self._folder}, so there is no index; pack again.")
        text = index_text(self._entries)
        samples = sum(entry["samples"] for entry in self._entries)
        packed = {"fingerprint": self._recipe.fingerprint, **self._recipe.as_options()}
        sidecar = Sidecar.dump(
            dataset=f"mds:sha256:{Index(text).fingerprint}",
            samples=samples,
            fields=self._recipe.fields,
            classes=getattr(self._source, "classes", []) if "label" in self._recipe.fields else [],
            statistics={name: _statistics(histogram) for name, histogram in self._histograms.items() if samples},
            source=self._recipe.source,
            packed=packed,
            skipped=self._skipped,
            image_sizes={
                name: np.concatenate([np.zeros((0, 2), np.int32), *parts]) for name, parts in self._image_sizes.items()
            },
            indexes={name: builder.build() for name, builder in self._indexes.items()},
        )
        self._folder.write(SIDECAR_NAME, sidecar)
        self._folder.write(INDEX_NAME, text.encode())
        self._journal.clear()
        size = sum(file["bytes"] for file in stored)
        return Packed(str(self._folder), samples, len(stored), size, self._skipped, self._resumed_samples)


def _statistics(histogram: npt.NDArray[np.int64]) -> Mapping[str, Any]:
    pixels, mean, std = moments(histogram)
    return {"pixels": pixels, "mean": mean, "std": std}
