"""A folder of pictures, with or without one sub-folder per class."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError, SampleError
from torchslip.sources._field_index import FieldIndex, FieldIndexBuilder
from torchslip.sources._source import Record, Schema, checked_indices
from torchslip.storage import LabelMode

__all__ = ["IMG_EXTENSIONS", "ImageFolder", "LabelMode"]

# torchvision.datasets.folder.IMG_EXTENSIONS
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

# Without O_NONBLOCK, opening a named pipe would wait for somebody to write to it.
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


class ImageFolder:
    """The pictures below a folder, by the rules of `torchvision.datasets.ImageFolder`.

    With classes (``root/class/**/file``), samples, their order, `classes` and `class_to_idx` are those of torchvision.
    A folder of pictures without sub-folders works too; its records have no label. Names are kept in one block of bytes
    and each file is stat-ed once, so that a folder of millions opens in seconds and in tens of bytes per file.

    Args:
        root: The folder.
        label_mode: ``imagefolder`` reads one class per sub-folder and ignores files directly in `root`, as torchvision
            does; ``none`` takes every picture at any depth, without labels; ``auto`` decides by what is there and
            refuses a folder that has both.
        extensions: Which files are pictures, lower case with the dot. Default: those of torchvision (no ``.gif``).
        is_valid_file: Decides instead of `extensions`; gets the file's path.
        allow_empty: Accept a class folder without a picture.

    Raises:
        FileNotFoundError: If `root` does not exist, or has neither pictures nor class folders.
        FormatError: If a class folder has no picture, or ``auto`` cannot decide.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        label_mode: LabelMode = "auto",
        extensions: Sequence[str] = IMG_EXTENSIONS,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> None:
        if label_mode not in get_args(LabelMode):
            raise ValueError(f"label_mode must be one of {', '.join(get_args(LabelMode))}; got {label_mode!r}.")
        given = os.path.expanduser(os.fspath(root))  # noqa: PTH111  (as torchvision does; Path drops "./")
        self.root = given.rstrip(os.sep) or given
        suffixes = (extensions,) if isinstance(extensions, str) else tuple(extensions)
        wanted = "that is_valid_file accepts" if is_valid_file else f"with the extension {' or '.join(suffixes)}"
        accepts = is_valid_file or (lambda path: path.lower().endswith(suffixes))
        top = _Scan(self.root)
        names = sorted(top.folders)
        mode = _decide(label_mode, self.root, names, top.pictures(accepts))

        self.classes: list[str] = names if mode == "imagefolder" else []
        """Sorted names of the class folders; empty without labels."""
        self.class_to_idx: dict[str, int] = {name: i for i, name in enumerate(self.classes)}
        """Class name to label."""
        listing = _Listing(self.root)
        counts: list[int] = []
        for tree in (_Scan(f"{self.root}{os.sep}{name}") for name in names) if self.classes else [top]:
            before = len(listing)
            for scan in _walk(tree):
                listing.add(scan, accepts)
            counts.append(len(listing) - before)
        empty = [name for name, count in zip(self.classes, counts, strict=False) if not count]
        if empty and not allow_empty:
            raise FormatError(
                f"Found no picture for the classes {', '.join(empty)} in {self.root!r}. Every sub-folder is a "
                f"class and needs a file {wanted}; remove it, or pass allow_empty=True."
            )
        if not len(listing) and not allow_empty:
            raise FileNotFoundError(errno.ENOENT, f"No picture {wanted} in", self.root)
        self._names, self._ends, self.sizes = listing.finish()
        """Bytes of each file, int64 ``[len]``; -1 for one that could not be stat-ed."""
        self._class_ends = np.cumsum(counts) if self.classes else None

    def __len__(self) -> int:
        return len(self._ends)

    def __repr__(self) -> str:
        labels = f", {len(self.classes)} classes" if self.classes else ""
        return f"ImageFolder({self.root!r}: {len(self)} pictures{labels})"

    @property
    def schema(self) -> Schema:
        """``image``, and ``label`` where there are classes."""
        return {"image": "image", "label": "int"} if self.classes else {"image": "image"}

    @property
    def fingerprint(self) -> str:
        """A hash of relative names, sizes and classes: equal for a copy of the folder at another place."""
        digest = hashlib.sha256()
        for part in (self._names, self._ends.astype("<i8").tobytes(), self.sizes.astype("<i8").tobytes()):
            digest.update(part)
        digest.update("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        return f"imagefolder:sha256:{digest.hexdigest()}"

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The label of every record, int64 ``[len]``: ``ts.Subset(np.flatnonzero(source.targets == 3))``.

        Raises:
            AttributeError: If the folder has no classes.
        """
        if self._class_ends is None:
            raise AttributeError(f"{self!r} has no labels.")
        return np.repeat(np.arange(len(self.classes)), np.diff(self._class_ends, prepend=0))

    def index(self, name: str) -> FieldIndex:
        """The samples of each label: ``ts.Subset(source.index("label")[3])``.

        Raises:
            ValueError: If `name` is not ``label``, or the folder has no classes.
        """
        if name != "label" or self._class_ends is None:
            raise ValueError(f"{self!r} can be indexed by label only, and only if it has classes; got {name!r}.")
        builder = FieldIndexBuilder()
        builder.add(self.targets.tolist())
        return builder.build()

    def relative_path(self, index: int) -> str:
        """The path of record `index` below `root`, with ``/``."""
        (index,) = checked_indices([index], len(self))
        begin = self._ends[index - 1] if index else 0
        return self._names[begin : self._ends[index]].decode("utf-8", "surrogateescape")

    def locate(self, index: int) -> str:
        """The path of record `index`."""
        return f"{self.root}{os.sep}{self.relative_path(index)}"

    def fetch(self, indices: Sequence[int]) -> list[Record]:
        """Read files. See `Source.fetch`."""
        checked = checked_indices(indices, len(self))
        if self._class_ends is None:
            return [{"image": self._read(index)} for index in checked]
        labels = np.searchsorted(self._class_ends, checked, side="right").tolist()
        return [{"image": self._read(index), "label": label} for index, label in zip(checked, labels, strict=True)]

    def fetch_into(self, indices: Sequence[int], field: str, buffers: Sequence[memoryview]) -> list[Record]:
        """Read files into buffers. See `Source`."""
        checked = checked_indices(indices, len(self))
        records: list[Record] = [{"image": self._read(*each)} for each in zip(checked, buffers, strict=True)]
        if self._class_ends is not None:
            labels = np.searchsorted(self._class_ends, checked, side="right").tolist()
            for record, label in zip(records, labels, strict=True):
                record["label"] = label
        return records

    def _read(self, index: int, buffer: memoryview | None = None) -> bytes | int:
        path = self.locate(index)
        try:
            # Half the time of `open(path, "rb").read()`, which is what a small file costs.
            descriptor = os.open(path, _READ)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise SampleError(
                        f"Sample {index} is not a regular file but "
                        f"{'a folder' if stat.S_ISDIR(status.st_mode) else 'a special file'}: {path}"
                    )
                if buffer is None:
                    return _read_whole(descriptor, status.st_size)
                if status.st_size > len(buffer):
                    raise SampleError(
                        f"Sample {index} has grown from {len(buffer)} to {status.st_size} bytes since its folder was "
                        f"listed; open the folder again: {path}"
                    )
                return _read_into(descriptor, buffer[: status.st_size])
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SampleError(f"Sample {index} cannot be read: {error.strerror}: {path}") from error


def _read_whole(descriptor: int, size: int) -> bytes:
    data = os.read(descriptor, size)
    if len(data) == size:
        return data
    parts = [data]
    while parts[-1]:
        parts.append(os.read(descriptor, 1 << 20))
    return b"".join(parts)


def _read_into(descriptor: int, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer) and (count := os.readv(descriptor, [buffer[done:]])):
        done += count
    return done


def _decide(mode: LabelMode, root: str, folders: list[str], pictures: list[str]) -> LabelMode:
    if mode != "auto":
        if mode == "imagefolder" and not folders:
            raise FileNotFoundError(errno.ENOENT, "No class folder in", root)
        return mode
    if folders and pictures:
        raise FormatError(
            f"{root!r} has pictures of its own ({pictures[0]}, ...) and sub-folders ({folders[0]}, ...), so it is not "
            "clear whether the sub-folders are classes. Pass label_mode='imagefolder' to take only what is in the "
            "sub-folders, with labels, or label_mode='none' to take everything, without."
        )
    return "imagefolder" if folders else "none"


class _Scan:
    """One folder, listed once, without a stat of each entry."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folders: list[str] = []
        self.files: list[str] = []
        with os.scandir(path) as entries:
            for entry in entries:
                (self.folders if _is_folder(entry) else self.files).append(entry.name)

    def pictures(self, accepts: Callable[[str], bool]) -> list[str]:
        return sorted(name for name in self.files if accepts(f"{self.path}{os.sep}{name}"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Follows symbolic links, as torchvision does; one that leads nowhere is a file that will not open."""
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _walk(top: _Scan) -> list[_Scan]:
    """`top` and all folders below, in the order of ``sorted(os.walk(top))``."""
    found, todo = [], [top]
    while todo:
        found.append(scan := todo.pop())
        todo.extend(_Scan(f"{scan.path}{os.sep}{name}") for name in scan.folders)
    return sorted(found, key=lambda scan: scan.path)


class _Listing:
    """Relative names joined in one block of bytes, instead of one string object per file."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._names: list[bytes] = []
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, scan: _Scan, accepts: Callable[[str], bool]) -> None:
        names = scan.pictures(accepts)
        below = scan.path[len(self._root) :].strip(os.sep).replace(os.sep, "/")
        prefix = f"{below}/" if below else ""
        encoded = [(prefix + name).encode("utf-8", "surrogateescape") for name in names]
        sizes = (_size(f"{scan.path}{os.sep}{name}") for name in names)
        self._names.append(b"".join(encoded))
        self._lengths.append(np.fromiter(map(len, encoded), np.int32, len(names)))
        self._sizes.append(np.fromiter(sizes, np.int64, len(names)))
        self._count += len(names)

    def finish(self) -> tuple[bytes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        ends = np.cumsum(np.concatenate([np.zeros(0, np.int32), *self._lengths]), dtype=np.int64)
        return b"".join(self._names), ends, np.concatenate([np.zeros(0, np.int64), *self._sizes])


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  (five times as fast as Path.stat)
    except OSError:
        return -1
