"""To the model: datasets and the loader."""

from torchslip.loading._batcher import MAX_PIXELS, Batch, OnError
from torchslip.loading._bytes import BytesDataset
from torchslip.loading._bytes_batch import BytesBatch
from torchslip.loading._dataset import ImageDataset
from torchslip.loading._limits import PROFILES, Constraints, Limits, RuntimeConfig
from torchslip.loading._loader import DataLoader
from torchslip.loading._machine import cpu_quota, memory_limit_bytes
from torchslip.loading._map_dataset import ImageMapDataset, collate
from torchslip.loading._ordered import OrderedDataset
from torchslip.loading._prometheus import prometheus_text
from torchslip.loading._source_cache import SourceCache, set_cache_of_paths
from torchslip.loading._streaming import StreamingDataset
from torchslip.loading._streams import Stream

__all__ = [
    "MAX_PIXELS",
    "PROFILES",
    "Batch",
    "BytesBatch",
    "BytesDataset",
    "Constraints",
    "DataLoader",
    "ImageDataset",
    "ImageMapDataset",
    "Limits",
    "OnError",
    "OrderedDataset",
    "RuntimeConfig",
    "SourceCache",
    "Stream",
    "StreamingDataset",
    "collate",
    "cpu_quota",
    "memory_limit_bytes",
    "prometheus_text",
    "set_cache_of_paths",
]
