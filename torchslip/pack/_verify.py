"""Reading a whole dataset to see whether everything in it is as it should be."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchslip.decode import check_picture, read_header
from torchslip.errors import MissingDependencyError, SampleError
from torchslip.pack._chunks import map_records
from torchslip.pack._progress import Progress
from torchslip.sources import MDS, Source, image_fields, index_values, locate, open
from torchslip.sources.mds import INDEX_NAME, SIDECAR_NAME, Index, check_shard

__all__ = ["Problem", "Verified", "verify"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        where: The path of a file or shard.
        sample: The id of a sample, or None if it is more than one.
        reason: What it is.
    """

    where: str
    sample: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` has found.

    Attributes:
        samples: How many there should be.
        hashed: Whether there were hashes to check.
        problems: Nothing, if the dataset is whole.
    """

    samples: int
    hashed: bool
    problems: Sequence[Problem] = field(repr=False)


def verify(
    dataset: Source | str | os.PathLike[str], *, executor: Executor | None = None, progress: bool = False
) -> Verified:
    """Check a dataset: sizes, all hashes that it has, every value, every image decoded, and the sidecar.

    Args:
        dataset: A path that `torchslip.open` knows, or a source. Of an MDS dataset in a folder every file is checked;
            of other sources every record.
        executor: Where files are read and pictures decoded: any executor of `concurrent.futures`. Default: threads,
            one per core.
        progress: Show a progress bar on a terminal.

    Raises:
        FormatError: If it cannot be opened at all.
        MissingDependencyError: If a hash or compression needs a package that is not installed.
    """
    source = dataset if isinstance(dataset, Source) else open(dataset)
    if isinstance(source, MDS) and (Path(source.root) / INDEX_NAME).is_file():
        return _verify_shards(source, executor, progress)
    problems = []
    found = map_records(source, _check_records, executor=executor)
    with Progress("Verifying", len(source), shown=progress) as bar, contextlib.closing(found):
        for problem in found:
            problems += [] if problem is None else [problem]
            bar.advance()
    return Verified(len(source), False, problems)


def _check_records(source: Source, ids: range) -> tuple[list[Problem | None], int]:
    found: list[Problem | None] = []
    read_bytes = 0
    images = image_fields(source.schema)
    for index in ids:
        try:
            (record,) = source.fetch([index])
            for name in images:
                read_bytes += len(record[name])
                check_picture(record[name], read_header(record[name]))
        except (MissingDependencyError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged file makes Pillow stumble over
            found.append(Problem(locate(source, index), index, str(error) or type(error).__name__))
        else:
            found.append(None)
    return found, read_bytes


@dataclass(frozen=True, slots=True)
class _Shards:
    """The shards of a dataset as a sequence, for `map_records`."""

    root: Path
    index: Index
    starts: Sequence[int]
    images: Sequence[str]

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True)
class _Checked:
    """What came of one shard."""

    samples: int
    problems: list[Problem]
    image_sizes: dict[str, list[tuple[int, int]]]


def _verify_shards(source: MDS, executor: Executor | None, progress: bool) -> Verified:
    path = Path(source.root) / INDEX_NAME
    index = Index.decode(path.read_bytes(), str(path))
    starts = np.concatenate(([0], np.cumsum(index.samples))).tolist()
    shards = _Shards(Path(source.root), index, starts, image_fields(source.schema))
    problems: list[Problem] = []
    sizes: dict[str, list[tuple[int, int]]] = {name: [] for name in shards.images}
    results = map_records(shards, _check_shards, executor=executor)
    with Progress("Verifying", len(source), shown=progress) as bar, contextlib.closing(results):
        for checked in results:
            problems += checked.problems
            for name, found in checked.image_sizes.items():
                sizes[name] += found
            bar.advance(checked.samples)
    if not problems:
        problems += _check_sidecar(source, {name: np.array(each).reshape(-1, 2) for name, each in sizes.items()})
    hashed = all(hashes for layout in index.layouts for _, hashes in layout.files)
    return Verified(len(source), hashed, problems)


def _check_shards(shards: _Shards, numbers: range) -> tuple[list[_Checked], int]:
    checked = []
    read_bytes = 0
    for number in numbers:
        info = shards.index[number]
        file = info.files.get("zip_data", info.files["raw_data"])
        read_bytes += info.files["raw_data"].bytes
        sizes: dict[str, list[tuple[int, int]]] = {name: [] for name in shards.images}

        def check_image(row: int, name: str, data: bytes, sizes: dict[str, list[tuple[int, int]]] = sizes) -> None:
            header = read_header(data)
            check_picture(data, header)
            sizes[name].append((header.height, header.width))

        where = str(shards.root / file.basename)
        problems = [
            Problem(where, None if row is None else shards.starts[number] + row, reason)
            for row, reason in check_shard(shards.root, info, shards.images, check_image)
        ]
        checked.append(_Checked(info.samples, problems, sizes))
    return checked, read_bytes


def _check_sidecar(source: MDS, sizes: dict[str, np.ndarray]) -> Iterator[Problem]:
    where = Path(source.root) / SIDECAR_NAME
    sidecar = source.sidecar
    if sidecar is None:
        if where.exists():
            yield Problem(str(where), None, "it is damaged, or belongs to another index, and is passed over")
        return
    try:
        for name, found in sizes.items():
            stored = sidecar.image_sizes(name)
            if stored is not None and (differs := np.flatnonzero((stored != found).any(axis=1))).size:
                yield Problem(str(where), int(differs[0]), f"the size of the image {name!r} is not the one stored")
        for name in sidecar.indexed_fields:
            stored_index, true = sidecar.index(name), index_values(MDS(source.root, columns=[name]), name)
            if stored_index is None or list(stored_index) != list(true) or (stored_index.ids != true.ids).any():
                yield Problem(str(where), None, f"the index of {name!r} is not that of the samples")
    except (SampleError, ValueError) as error:
        yield Problem(str(where), None, str(error))
