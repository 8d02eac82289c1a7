"""The commands and their options; what they do is in a module each, imported when the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

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
    path: Annotated[Path, typer.Argument(help="A folder of pictures.")],
    image: Annotated[Path | None, typer.Option(help="Write a contact sheet of some pictures to this file.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many pictures to look into.")] = 500,
) -> None:
    """Say what a dataset is: its format, records, fields, sizes, and files that cannot be read."""
    from torchslip.cli._inspect import run_inspect

    run_inspect(Console(), path=path, image=image, sample=sample)


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

        expected = isinstance(error, TorchslipError | FileNotFoundError | NotADirectoryError | PermissionError)
        if not expected:
            raise
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {_text_of(error)}", highlight=False)
        sys.exit(2)


def _text_of(error: Exception) -> str:
    from rich.markup import escape

    if isinstance(error, OSError) and error.filename is not None:
        return escape(f"{error.strerror}: {error.filename}")
    return escape(str(error))
