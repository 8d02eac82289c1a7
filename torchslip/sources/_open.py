"""Find out what a path is, and open it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchslip.errors import FormatError
from torchslip.sources._folder import ImageFolder
from torchslip.sources._objects import Objects
from torchslip.sources._source import Source
from torchslip.sources.mds import INDEX_NAME, MDS
from torchslip.storage import has_state, is_remote, open_folder, parse_link

__all__ = ["FORMATS", "Format", "open", "source_of"]


@dataclass(frozen=True, slots=True)
class Format:
    """One format that `open` knows.

    Attributes:
        name: What users pass as ``format=``.
        refuse: Says why a path or URL is not of this format, or returns None if it may be; gets it and the options for
            fsspec.
        open: Opens the path; gets the options of `open`.
    """

    name: str
    refuse: Callable[[str, Mapping[str, Any] | None], str | None]
    open: Callable[..., Source]


def _not_a_folder(path: str, storage_options: Mapping[str, Any] | None = None) -> str | None:
    if has_state(path):
        return "it is a link to a snapshot"
    if is_remote(path):
        return "it is a URL"
    if not Path(path).exists():
        return "there is no such path"
    return None if Path(path).is_dir() else "it is a file, not a folder"


def _not_mds(path: str, storage_options: Mapping[str, Any] | None) -> str | None:
    folder = open_folder(parse_link(path).base if has_state(path) else path, storage_options)
    try:
        size = folder.stat(INDEX_NAME).bytes
        head = folder.read_range(INDEX_NAME, 0, min(size, 1 << 16))
    except (FileNotFoundError, NotADirectoryError):
        missing = f"it has no {INDEX_NAME}"
        return missing if is_remote(path) else _not_a_folder(path) or missing
    return None if b'"shards"' in head else f"its {INDEX_NAME} does not list shards"


def _not_objects(path: str, storage_options: Mapping[str, Any] | None) -> str | None:
    return None if is_remote(path) or has_state(path) else _not_a_folder(path)


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("mds", _not_mds, MDS),
        # A folder of pictures is any folder, so it comes late, and what is in it is no matter of detection.
        Format("imagefolder", _not_a_folder, ImageFolder),
        Format("objects", _not_objects, Objects),
    )
}


def open(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Source:
    """Open a dataset, whatever its format.

    Args:
        path: Where it lies: a path, a URL that fsspec knows, or a dataset link, see `torchslip.resolve`. Pictures at a
            URL are listed once, and from then on what the snapshot says is read, until ``path@refresh`` is opened.
        format: Its name, to skip the detection: one of `FORMATS`.
        storage_options: For fsspec, of URLs; a folder of pictures on this machine needs none.
        **options: Passed to the format, such as ``label_mode="none"`` to `ImageFolder`.

    Raises:
        FormatError: If no format fits; the text says what was tried and why each did not.
        ValueError: If `format` is not a known name.
    """
    text = os.path.expanduser(os.fspath(path))  # noqa: PTH111  (Path drops one "/" of "s3://")
    if "://" in text and not is_remote(text):
        text = text.partition("://")[2]
    if format is not None:
        if format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, or None to detect it; got {format!r}.")
        return _open(FORMATS[format], text, storage_options, options)
    tried = []
    for each in FORMATS.values():
        reason = each.refuse(text, storage_options)
        if reason is None:
            return _open(each, text, storage_options, options)
        tried.append(f"{each.name}: {reason}")
    raise FormatError(f"{text!r} is not a dataset that torchslip knows. Tried:\n  " + "\n  ".join(tried))


def _open(form: Format, text: str, storage_options: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Source:
    if storage_options is not None and form.open is not ImageFolder:
        options = {**options, "storage_options": storage_options}
    return form.open(text, **options)


def source_of(source: str | os.PathLike[str] | Source, storage_options: Mapping[str, Any] | None = None) -> Source:
    """What an argument means that is a path or a source.

    Raises:
        FormatError: If it is a path that cannot be opened.
        ValueError: If there are `storage_options` for a source, which has its own.
    """
    if isinstance(source, str | os.PathLike):
        return open(source, storage_options=storage_options)
    if storage_options is not None:
        raise ValueError(
            f"The storage options are for a path or URL that is opened here; {source!r} was opened with its own."
        )
    return source
