"""How a dataset is packed: the options, checked, and what they mean for a given source."""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from torchslip.decode import index_version, why_no_index
from torchslip.errors import FormatError, MissingDependencyError
from torchslip.pack._shard_builder import parse_size
from torchslip.pack._transcode import ImageRule, Pixels, Resize, encoder_version
from torchslip.sources import (
    FORMATS,
    IMG_EXTENSIONS,
    FieldKind,
    ImageFolder,
    LabelMode,
    Objects,
    Source,
    image_fields,
    open,
    source_of,
)
from torchslip.sources.mds import checked_hashes, parse_compression

__all__ = ["Recipe", "make_recipe", "open_source"]

_VERSION = 1  # of the bytes that a recipe makes
_ENCODINGS: Mapping[FieldKind, str] = {
    "image": "jpeg",
    "int": "int",
    "float": "float64",
    "str": "str",
    "bytes": "bytes",
    "json": "json",
    "array": "ndarray",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides every byte of a packed dataset, beside the records.

    Attributes:
        fields: Name to kind of what is stored.
        columns: Name to MDS encoding.
        rule: What becomes of the images.
        pixels: How they are stored.
        shard_bytes: Of a shard, before compression.
        compression: Of the shards, or None.
        hashes: In the index.
        verify: Whether each image is decoded.
        statistics: Whether mean and standard deviation are computed.
        source: The fingerprint of the records.
    """

    fields: Mapping[str, FieldKind]
    columns: Mapping[str, str]
    rule: ImageRule
    pixels: Pixels
    shard_bytes: int
    compression: str | None
    hashes: Sequence[str]
    verify: bool
    statistics: bool
    source: str

    @property
    def image_fields(self) -> list[str]:
        """Their names."""
        return image_fields(self.fields)

    @property
    def indexed_fields(self) -> list[str]:
        """The fields whose values can be looked up."""
        return [name for name, kind in self.fields.items() if kind in ("int", "str")]

    def as_options(self) -> dict[str, Any]:
        """The options as plain data, for the sidecar."""
        rule = {"resize": asdict(self.rule)} if isinstance(self.rule, Resize) else self.rule
        options = {
            "version": _VERSION,
            "columns": dict(self.columns),
            "image": rule,
            "encoder": None if self.rule == "keep" and self.pixels != "yuv420" else encoder_version(self.pixels),
            "pixels": self.pixels,
            "shard_bytes": self.shard_bytes,
            "compression": self.compression,
            "hashes": list(self.hashes),
            "verify": self.verify,
            "statistics": self.statistics,
        }
        if self.pixels == "jpeg-indexed":
            options["indexer"] = index_version()
        return options

    @property
    def fingerprint(self) -> str:
        """Equal where the packed datasets are equal."""
        text = json.dumps({**self.as_options(), "fields": dict(self.fields), "source": self.source}, sort_keys=True)
        return f"pack:sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def make_recipe(
    source: Source,
    *,
    image: ImageRule,
    pixels: Pixels,
    shard_bytes: int | str,
    compression: str | None,
    hashes: str | Sequence[str] | None,
    verify: bool,
    statistics: bool,
    labels: bool,
) -> Recipe:
    """Check the options, and put them together with what the source has. See `pack`.

    Raises:
        ValueError: If an option is not a valid one.
    """
    if not isinstance(image, Resize) and image not in ("keep", "jpeg"):
        raise ValueError(f"image must be 'keep', 'jpeg' or Resize(shorter=, longer_max=, quality=); got {image!r}.")
    if pixels not in get_args(Pixels):
        raise ValueError(f"pixels must be one of {', '.join(get_args(Pixels))}; got {pixels!r}.")
    if pixels == "yuv420" and image == "jpeg":
        raise ValueError("image='jpeg' says how image files are stored, but pixels='yuv420' stores none; leave it out.")
    if pixels == "jpeg-indexed" and (reason := why_no_index()):
        raise MissingDependencyError(f"pixels='jpeg-indexed' cannot be had here. {reason}")
    if compression:
        parse_compression(compression)
    fields = {name: kind for name, kind in source.schema.items() if labels or name != "label"}
    if not fields:
        raise ValueError(f"There is no field to pack in {source!r}.")
    encodings: Mapping[str, str] = getattr(source, "encodings", {})
    return Recipe(
        fields=fields,
        columns={name: _encoding(kind, encodings.get(name), image, pixels) for name, kind in fields.items()},
        rule=image,
        pixels=pixels,
        shard_bytes=parse_size(
            operator.index(shard_bytes) if not isinstance(shard_bytes, str) else shard_bytes, argument="shard_bytes"
        ),
        compression=compression or None,
        hashes=tuple(checked_hashes(hashes)),
        verify=verify,
        statistics=statistics,
        source=source.fingerprint,
    )


def _encoding(kind: FieldKind, given: str | None, image: ImageRule, pixels: Pixels) -> str:
    """How a field is stored: as it was, where it comes from MDS."""
    if kind != "image":
        return given or _ENCODINGS[kind]
    if pixels == "yuv420":
        return "bytes"  # which the sidecar calls an image
    if image == "keep" and given in ("jpeg", "png", "pil"):
        return "png" if given == "pil" else given  # which comes as a PNG
    return "jpeg"


def open_source(
    source: Source | str | os.PathLike[str],
    *,
    label_mode: LabelMode,
    require_labels: bool,
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """The source that is packed. See `pack`; `storage_options` are those of the source.

    Raises:
        FormatError: If it is not a dataset, or has no labels and must have some.
        ValueError: If `label_mode` is not a valid one, or asks for what the source has not.
    """
    if label_mode not in get_args(LabelMode):
        raise ValueError(f"label_mode must be one of {', '.join(get_args(LabelMode))}; got {label_mode!r}.")
    if require_labels and label_mode == "none":
        raise ValueError("require_labels=True contradicts label_mode='none'.")
    if isinstance(source, str | os.PathLike) and label_mode != "auto":
        opened = _open(source, label_mode, storage_options)
    else:
        opened = source_of(source, storage_options)
    if isinstance(opened, ImageFolder) and not isinstance(source, Source) and require_labels:
        _refuse_pictures_without_class(opened)
    if require_labels and "label" not in opened.schema:
        raise FormatError(
            f"{opened!r} has no labels, but require_labels=True. A folder of pictures gets them from one sub-folder "
            "per class; other sources need a field called label."
        )
    return opened


def _open(path: str | os.PathLike[str], label_mode: LabelMode, storage_options: Mapping[str, Any] | None) -> Source:
    text = os.path.expanduser(os.fspath(path))  # noqa: PTH111  (Path drops one "/" of "s3://")
    form = next((each for each in FORMATS.values() if each.refuse(text, storage_options) is None), None)
    if form is not None and form.open in (ImageFolder, Objects):
        return open(path, format=form.name, label_mode=label_mode, storage_options=storage_options)
    if label_mode == "imagefolder":
        raise ValueError(f"label_mode='imagefolder' is for folders of pictures, but {text!r} is none.")
    return open(path, storage_options=storage_options)


def _refuse_pictures_without_class(folder: ImageFolder) -> None:
    with os.scandir(folder.root) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(IMG_EXTENSIONS))
    stray = [name for name in names if not (Path(folder.root) / name).is_dir()]
    if folder.classes and stray:
        raise FormatError(
            f"{len(stray)} pictures lie directly in {folder.root!r} and have no class ({stray[0]}, ...), but "
            "require_labels=True. Move them into the folder of a class, or pass require_labels=False to leave them out."
        )
