"""`torchslip stats`: what the pixels of a dataset are like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import torchslip as ts
from torchslip.cli._grid import check_picture_path
from torchslip.cli._pack import print_skipped, workers
from torchslip.errors import MissingDependencyError
from torchslip.pack import ImageStatistics, measure

__all__ = ["run_stats"]

_CHANNELS = ("red", "green", "blue")


def run_stats(console: Console, *, path: str, image: Path | None, processes: int | None) -> None:
    """Print mean, standard deviation and sizes of the images at `path`; draw them into `image` if given."""
    if image is not None:
        check_picture_path(image)
        _pyplot()
    with workers(processes) as executor:
        source = ts.open(path)
        found = measure(source, executor=executor, on_error="skip", progress=True)
    console.print(_table(source, found))
    print_skipped(console, found.skipped)
    mean, std = (", ".join(f"{each:.4f}" for each in values) for values in (found.mean, found.std))
    console.print(f"v2.Normalize(mean=[{mean}], std=[{std}])", highlight=False, soft_wrap=True)
    if image is not None:
        _draw(found, path, image)
        console.print(f"Plot: {image}")


def _table(source: ts.Source, found: ImageStatistics) -> Table:
    table = Table("", *_CHANNELS, title=escape(repr(source)), title_justify="left")
    table.add_row("mean", *(f"{value:.4f}" for value in found.mean))
    table.add_row("std", *(f"{value:.4f}" for value in found.std))
    table.add_section()
    table.add_row("", "smallest", "median", "largest")
    pixels = found.sizes.astype(np.int64).prod(axis=1)
    for name, values in (
        ("height, px", found.sizes[:, 0]),
        ("width, px", found.sizes[:, 1]),
        ("shorter side, px", found.sizes.min(axis=1)),
        ("pixels", pixels),
        ("bytes", found.bytes),
    ):
        table.add_row(name, *(f"{int(each):,}" for each in np.percentile(values, (0, 50, 100))))
    table.add_section()
    table.add_row("images", f"{found.images:,}")
    table.add_row("all pixels", f"{found.pixels:,}")
    if found.skipped:
        table.add_row("unreadable", f"[red]{len(found.skipped):,}[/]")
    return table


def _pyplot() -> object:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("A plot needs matplotlib: pip install 'torchslip[plots]'") from error
    return matplotlib


def _draw(found: ImageStatistics, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(f"{title}: {found.images:,} images")
    values, places, lengths = figure.subplots(1, 3)
    for counts, color in zip(found.histogram, ("tab:red", "tab:green", "tab:blue"), strict=True):
        values.plot(np.arange(256), counts / found.pixels, color=color)
    values.set(title="values of the pixels", xlabel="0 to 255", ylabel="share of pixels")
    places.scatter(found.sizes[:, 1], found.sizes[:, 0], s=8, alpha=0.3, linewidths=0)
    places.set(title="sizes", xlabel="width, px", ylabel="height, px", xlim=(0, None), ylim=(0, None))
    lengths.hist(found.bytes / 1024, bins=_bins(found.bytes / 1024))
    lengths.set(title="files", xlabel="kB", ylabel="images")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        figure.savefig(unfinished, format=path.suffix[1:].lower(), dpi=110)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _bins(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.linspace(0, float(values.max()), 41)
