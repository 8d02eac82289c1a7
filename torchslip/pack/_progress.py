"""A progress bar for people: only where there is a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

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
    """

    def __init__(self, what: str, total: int, *, shown: bool, done: int = 0) -> None:
        self._bar = _make_bar() if shown else None
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


def _make_bar() -> rich.progress.Progress | None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
