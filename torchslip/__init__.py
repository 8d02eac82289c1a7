"""PyTorch datasets, samplers and a `DataLoader` for images: fast, reproducible, resumable.

Four concepts carry everything:

==========  ============================================  ===========================================================
Concept     Question                                      What it is
==========  ============================================  ===========================================================
**Source**  What is stored?                               Records with random access; like a `Sequence`, read-only.
**Order**   Which record stands at position p of epoch e? A pure function of (seed, epoch, position).
**View**    Which pixels of it, and at what size?         Crop geometry, drawn per sample; several from one decode.
**Cursor**  How far is everyone?                          One global position, the same on all ranks: the `state_dict`.
==========  ============================================  ===========================================================

A dataset puts a Source and Views together, a sampler puts an Order, a share of it and a Cursor together, and
`ImageDataset` is both::

    import torchslip as ts

    train = ts.ImageDataset("data/train", views=ts.RandomResizedCrop(224), batch_size=256, shuffle=True, seed=17)
    for batch in ts.DataLoader(train, num_workers=8):
        batch["image"], batch["label"], batch["sample_id"]
"""

import importlib
from typing import TYPE_CHECKING

from torchslip.decode import (
    CenterCrop,
    Decode,
    DirectRandomResizedCrop,
    RandomResizedCrop,
    ResizeCrop,
    ResizeShortCropLong,
    View,
)
from torchslip.errors import (
    FormatError,
    MemoryLimitError,
    MissingDependencyError,
    SampleError,
    StateError,
    StorageError,
    TorchslipError,
)
from torchslip.loading import (
    BytesBatch,
    BytesDataset,
    Constraints,
    DataLoader,
    ImageDataset,
    ImageMapDataset,
    RuntimeConfig,
    Stream,
    StreamingDataset,
    collate,
    prometheus_text,
)
from torchslip.order import DistributedBatchSampler, LeaseSampler, MixedOrder, Order, Sequential, Shuffled, Subset
from torchslip.pack import MDSWriter, PackedCache, Resize, cached, merge_index, pack
from torchslip.show import show_batch
from torchslip.sources import MDS, ImageFolder, Mixture, Objects, Source, mix, open
from torchslip.storage import NodeCache, Snapshot, resolve

if TYPE_CHECKING:
    from torchslip import augment, recipes
else:

    def __getattr__(name):
        # These two take as long to import as all the rest, and loading needs neither.
        if name in ("augment", "recipes"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__version__ = "0.1.0"

__all__ = [
    "MDS",
    "BytesBatch",
    "BytesDataset",
    "CenterCrop",
    "Constraints",
    "DataLoader",
    "Decode",
    "DirectRandomResizedCrop",
    "DistributedBatchSampler",
    "FormatError",
    "ImageDataset",
    "ImageFolder",
    "ImageMapDataset",
    "LeaseSampler",
    "MDSWriter",
    "MemoryLimitError",
    "MissingDependencyError",
    "MixedOrder",
    "Mixture",
    "NodeCache",
    "Objects",
    "Order",
    "PackedCache",
    "RandomResizedCrop",
    "Resize",
    "ResizeCrop",
    "ResizeShortCropLong",
    "RuntimeConfig",
    "SampleError",
    "Sequential",
    "Shuffled",
    "Snapshot",
    "Source",
    "StateError",
    "StorageError",
    "Stream",
    "StreamingDataset",
    "Subset",
    "TorchslipError",
    "View",
    "augment",
    "cached",
    "collate",
    "merge_index",
    "mix",
    "open",
    "pack",
    "prometheus_text",
    "recipes",
    "resolve",
    "show_batch",
]
