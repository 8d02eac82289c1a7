"""`torchslip verify`: is everything in a dataset as it should be?"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from torchslip.cli._pack import workers
from torchslip.pack import verify

__all__ = ["run_verify"]

_MAX_LISTED = 100


def run_verify(console: Console, *, path: str, processes: int | None) -> bool:
    """Print what is wrong with the dataset at `path`; returns whether nothing is."""
    with workers(processes) as executor:
        verified = verify(path, executor=executor, progress=True)
    for problem in verified.problems[:_MAX_LISTED]:
        sample = "" if problem.sample is None else f", sample {problem.sample}"
        where = escape(problem.where + sample)
        console.print(f"[red]bad:[/] {where}: {escape(problem.reason)}", highlight=False, soft_wrap=True)
    if len(verified.problems) > _MAX_LISTED:
        console.print(f"[red]and {len(verified.problems) - _MAX_LISTED:,} more[/]")
    hashes = "all hashes, sizes and samples" if verified.hashed else "all sizes and samples; there are no hashes"
    count = len(verified.problems)
    state = f"[red]{count:,} problem{'s' if count > 1 else ''}[/]" if count else "[green]whole[/]"
    console.print(f"{escape(path)}: {state} ({verified.samples:,} samples; checked: {hashes})", soft_wrap=True)
    return not verified.problems
