"""Which pictures the demo trains on, and which it keeps for measuring accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from torchslip.errors import FormatError
from torchslip.sources import ImageFolder

__all__ = ["Split", "split_pictures"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Two disjoint sets of labelled pictures with the same classes.

    Attributes:
        train: The source of the training pictures.
        val: The source of the others; the same object where one folder is divided.
        train_ids: Sample ids in `train`, int64.
        val_ids: Sample ids in `val`, int64.
        how: How the sets were chosen, in words.
    """

    train: ImageFolder
    val: ImageFolder
    train_ids: _Ints = field(repr=False)
    val_ids: _Ints = field(repr=False)
    how: str

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.train.classes

    @property
    def chance(self) -> float:
        """The accuracy of always answering the most frequent class of `val`."""
        labels = self.val.targets[self.val_ids]
        return float(np.bincount(labels).max() / len(labels))


def split_pictures(path: str | Path, *, limit: int) -> Split:
    """Choose at most about `limit` pictures, evenly from every class: four fifths for training, one for validation.

    A folder with the sub-folders ``train`` and ``val`` is taken as it was divided. Of any other, the last fifth of
    every class by name is kept for validation: a contiguous part, because neighbouring names are often nearly the same
    picture.

    Raises:
        FormatError: If `path` is not a folder of at least two classes with two pictures each.
    """
    root = Path(path)
    if not root.exists():
        raise FormatError(f"There is no such folder: {str(root)!r}.")
    if not root.is_dir():
        raise FormatError(f"{str(root)!r} is a file. Give a folder that has one sub-folder of pictures per class.")
    if (root / "train").is_dir() and (root / "val").is_dir():
        return _given(_open(root / "train"), _open(root / "val"), limit)
    return _divided(_open(root), limit)


def _open(root: Path) -> ImageFolder:
    needed = (
        f"The demo needs one sub-folder of pictures per class, and at least two: {root}/cat/1.jpg, {root}/dog/1.jpg."
    )
    try:
        source = ImageFolder(root)
    except FileNotFoundError as error:
        raise FormatError(f"{str(root)!r} has no pictures. {needed}") from error
    if len(source.classes) < 2:
        found = f"only the class {source.classes[0]!r}" if source.classes else "pictures, but no class folders"
        raise FormatError(f"{str(root)!r} has {found}. {needed}")
    return source


def _given(train: ImageFolder, val: ImageFolder, limit: int) -> Split:
    if train.classes != val.classes:
        different = sorted(set(train.classes) ^ set(val.classes))
        raise FormatError(
            f"{train.root!r} and {val.root!r} must have the same classes; these are only in one of them: "
            f"{', '.join(different[:10])}."
        )
    train_ids = np.concatenate(_ids_by_class(train, limit - limit // 5))
    val_ids = np.concatenate(_ids_by_class(val, limit // 5))
    return Split(train, val, train_ids, val_ids, "the folders train/ and val/")


def _divided(source: ImageFolder, limit: int) -> Split:
    by_class = _ids_by_class(source, limit)
    counts = {name: len(ids) for name, ids in zip(source.classes, by_class, strict=True)}
    if sorted(counts.values())[-2] < 2:
        raise FormatError(f"The demo needs two classes with at least two pictures each; {source.root!r} has {counts}.")
    kept = [max(1, len(ids) // 5) if len(ids) > 1 else 0 for ids in by_class]
    train_ids = [ids[: len(ids) - some] for ids, some in zip(by_class, kept, strict=True)]
    val_ids = [ids[len(ids) - some :] for ids, some in zip(by_class, kept, strict=True)]
    how = "the last fifth of every class is kept for validation"
    return Split(source, source, np.concatenate(train_ids), np.concatenate(val_ids), how)


def _ids_by_class(source: ImageFolder, limit: int) -> list[_Ints]:
    """The sample ids of each class; of large classes an even selection, so that all together are about `limit`."""
    ids = np.split(np.arange(len(source)), np.cumsum(np.bincount(source.targets, minlength=len(source.classes)))[:-1])
    most = _cap([len(each) for each in ids], limit)
    return [each[np.linspace(0, len(each) - 1, min(most, len(each))).astype(np.int64)] for each in ids]


def _cap(counts: list[int], limit: int) -> int:
    """How many a class may have at most, so that all have about `limit`; at least 5, to leave one for validation."""
    left, cap = limit, 0
    for number, count in enumerate(sorted(counts)):
        cap = left // (len(counts) - number)
        left -= min(count, cap)
    return max(cap, 5)
