"""A progress bar for people: only where there is a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import rich.progress
    from typing_extensions import Self

__all__ = ["Progress"]


class Progress:
    """A bar on the terminal, or nothing.

    Args:
        what: Stands before it.
        total: How many steps there are.
        shown: Whether it is wanted.
        done: How many steps were done before.
        unit: Whether the steps are bytes, which come with their rate.
    """

    def __init__(
        self, what: str, total: int, *, shown: bool, done: int = 0, unit: Literal["steps", "bytes"] = "steps"
    ) -> None:
        self._bar = _make_bar(unit) if shown else None
        if self._bar is not None:
            self._task = self._bar.add_task(what, total=total, completed=done)

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar(unit: str) -> rich.progress.Progress | None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    counts = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    return Progress(*columns, console=console)
