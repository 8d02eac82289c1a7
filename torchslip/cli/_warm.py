"""`torchslip warm`: fetch a dataset ahead."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from torchslip.cli._sync import mebibytes, parse_options
from torchslip.pack import warm

__all__ = ["run_warm"]


def run_warm(
    console: Console, *, path: str, cache: str | None, budget: str | None, jobs: int, storage_options: Sequence[str]
) -> None:
    """Warm the dataset at `path`, and print how much of it is near."""
    options = parse_options(storage_options)
    begin = time.monotonic()
    try:
        done = warm(path, cache=cache, budget_bytes=budget, jobs=jobs, progress=True, storage_options=options)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted; the same command goes on where it stopped.")
        raise
    seconds = time.monotonic() - begin
    where = "in the cache" if done.where == "cache" else "read once, as far as memory holds it"
    console.print(
        f"{escape(path)}: {mebibytes(done.near_bytes)} of {mebibytes(done.bytes)} {where}; "
        f"fetched {mebibytes(done.fetched_bytes)} in {seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    if done.near_bytes < done.bytes:
        console.print(
            f"[yellow]{mebibytes(done.bytes - done.near_bytes)} do not fit into the budget of the cache[/]; --budget "
            "allows more.",
            highlight=False,
            soft_wrap=True,
        )
