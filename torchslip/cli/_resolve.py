"""`torchslip resolve`: what does this link mean?"""

from __future__ import annotations

from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import torchslip as ts
from torchslip.errors import TorchslipError
from torchslip.sources import IMG_EXTENSIONS

__all__ = ["run_resolve"]

_MAX_LISTED = 10


def run_resolve(console: Console, link: str, *, images: bool, **options: Any) -> None:
    """Print the hash of `link` on the first line, and what it stands for."""
    try:
        snapshot = ts.resolve(link, extensions=IMG_EXTENSIONS if images else None, **options)
    except ValueError as error:
        if isinstance(error, TorchslipError):
            raise
        raise typer.BadParameter(str(error)) from error
    console.print(f"sha256:{snapshot.hash}", highlight=False, soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("base", escape(snapshot.base))
    table.add_row("objects", f"{len(snapshot):,}")
    table.add_row("bytes", f"{snapshot.total_bytes:,}")
    if snapshot.classes:
        table.add_row("classes", f"{len(snapshot.classes):,}")
    console.print(table)
    if snapshot.classes:
        console.print(_classes(snapshot))


def _classes(snapshot: ts.Snapshot) -> Table:
    counts = np.bincount(snapshot.labels_of(np.arange(len(snapshot))), minlength=len(snapshot.classes))
    table = Table("label", "class", "objects")
    for label, name in enumerate(snapshot.classes[:_MAX_LISTED]):
        table.add_row(str(label), escape(name), f"{counts[label]:,}")
    if len(snapshot.classes) > _MAX_LISTED:
        table.add_row("…", f"{len(snapshot.classes) - _MAX_LISTED} more", f"{counts[_MAX_LISTED:].sum():,}")
    return table
