"""Loaders that make ten views of each picture: two of 224 pixels and eight of 96, as DINO takes them."""

from __future__ import annotations

from typing import Any

from _image_loading.job import FFCV_ON_ONE_CORE, SIZE_PX, TORCH, Contender, Epoch, Job, ffcv_loader

__all__ = ["MANY_VIEWS"]

_LOCAL_PX = 96
_GLOBAL_SCALE, _LOCAL_SCALE = (0.4, 1.0), (0.05, 0.4)
_TEN = (*(SIZE_PX,) * 2, *(_LOCAL_PX,) * 8)


def _crops(sides: tuple[int, ...]) -> dict[str, tuple[int, tuple[float, float]]]:
    """Name of each view to side and scale."""
    return {f"view_{i}": (px, _GLOBAL_SCALE if px == SIZE_PX else _LOCAL_SCALE) for i, px in enumerate(sides)}


def _torchslip(job: Job, sides: tuple[int, ...], decoder: Any = "auto") -> Epoch:
    import torchslip as ts

    crops = _crops(sides)
    dataset = ts.ImageDataset(
        job.folder,
        views={name: ts.RandomResizedCrop(px, scale=scale) for name, (px, scale) in crops.items()},
        batch_size=job.batch_size,
        shuffle=True,
        seed=job.seed,
        decoder=decoder,
    )
    loader = ts.DataLoader(dataset, num_workers=job.cores, persistent_workers=True)
    return lambda: ([batch[name] for name in crops] for batch in loader)


def _torchslip_ten(job: Job) -> Epoch:
    return _torchslip(job, _TEN)


def _torchslip_two(job: Job) -> Epoch:
    return _torchslip(job, _TEN[:2])


class _ViewByView:
    """The fast decoder, called anew for each view, as loaders do that have one pipeline for each."""

    name = "view-by-view"

    def decode(self, images: Any, headers: Any, placements: Any, outputs: Any, **options: Any) -> dict[int, Exception]:
        from torchslip.decode import make_decoder

        decoder = make_decoder("turbo")
        failures: dict[int, Exception] = {}
        for placement, output in zip(placements, outputs, strict=True):
            failures |= decoder.decode(images, headers, [placement], [output], **options)
        return failures


def _torchslip_view_by_view(job: Job) -> Epoch:
    return _torchslip(job, _TEN, decoder=_ViewByView())


def _ffcv(job: Job) -> Epoch:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.pipeline import PipelineSpec
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    pipelines: dict[str, Any] = {"label": [IntDecoder(), ToTensor(), Squeeze()], "image": None}
    for name, (px, scale) in _crops(_TEN).items():
        crop = RandomResizedCropRGBImageDecoder((px, px), scale=scale)
        pipelines[name] = PipelineSpec("image", decoder=crop, transforms=[ToTensor(), ToTorchImage()])
    loader = ffcv_loader(job, pipelines)
    # A batch has its fields in the order of the pipelines, which has the label somewhere.
    return lambda: ([part for part in batch if part.ndim == 4] for batch in loader)


_MODULES = ("torchslip", "torchvision.io")

MANY_VIEWS: tuple[Contender, ...] = (
    Contender(
        "torchslip-10-views",
        "torchslip, 2 x 224 + 8 x 96 from one decode",
        _MODULES,
        ("torchslip", *TORCH),
        _torchslip_ten,
        view_px=_TEN,
        epochs=1,
        sets=("resized",),
    ),
    Contender(
        "torchslip-2-views",
        "torchslip, 2 x 224 from one decode",
        _MODULES,
        ("torchslip", *TORCH),
        _torchslip_two,
        view_px=_TEN[:2],
        epochs=1,
        sets=("resized",),
    ),
    Contender(
        "torchslip-10-decodes",
        "torchslip, 2 x 224 + 8 x 96, a decode for each",
        _MODULES,
        ("torchslip", *TORCH),
        _torchslip_view_by_view,
        view_px=_TEN,
        epochs=1,
        sets=("resized",),
    ),
    Contender(
        "ffcv-10-decodes",
        "FFCV, 2 x 224 + 8 x 96, a decode for each",
        ("ffcv.loader", "ffcv.fields.rgb_image"),
        ("ffcv", "numba", *TORCH),
        _ffcv,
        needs_two_cores=FFCV_ON_ONE_CORE,
        view_px=_TEN,
        epochs=1,
        sets=("resized",),
    ),
)
