"""One trial: one contender, one set of pictures, one fresh process. Run by `supervisor`.

What happens is told on standard output, one JSON object a line: ``missing`` with the reason if the library is not
installed, else ``first_batch``, ``warm`` at the end of the first epoch, and ``result``. Everything that the
libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from _machine import usable_cores, versions

from _image_loading.contenders import CONTENDERS
from _image_loading.job import Contender, Epoch, Job


class _Events:
    """The lines to the supervisor."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, event: str, **details: Any) -> None:
        self._stream.write(json.dumps({"event": event, **details}) + "\n")
        self._stream.flush()


def main() -> None:
    arguments = _parse()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, usable_cores()[: arguments.cores])
    events = _Events()
    contender = CONTENDERS[arguments.contender]
    start = time.perf_counter()
    try:
        for module in contender.modules:
            importlib.import_module(module)
    except ImportError as error:
        events.send("missing", reason=str(error))
        return
    import_seconds = time.perf_counter() - start
    measured = _measure(contender, arguments, events.send)
    events.send("result", import_seconds=import_seconds, versions=versions(*contender.packages), **measured)


def _measure(contender: Contender, arguments: argparse.Namespace, send: Callable[..., None]) -> dict[str, Any]:
    job = Job(arguments.folder, arguments.cores, arguments.batch_size, arguments.seed)
    start = time.perf_counter()
    epoch = contender.build(job)
    first_batch_seconds = _warm_up(epoch, start, contender.view_px, arguments, send)
    seconds: list[float] = []
    epochs = min(arguments.epochs, contender.epochs or arguments.epochs)
    while len(seconds) < epochs or sum(seconds) < arguments.least_seconds:
        start = time.perf_counter()
        pictures = _count(epoch)
        seconds.append(time.perf_counter() - start)
        if pictures != arguments.images:
            raise RuntimeError(f"an epoch has {arguments.images} pictures, {contender.name} delivered {pictures}")
    return {
        "first_batch_seconds": first_batch_seconds,
        "epoch_seconds": seconds,
        "images_per_second": arguments.images * len(seconds) / sum(seconds),
    }


def _warm_up(
    epoch: Epoch, start: float, view_px: Sequence[int], arguments: argparse.Namespace, send: Callable[..., None]
) -> float:
    """Run the first epoch, and look whether the batches are what they have to be."""
    seconds = None
    wanted = sorted(tuple(sorted((arguments.batch_size, 3, px, px))) for px in view_px)
    for views in map(_views_of, epoch()):
        if seconds is None:
            seconds = time.perf_counter() - start
            send("first_batch")
        if {str(each.dtype) for each in views} != {"torch.uint8"} or sorted(_shape(each) for each in views) != wanted:
            raise RuntimeError(f"a batch is {[(each.dtype, list(each.shape)) for each in views]}")
    send("warm")
    if seconds is None:
        raise RuntimeError("the first epoch has no batches")
    return seconds


def _count(epoch: Epoch) -> int:
    # Nothing is done with a batch but to look at its shape: no copy, no conversion, no device.
    return sum(_views_of(batch)[0].shape[0] for batch in epoch())


def _views_of(batch: Any) -> Sequence[Any]:
    return batch if isinstance(batch, list) else [batch]


def _shape(images: Any) -> tuple[int, ...]:
    return tuple(sorted(images.shape))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--least-seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
