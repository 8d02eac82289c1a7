"""To the model: datasets and the loader."""

from torchslip.loading._batcher import MAX_PIXELS, Batch, OnError
from torchslip.loading._dataset import ImageDataset
from torchslip.loading._loader import DataLoader
from torchslip.loading._map_dataset import ImageMapDataset, collate
from torchslip.loading._ordered import OrderedDataset
from torchslip.loading._streaming import StreamingDataset

__all__ = [
    "MAX_PIXELS",
    "Batch",
    "DataLoader",
    "ImageDataset",
    "ImageMapDataset",
    "OnError",
    "OrderedDataset",
    "StreamingDataset",
    "collate",
]
