"""The loaders that are compared, each built as its own documentation builds it.

Libraries are imported when a contender is built, because each trial runs in a process, and some peers in a Python,
of their own.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from _image_loading.job import FFCV_ON_ONE_CORE, SIZE_PX, TORCH, Contender, Epoch, Job, ffcv_loader
from _image_loading.many_views import MANY_VIEWS

if TYPE_CHECKING:
    import torch

__all__ = ["CONTENDERS", "PEERS", "SINGLE_VIEW"]


def _torchslip_dataset(job: Job, decoder: str = "auto", pixels: str | None = None) -> Any:
    import torchslip as ts

    return ts.ImageDataset(
        job.pack(pixels) if pixels else job.folder,
        views=ts.RandomResizedCrop(SIZE_PX),
        batch_size=job.batch_size,
        shuffle=True,
        seed=job.seed,
        decoder=decoder,
    )


def _torchslip(job: Job, decoder: str = "auto", pixels: str | None = None) -> Epoch:
    import torchslip as ts

    loader = ts.DataLoader(_torchslip_dataset(job, decoder, pixels), num_workers=job.cores, persistent_workers=True)
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
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    pipelines = {
        "image": [RandomResizedCropRGBImageDecoder((SIZE_PX, SIZE_PX)), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze()],
    }
    loader = ffcv_loader(job, pipelines)
    return lambda: (images for images, labels in loader)


_OURS = ("torchslip", *TORCH)


def _packed(name: str, pixels: str, label: str) -> Contender:
    modules = ("torchslip", "torchvision.io")
    return Contender(name, label, modules, _OURS, partial(_torchslip, pixels=pixels), pixels=pixels)


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
        _packed("torchslip-mds", "jpeg", "torchslip, packed, the files as they are"),
        _packed("torchslip-indexed", "jpeg-indexed", "torchslip, packed with a tile index"),
        _packed("torchslip-yuv420", "yuv420", "torchslip, packed as YUV420"),
        Contender(
            "torchvision-pil",
            "torchvision ImageFolder, Pillow",
            ("torchvision.datasets", "torchvision.transforms.v2"),
            TORCH,
            _torchvision_pil,
        ),
        Contender(
            "torchvision-decode",
            "torchvision ImageFolder, decode_image",
            ("torchvision.datasets", "torchvision.transforms.v2"),
            TORCH,
            _torchvision_decode,
        ),
        Contender(
            "dali",
            "DALI on the CPU",
            ("nvidia.dali.plugin.pytorch",),
            ("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110", *TORCH),
            _dali,
        ),
        Contender(
            "ffcv",
            "FFCV (JPEG, quality 95)",
            ("ffcv.loader", "ffcv.fields.rgb_image"),
            ("ffcv", "numba", *TORCH),
            _ffcv,
            needs_two_cores=FFCV_ON_ONE_CORE,
        ),
        *MANY_VIEWS,
    )
}

PEERS: tuple[str, ...] = tuple(each.name for each in CONTENDERS.values() if not each.is_ours)

SINGLE_VIEW: tuple[str, ...] = tuple(each.name for each in CONTENDERS.values() if len(each.view_px) == 1)
