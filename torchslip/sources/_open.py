"""Find out what a path is, and open it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslip.errors import FormatError
from torchslip.sources._folder import ImageFolder
from torchslip.sources._source import Source
from torchslip.sources.mds import INDEX_NAME, MDS

__all__ = ["FORMATS", "Format", "open"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format that `open` knows.

    Attributes:
        name: What users pass as ``format=``.
        refuse: Says why a path is not of this format, or returns None if it may be.
        open: Opens the path; gets the options of `open`.
    """

    name: str
    refuse: Callable[[str], str | None]
    open: Callable[..., Source]


def _not_a_folder(path: str) -> str | None:
    if not Path(path).exists():
        return "there is no such path"
    return None if Path(path).is_dir() else "it is a file, not a folder"


def _not_mds(path: str) -> str | None:
    index = Path(path) / INDEX_NAME
    if not index.is_file():
        return _not_a_folder(path) or f"it has no {INDEX_NAME}"
    with index.open("rb") as file:
        head = file.read(1 << 16)
    return None if b'"shards"' in head else f"its {INDEX_NAME} does not list shards"


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("mds", _not_mds, MDS),
        # A folder of pictures is any folder, so it comes last.
        Format("imagefolder", _not_a_folder, ImageFolder),
    )
}


def open(path: str | os.PathLike[str], *, format: str | None = None, **options: Any) -> Source:
    """Open a dataset, whatever its format.

    Args:
        path: Where it lies.
        format: Its name, to skip the detection: one of `FORMATS`.
        **options: Passed to the format, such as ``label_mode="none"`` to `ImageFolder`.

    Raises:
        FormatError: If no format fits; the text says what was tried and why each did not.
        ValueError: If `format` is not a known name.
    """
    text = os.path.expanduser(os.fspath(path))  # noqa: PTH111  (Path drops one "/" of "s3://")
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, or None to detect it; got {format!r}.")
        return FORMATS[format].open(text, **options)
    if "://" in text:
        try:
            return MDS(text, **options)
        except FileNotFoundError as error:
            raise FormatError(f"{text!r} has no {INDEX_NAME}; behind a URL, only MDS datasets are read.") from error
    tried = []
    for each in FORMATS.values():
        reason = each.refuse(text)
        if reason is None:
            return each.open(text, **options)
        tried.append(f"{each.name}: {reason}")
    raise FormatError(f"{text!r} is not a dataset that torchslip knows. Tried:\n  " + "\n  ".join(tried))
