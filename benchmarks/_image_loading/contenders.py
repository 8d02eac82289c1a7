"""The loaders that are compared, each built as its own documentation builds it.

Libraries are imported when a contender is built, because each trial runs in a process, and some peers in a Python,
of their own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["CONTENDERS", "PEERS", "Contender", "Job"]

SIZE_PX = 224


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender has to do.

    Attributes:
        folder: ``class/picture.jpg``.
        beton: The same pictures as FFCV stores them.
        cores: As many worker processes or threads.
        batch_size: Pictures per batch.
        seed: Of the order and the crops.
    """

    folder: Path
    beton: Path
    cores: int
    batch_size: int
    seed: int


Epoch = Callable[[], "Iterator[torch.Tensor]"]
"""Begins an epoch: the pictures of each batch, uint8, ``[B, 3, H, W]`` or ``[B, H, W, 3]``."""


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
    """

    name: str
    label: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    build: Callable[[Job], Epoch]
    needs_two_cores: str = ""


def _torchslip_dataset(job: Job, decoder: str = "auto") -> Any:
    import torchslip as ts

    return ts.ImageDataset(
        job.folder,
        views=ts.RandomResizedCrop(SIZE_PX),
        batch_size=job.batch_size,
        shuffle=True,
        seed=job.seed,
        decoder=decoder,
    )


def _torchslip(job: Job, decoder: str = "auto") -> Epoch:
    import torchslip as ts

    loader = ts.DataLoader(_torchslip_dataset(job, decoder), num_workers=job.cores, persistent_workers=True)
    return lambda: (batch["image"] for batch in loader)


def _torchslip_with_torchvision(job: Job) -> Epoch:
    return _torchslip(job, decoder="torchvision")


def _torchslip_in_torch_loader(job: Job) -> Epoch:
    from torch.utils.data import DataLoader

    dataset = _torchslip_dataset(job)
    loader = DataLoader(dataset, batch_size=None, num_workers=job.cores, persistent_workers=True)
    return lambda: (batch["image"] for batch in loader)


def _torchvision(job: Job, transform: Any, **options: Any) -> Epoch:
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    torch.manual_seed(job.seed)
    loader = DataLoader(
        ImageFolder(job.folder, transform, **options),
        batch_size=job.batch_size,
        shuffle=True,
        num_workers=job.cores,
        persistent_workers=True,
    )
    return lambda: (images for images, labels in loader)


def _torchvision_pil(job: Job) -> Epoch:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(SIZE_PX, antialias=True)
    return _torchvision(job, v2.Compose([crop, v2.PILToTensor()]))


def _torchvision_decode(job: Job) -> Epoch:
    from torchvision.transforms import v2

    # torchvision 0.29 announces that its decoders will leave for TorchCodec; workers inherit this filter by fork.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchvision")
    return _torchvision(job, v2.RandomResizedCrop(SIZE_PX, antialias=True), loader=_load_rgb)


def _load_rgb(path: str) -> torch.Tensor:
    from torchvision.io import decode_image

    return decode_image(path, mode="RGB")


def _dali(job: Job) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=job.batch_size, num_threads=job.cores, device_id=None, seed=job.seed)
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(file_root=str(job.folder), shuffle_after_epoch=True, name="reader")
        crops = fn.decoders.image_random_crop(encoded, device="cpu")
        # With antialiasing, linear interpolation is a triangular filter.
        return fn.resize(crops, size=(SIZE_PX, SIZE_PX), interp_type=types.INTERP_LINEAR, antialias=True), labels

    loader = DALIGenericIterator([pipeline()], ["image", "label"], reader_name="reader", auto_reset=True)
    return lambda: (batch[0]["image"] for batch in loader)


def _ffcv(job: Job) -> Epoch:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    loader = Loader(
        str(job.beton),
        batch_size=job.batch_size,
        num_workers=job.cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=job.seed,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((SIZE_PX, SIZE_PX)), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    return lambda: (images for images, labels in loader)


_TORCH = ("torch", "torchvision", "numpy", "pillow")
_OURS = ("torchslip", *_TORCH)

CONTENDERS: dict[str, Contender] = {
    each.name: each
    for each in (
        Contender(
            "torchslip",
            "torchslip, ts.DataLoader",
            ("torchslip", "torchvision.io"),
            _OURS,
            _torchslip,
        ),
        Contender(
            "torchslip-torchvision",
            "torchslip, decoder='torchvision'",
            ("torchslip", "torchvision.io"),
            _OURS,
            _torchslip_with_torchvision,
        ),
        Contender(
            "torchslip-torch-loader",
            "torchslip in torch's DataLoader",
            ("torchslip", "torchvision.io"),
            _OURS,
            _torchslip_in_torch_loader,
        ),
        Contender(
            "torchvision-pil",
            "torchvision ImageFolder, Pillow",
            ("torchvision.datasets", "torchvision.transforms.v2"),
            _TORCH,
            _torchvision_pil,
        ),
        Contender(
            "torchvision-decode",
            "torchvision ImageFolder, decode_image",
            ("torchvision.datasets", "torchvision.transforms.v2"),
            _TORCH,
            _torchvision_decode,
        ),
        Contender(
            "dali",
            "DALI on the CPU",
            ("nvidia.dali.plugin.pytorch",),
            ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110", *_TORCH),
            _dali,
        ),
        Contender(
            "ffcv",
            "FFCV (JPEG, quality 95)",
            ("ffcv.loader", "ffcv.fields.rgb_image"),
            ("ffcv", "numba", *_TORCH),
            _ffcv,
            needs_two_cores="FFCV 1.0.2 hangs when it is pinned to one core",
        ),
    )
}

PEERS: tuple[str, ...] = tuple(name for name in CONTENDERS if not name.startswith("torchslip"))
