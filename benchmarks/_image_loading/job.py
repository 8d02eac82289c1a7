"""What a contender is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from _image_loading.pictures import Kind

if TYPE_CHECKING:
    import torch

__all__ = ["SIZE_PX", "Contender", "Epoch", "Job", "Pixels"]

SIZE_PX = 224

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
        epochs: Timed epochs at most, for what takes long; None: as many as asked for.
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
