"""`torchslip stats`: what the pixels of a dataset are like."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
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
_MAX_DOTS = 20_000


def run_stats(console: Console, *, path: str, image: Path | None, processes: int | None) -> None:
    """Print mean, standard deviation and sizes of the images at `path`; draw them into `image` if given."""
    if image is not None:
        check_picture_path(image)
        _check_matplotlib()
    with workers(processes) as executor:
        source = ts.open(path)
        found = measure(source, executor=executor, on_error="skip", progress=True)
    console.print(_colours(source, found))
    console.print(_sizes(found))
    print_skipped(console, found.skipped)
    mean, std = (", ".join(f"{each:.4f}" for each in values) for values in (found.mean, found.std))
    console.print(f"v2.Normalize(mean=[{mean}], std=[{std}])", highlight=False, soft_wrap=True)
    if image is not None:
        _draw(found, path, image)
        console.print(f"Plot: {image}")


def _colours(source: ts.Source, found: ImageStatistics) -> Table:
    table = Table("", *_CHANNELS, title=escape(repr(source)), title_justify="left")
    table.add_row("mean", *(f"{value:.4f}" for value in found.mean))
    table.add_row("std", *(f"{value:.4f}" for value in found.std))
    return table


def _sizes(found: ImageStatistics) -> Table:
    unreadable = f", [red]{len(found.skipped):,} unreadable[/]" if found.skipped else ""
    title = f"{found.images:,} images, {found.pixels:,} pixels{unreadable}"
    table = Table("", "smallest", "median", "largest", title=title, title_justify="left")
    for name, values in (
        ("height, px", found.sizes[:, 0]),
        ("width, px", found.sizes[:, 1]),
        ("shorter side, px", found.sizes.min(axis=1)),
        ("pixels", found.sizes.astype(np.int64).prod(axis=1)),
        ("bytes", found.bytes),
    ):
        table.add_row(name, *(f"{int(each):,}" for each in np.percentile(values, (0, 50, 100))))
    return table


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("A plot needs matplotlib: pip install 'torchslip[plots]'") from error


def _draw(found: ImageStatistics, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    figure.suptitle(f"{title}: {found.images:,} images")
    values, places, lengths = figure.subplots(1, 3)
    for counts, color in zip(found.histogram, ("tab:red", "tab:green", "tab:blue"), strict=True):
        values.plot(np.arange(256), counts / found.pixels, color=color)
    values.set(title="values of the pixels", xlabel="0 to 255", ylabel="share of pixels", ylim=(0, None))
    shown = found.sizes[:: max(1, found.images // _MAX_DOTS)]
    places.scatter(shown[:, 1], shown[:, 0], s=8, alpha=0.3, linewidths=0)
    places.set(title="sizes", xlabel="width, px", ylabel="height, px", xlim=(0, None), ylim=(0, None))
    lengths.hist(found.bytes / 1000, bins=40)
    lengths.set(title="files", xlabel="kB", ylabel="images", xlim=(0, None))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        Image.open(drawn).convert("RGB").save(unfinished, check_picture_path(path))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
