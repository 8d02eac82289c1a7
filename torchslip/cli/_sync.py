"""`torchslip sync`: a copy of a dataset, or the rest of one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.markup import escape

from torchslip.pack import sync

__all__ = ["mebibytes", "parse_options", "run_sync"]


def run_sync(
    console: Console, *, source: str, target: str, jobs: int, replace: bool, storage_options: Sequence[str]
) -> None:
    """Copy `source` to `target`, and print how much that was."""
    options = parse_options(storage_options)
    begin = time.monotonic()
    try:
        done = sync(source, target, jobs=jobs, replace=replace, progress=True, storage_options=options)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on where it stopped.")
        raise
    seconds = time.monotonic() - begin
    there = done.files - done.copied_files
    console.print(
        f"{escape(done.path)}: {done.files:,} files, {mebibytes(done.bytes)}; copied {done.copied_files:,} "
        f"({mebibytes(done.copied_bytes)}) in {seconds:.1f} s" + (f", {there:,} were there" if there else ""),
        highlight=False,
        soft_wrap=True,
    )


def parse_options(texts: Sequence[str]) -> dict[str, str] | None:
    """Options for the storage; None if there are none.

    Raises:
        BadParameter: If one is not ``name=value``.
    """
    for text in texts:
        if "=" not in text:
            raise typer.BadParameter(f"--storage-option must be NAME=VALUE; got {text!r}.")
    return {name: value for name, _, value in (text.partition("=") for text in texts)} or None


def mebibytes(size_bytes: int) -> str:
    """A number of bytes for people."""
    return f"{size_bytes / 2**20:,.1f} MiB"
