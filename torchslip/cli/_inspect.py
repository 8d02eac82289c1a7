"""`torchslip inspect`: what is this dataset?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import torchslip as ts
from torchslip.cli._grid import check_picture_path, save_grid
from torchslip.decode import open_picture, read_header
from torchslip.errors import SampleError
from torchslip.sources import image_fields, locate

__all__ = ["run_inspect"]

_SHEET_PICTURES = 48
_MAX_LISTED = 10


@dataclass(slots=True)
class _Sampled:
    """What some records looked like."""

    ids: list[int]
    bytes: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def run_inspect(console: Console, *, path: str, image: Path | None, sample: int) -> None:
    """Print what `path` is; write a contact sheet to `image` if given."""
    if image is not None:
        check_picture_path(image)
    source = ts.open(path)
    fields = image_fields(source.schema)
    # Spread evenly, so that every class and shard is looked into.
    ids = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(int)).tolist()
    sampled = _look_into(source, fields[0], ids) if fields else _Sampled([])
    console.print(_facts(source, sampled))
    if classes := getattr(source, "classes", []):
        console.print(_classes(source, classes))
    for line in sampled.unreadable[:_MAX_LISTED]:
        console.print(f"[red]cannot be read:[/] {escape(line)}", highlight=False)
    if len(sampled.unreadable) > _MAX_LISTED:
        console.print(f"[red]and {len(sampled.unreadable) - _MAX_LISTED} more[/]")
    if image is not None and fields:
        _contact_sheet(source, fields[0], image)
        console.print(f"Contact sheet: {image}")


def _look_into(source: ts.Source, name: str, ids: list[int]) -> _Sampled:
    sampled = _Sampled(ids)
    for index in ids:
        try:
            (record,) = source.fetch([index])
            header = read_header(record[name])
            _decode(record[name])
        except (SampleError, OSError) as error:
            where = locate(source, index)
            sampled.unreadable.append(str(error) if where in str(error) else f"{where}: {error}")
            continue
        sampled.bytes.append(len(record[name]))
        sampled.heights.append(header.height)
        sampled.widths.append(header.width)
        sampled.formats[header.format] += 1
    return sampled


def _decode(data: bytes) -> None:
    # A file that was cut short has a good header.
    with open_picture(data) as picture:
        picture.load()


def _facts(source: ts.Source, sampled: _Sampled) -> Table:
    table = Table(show_header=False, title=escape(repr(source)), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("format", type(source).__name__)
    table.add_row("records", f"{len(source):,}")
    table.add_row("fields", ", ".join(f"{name} ({kind})" for name, kind in source.schema.items()))
    table.add_row("fingerprint", source.fingerprint)
    if sampled.bytes:
        looked = f"of {len(sampled.ids):,} looked into" if len(sampled.ids) < len(source) else "of all"
        table.add_row("pictures", ", ".join(f"{count} {name}" for name, count in sampled.formats.most_common()))
        table.add_row("bytes", f"{_spread(sampled.bytes)} ({looked})")
        table.add_row("height, px", _spread(sampled.heights))
        table.add_row("width, px", _spread(sampled.widths))
    if sampled.unreadable:
        table.add_row("unreadable", f"[red]{len(sampled.unreadable)}[/] of {len(sampled.ids):,} looked into")
    return table


def _spread(values: list[int]) -> str:
    return f"{min(values):,} to {max(values):,}, median {int(np.median(values)):,}"


def _classes(source: ts.Source, classes: list[str]) -> Table:
    index = source.index("label")  # type: ignore[attr-defined]
    counts = np.array([len(index[label]) if label in index else 0 for label in range(len(classes))])
    table = Table("label", "class", "records", title=f"{len(classes)} classes", title_justify="left")
    for label, name in enumerate(classes[:_MAX_LISTED]):
        table.add_row(str(label), escape(name), f"{counts[label]:,}")
    if len(classes) > _MAX_LISTED:
        table.add_row("…", f"{len(classes) - _MAX_LISTED} more", f"{counts[_MAX_LISTED:].sum():,}")
    return table


def _contact_sheet(source: ts.Source, name: str, path: Path) -> None:
    """Whole pictures, spread over the dataset, with the names of their classes."""
    classes = getattr(source, "classes", [])
    tiles = []
    for index in np.linspace(0, len(source) - 1, min(_SHEET_PICTURES, len(source))).astype(int).tolist():
        try:
            (record,) = source.fetch([index])
            with open_picture(record[name]) as picture:
                tile = picture.convert("RGB")
            caption = classes[record["label"]] if classes else str(index)
        except (SampleError, OSError):
            tile, caption = Image.new("RGB", (64, 64), "red"), f"{index}: unreadable"
        tiles.append((tile, caption))
    save_grid(tiles, path)
