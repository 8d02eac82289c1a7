"""To the model: datasets and the loader."""

from torchslip.loading._batcher import MAX_PIXELS, Batch, OnError
from torchslip.loading._dataset import ImageDataset
from torchslip.loading._loader import DataLoader
from torchslip.loading._map_dataset import ImageMapDataset, collate

__all__ = ["MAX_PIXELS", "Batch", "DataLoader", "ImageDataset", "ImageMapDataset", "OnError", "collate"]
