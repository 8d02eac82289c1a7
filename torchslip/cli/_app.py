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
    path: Annotated[str, typer.Argument(help="A folder of pictures, a dataset, or a URL or link of one.")],
    image: Annotated[Path | None, typer.Option(help="Write a contact sheet of some pictures to this file.")] = None,
    sample: Annotated[int, typer.Option(min=1, help="How many pictures to look into.")] = 500,
) -> None:
    """Say what a dataset is: its format, records, fields, sizes, and files that cannot be read."""
    from torchslip.cli._inspect import run_inspect

    run_inspect(Console(), path=path, image=image, sample=sample)


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

        known = TorchslipError | FileNotFoundError | NotADirectoryError | PermissionError | TimeoutError
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
