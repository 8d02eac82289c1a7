"""The commands and their options; what they do is in a module each, imported when the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

__all__ = ["main"]

app = typer.Typer(
    help="PyTorch datasets, samplers and a DataLoader for images: fast, reproducible, resumable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of pictures with one sub-folder per class, or with train/ and val/ of that kind."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often the training goes through the pictures.")] = 10,
    out: Annotated[Path, typer.Option(help="Where the pictures, the state and batch.png go.")] = Path("demo"),
) -> None:
    """Train a small network, stop in the middle of an epoch, resume in a new process, and finish.

    Without --data it draws its own pictures: 2,000 in 8 classes. It ends with a table of speed, accuracy and memory,
    and with batch.png, which shows what the network was given.
    """
    from torchslip.cli._demo import run_demo

    run_demo(Console(), data=data, epochs=epochs, out=out)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A folder of pictures, a dataset, or a URL or link of one.")],
    image: Annotated[Path | None, typer.Option(help="Write a contact sheet of some pictures to this file.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many pictures to look into.")] = 500,
) -> None:
    """Say what a dataset is: its format, records, fields, sizes, and files that cannot be read."""
    from torchslip.cli._inspect import run_inspect

    run_inspect(Console(), path=path, image=image, sample=sample)


Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes to use. Default: threads, one for each core.")
]


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="A dataset: a folder of pictures, or whatever inspect knows.")],
    out: Annotated[str, typer.Argument(help="A folder or URL for the packed dataset.")],
    image: Annotated[
        Literal["keep", "jpeg"], typer.Option(help="Keep image files as they are, or make all of them JPEG.")
    ] = "keep",
    pixels: Annotated[
        Literal["jpeg", "jpeg-indexed", "yuv420"],
        typer.Option(
            help="Keep JPEG files, write them again without loss so that crops decode faster, or store planes: larger, "
            "and faster still."
        ),
    ] = "jpeg",
    shorter: Annotated[int | None, typer.Option(help="Make pictures smaller, to this shorter side in pixels.")] = None,
    longer_max: Annotated[int | None, typer.Option(help="The longest that the longer side may be, in pixels.")] = None,
    quality: Annotated[
        int | None, typer.Option(help="Of pictures that are made smaller: 1 to 100, default 90.")
    ] = None,
    shard_bytes: Annotated[str, typer.Option(help="Size of a shard, such as 64mb.")] = "64mb",
    compression: Annotated[str | None, typer.Option(help="Such as zstd or zstd:7. JPEG does not get smaller.")] = None,
    hashes: Annotated[
        list[str] | None, typer.Option("--hash", help="Of the shards; may be repeated. Default: sha1.")
    ] = None,
    label_mode: Annotated[
        Literal["auto", "none", "imagefolder"], typer.Option(help="Whether the sub-folders are classes.")
    ] = "auto",
    require_labels: Annotated[bool, typer.Option("--require-labels", help="Refuse pictures without a class.")] = False,
    on_error: Annotated[
        Literal["raise", "skip"], typer.Option(help="Stop at a picture that cannot be read, or leave it out.")
    ] = "raise",
    verify: Annotated[bool, typer.Option(help="Decode every picture.")] = True,
    statistics: Annotated[bool, typer.Option("--statistics", help="Compute mean and standard deviation too.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on with what an earlier call has not finished.")] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace another dataset that is there.")] = False,
    processes: Workers = None,
) -> None:
    """Pack a dataset into MDS: a few large files instead of many small ones, and an index.

    Killed at any moment, the same command goes on where it stopped.
    """
    from torchslip.cli._pack import run_pack

    run_pack(
        Console(),
        source=source,
        out=out,
        image=image,
        pixels=pixels,
        shorter=shorter,
        longer_max=longer_max,
        quality=quality,
        processes=processes,
        shard_bytes=shard_bytes,
        compression=compression,
        hashes=hashes or "sha1",
        label_mode=label_mode,
        require_labels=require_labels,
        on_error=on_error,
        verify=verify,
        statistics=statistics,
        resume=resume,
        exist_ok=replace,
    )


@app.command()
def verify(
    path: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset.")], processes: Workers = None
) -> None:
    """Check every hash, size and picture of a dataset; exit code 1 if something is wrong."""
    from torchslip.cli._verify import run_verify

    if not run_verify(Console(), path=path, processes=processes):
        raise typer.Exit(1)


@app.command()
def stats(
    path: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset with pictures.")],
    image: Annotated[Path | None, typer.Option(help="Draw values and sizes into this file.")] = None,
    processes: Workers = None,
) -> None:
    """Compute mean and standard deviation over all pixels of a dataset, and the sizes of its pictures."""
    from torchslip.cli._stats import run_stats

    run_stats(Console(), path=path, image=image, processes=processes)


_Options = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option", metavar="NAME=VALUE", help="For the storage, such as endpoint_url=...; may be repeated."
    ),
]


@app.command()
def sync(
    source: Annotated[str, typer.Argument(metavar="URL", help="A dataset or any folder: a path, a URL or a link.")],
    target: Annotated[str, typer.Argument(metavar="DIR", help="A folder or URL for the copy.")],
    jobs: Annotated[int, typer.Option(min=1, help="How many files to copy at a time.")] = 16,
    replace: Annotated[bool, typer.Option("--replace", help="Replace other files that are there.")] = False,
    storage_options: _Options = None,
) -> None:
    """Copy a dataset or a folder from or to a URL, checked, and completed if an earlier call was killed.

    What is there already is compared, and not copied again. The index of a dataset comes last.
    """
    from torchslip.cli._sync import run_sync

    run_sync(Console(), source=source, target=target, jobs=jobs, replace=replace, storage_options=storage_options or [])


@app.command()
def warm(
    path: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset: a path or URL.")],
    cache: Annotated[
        str | None, typer.Option(help="The folder of the cache. Default: that in the user's cache folder.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="What the cache may hold, such as 500gb.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many shards to fetch at a time.")] = 8,
    storage_options: _Options = None,
) -> None:
    """Fetch the shards of a dataset into the node cache before they are needed, as far as its budget goes.

    What lies on this machine is read once, so that memory has it.
    """
    from torchslip.cli._warm import run_warm

    run_warm(Console(), path=path, cache=cache, budget=budget, jobs=jobs, storage_options=storage_options or [])


@app.command()
def resolve(
    link: Annotated[str, typer.Argument(help="base, base@refresh or base@sha256:HASH; the base is a folder or a URL.")],
    store: Annotated[
        str | None, typer.Option(help="The folder or URL that keeps snapshots. Default: the user's cache folder.")
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Take objects in sub-folders.")] = True,
    label_mode: Annotated[str, typer.Option(help="auto, imagefolder or none.")] = "auto",
    require_labels: Annotated[bool, typer.Option(help="Refuse an object without a class.")] = False,
    images: Annotated[bool, typer.Option(help="Take pictures only, as the datasets of images do.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for another process that lists the same.")] = 3600,
) -> None:
    """Take a snapshot of a folder or bucket, or find the one it has: its hash, objects, bytes and classes."""
    from torchslip.cli._resolve import run_resolve

    run_resolve(
        Console(),
        link,
        images=images,
        store=store,
        recursive=recursive,
        label_mode=label_mode,
        require_labels=require_labels,
        timeout_seconds=timeout,
    )


_Recipe = Annotated[str, typer.Argument(help="The name of a recipe that comes with torchslip, or a file of your own.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Other values for single keys: batch_size=64 views.*.augment.ColorJitter.p=0.5", metavar="KEY=VALUE"
    ),
]
_Data = Annotated[str, typer.Option(help="The training data: a folder or URL that torchslip inspect understands.")]


@app.command()
def run(
    recipe: _Recipe,
    data: _Data,
    overrides: _Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="How many batches to train on.")] = 100,
    out: Annotated[Path, typer.Option(help="Where a picture of every view and run.json go.")] = Path("run"),
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures in a batch.")] = 64,
    size: Annotated[
        int | None, typer.Option(min=1, help="The size of the largest view in pixels; the others in proportion.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="What to train with a recipe of your own: simclr, dino, ...")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: the GPU if there is one.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of the loader.")] = 2,
) -> None:
    """Train a small network by a recipe: does it run on these pictures, how fast, and what does the network see?

    Every recipe has the loss of its paper in small. It ends with a table of speed and loss, with run.json, and with a
    picture of every view of the first batch.
    """
    from torchslip.cli._run import run_recipe

    run_recipe(
        Console(),
        recipe=recipe,
        overrides=overrides or [],
        data=data,
        method=method,
        steps=steps,
        out=out,
        batch_size=batch_size,
        size=size,
        device=device,
        workers=workers,
    )


@app.command()
def show(
    recipe: _Recipe,
    data: _Data,
    overrides: _Overrides = None,
    out: Annotated[Path, typer.Option(help="The picture to write, .png or .jpg.")] = Path("views.png"),
    count: Annotated[int, typer.Option(min=1, help="How many pictures to show.")] = 4,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch's crops and augmentation.")] = 0,
) -> None:
    """Draw what a recipe makes of some pictures: the boxes of all crops on the source, and every finished view."""
    from torchslip.cli._show import show_recipe

    show_recipe(Console(), recipe=recipe, overrides=overrides or [], data=data, count=count, epoch=epoch, out=out)


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, decoder backends and why not, cores, memory limits, GPU."""
    from torchslip.cli._doctor import run_doctor

    run_doctor(Console())


def main() -> None:
    """Run the command line; what the user can mend is one line on standard error and exit code 2."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        from torchslip.errors import TorchslipError

        known = (
            *(TorchslipError, FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError),
            TimeoutError,
        )
        expected = isinstance(error, known)
        if not expected:
            raise
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {_text_of(error)}", highlight=False)
        sys.exit(2)


def _text_of(error: Exception) -> str:
    from rich.markup import escape

    if isinstance(error, OSError) and error.filename is not None:
        return escape(f"{error.strerror}: {error.filename}")
    return escape(str(error))
