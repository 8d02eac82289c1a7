"""`torchslip pack`: any source to MDS."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import torchslip as ts
from torchslip.errors import FormatError, TorchslipError

__all__ = ["print_skipped", "run_pack", "workers"]

_MAX_LISTED = 10


def run_pack(
    console: Console,
    *,
    source: str,
    out: str,
    image: str,
    shorter: int | None,
    longer_max: int | None,
    quality: int | None,
    pixels: Any,
    processes: int | None,
    **options: Any,
) -> None:
    """Pack `source` into `out`, and print what came of it.

    Raises:
        FormatError: If an option is not a valid one, beside what `torchslip.pack` raises.
    """
    begin = time.monotonic()
    try:
        with workers(processes) as executor, _options_in_words():
            rule = _rule(image, shorter, longer_max, quality)
            packed = ts.pack(source, out, image=rule, pixels=pixels, executor=executor, progress=True, **options)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on where it stopped.")
        raise
    seconds = time.monotonic() - begin
    table = Table(show_header=False, title=f"Packed into {escape(packed.path)}", title_justify="left")
    table.add_row("samples", f"{packed.samples:,}")
    if packed.resumed_samples:
        table.add_row("of these before", f"{packed.resumed_samples:,}")
    table.add_row("shards", f"{packed.shards:,}, {packed.bytes / 2**20:,.1f} MiB")
    table.add_row("skipped", f"[red]{len(packed.skipped):,}[/]" if packed.skipped else "none")
    table.add_row("time", f"{seconds:.1f} s")
    console.print(table)
    print_skipped(console, packed.skipped)
    console.print(
        f"Use it: [bold]ts.ImageDataset({escape(repr(packed.path))}, ...)[/]", highlight=False, soft_wrap=True
    )


def _rule(image: str, shorter: int | None, longer_max: int | None, quality: int | None) -> Any:
    if shorter is None and longer_max is None:
        if quality is not None:
            raise ValueError("--quality is for pictures that are resized: add --shorter or --longer-max.")
        return image
    if image != "keep":
        raise ValueError("--image cannot be combined with --shorter and --longer-max, which make JPEG files anyway.")
    return ts.Resize(shorter, longer_max, **({} if quality is None else {"quality": quality}))


def print_skipped(console: Console, skipped: Any) -> None:
    """List the first of the records that were left out."""
    for each in skipped[:_MAX_LISTED]:
        place = "" if each["where"] in each["reason"] else f"{each['where']}: "
        console.print(f"[red]skipped:[/] {escape(place + each['reason'])}", highlight=False, soft_wrap=True)
    if len(skipped) > _MAX_LISTED:
        console.print(f"[red]and {len(skipped) - _MAX_LISTED:,} more[/]")


@contextlib.contextmanager
def workers(processes: int | None) -> Iterator[Executor | None]:
    """A pool of processes, or None for threads."""
    if processes is None:
        yield None
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_end_with_parent) as executor:
        yield executor


def _end_with_parent() -> None:
    """Without this, the workers of a command that is killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True, name="torchslip-parent").start()


@contextlib.contextmanager
def _options_in_words() -> Iterator[None]:
    """An option with a wrong value is an error of the user's, told in one line."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, TorchslipError):
            raise
        raise FormatError(str(error)) from error
