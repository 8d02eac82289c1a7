"""What a contender is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _image_loading.pictures import Kind

if TYPE_CHECKING:
    import torch

__all__ = ["FFCV_ON_ONE_CORE", "SIZE_PX", "TORCH", "Contender", "Epoch", "Job", "Pixels", "ffcv_loader"]

SIZE_PX = 224

TORCH = ("torch", "torchvision", "numpy", "pillow")
"""Packages that nearly every contender uses."""

FFCV_ON_ONE_CORE = "FFCV 1.0.2 hangs when it is pinned to one core"

Pixels = str
"""What `torchslip.pack` takes as ``pixels=``."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender has to do.

    Attributes:
        folder: ``class/picture.jpg``.
        cores: As many worker processes or threads.
        batch_size: Pictures per batch.
        seed: Of the order and the crops.
    """

    folder: Path
    cores: int
    batch_size: int
    seed: int

    @property
    def beton(self) -> Path:
        """The same pictures as FFCV stores them."""
        return self.folder.with_name("pictures.beton")

    def pack(self, pixels: Pixels) -> Path:
        """The same pictures as `torchslip.pack` stores them."""
        return self.folder.with_name(f"pack-{pixels}")


Epoch = Callable[[], "Iterator[torch.Tensor | Sequence[torch.Tensor]]"]
"""Begins an epoch: the pictures of each batch, or the views of them, uint8, ``[B, 3, H, W]`` or ``[B, H, W, 3]``."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One bar of the chart.

    Attributes:
        name: What is typed and stored.
        label: What it is, for a reader who has not seen the code.
        modules: Imported before the clock of the first batch starts; one that is missing rules the contender out.
        packages: Whose versions are reported.
        build: Makes the loader.
        needs_two_cores: Why it cannot be run on one core; empty if it can.
        pixels: Of the packed dataset that it reads; None if it reads the files or its own format.
        epochs: So many timed epochs are enough, for what takes long; None: as many as asked for.
        view_px: Side of each view of a picture.
        sets: The sets that it is run on.
    """

    name: str
    label: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    build: Callable[[Job], Epoch]
    needs_two_cores: str = ""
    pixels: Pixels | None = None
    epochs: int | None = None
    view_px: tuple[int, ...] = (SIZE_PX,)
    sets: tuple[Kind, ...] = ("resized", "original", "2048x1536")

    @property
    def is_ours(self) -> bool:
        """Whether it is torchslip."""
        return self.name.startswith("torchslip")


def ffcv_loader(job: Job, pipelines: dict[str, Any]) -> Any:
    """FFCV's loader, as its own documentation builds it, of the job's pictures."""
    from ffcv.loader import Loader, OrderOption

    return Loader(
        str(job.beton),
        batch_size=job.batch_size,
        num_workers=job.cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=job.seed,
        pipelines=pipelines,
    )
