"""The MDS format, version 2: the source `MDS`, and the parts of the format that its writers share."""

from torchslip.sources.mds._array_file import ArrayFile, dump_arrays
from torchslip.sources.mds._check import check_shard
from torchslip.sources.mds._compression import COMPRESSIONS, Compression, parse_compression
from torchslip.sources.mds._encodings import ENCODINGS, Encoding, parse_encoding
from torchslip.sources.mds._hashing import HASHES, checked_hashes, hash_bytes
from torchslip.sources.mds._index import INDEX_NAME, Index, ShardInfo, index_text
from torchslip.sources.mds._layout import FileInfo, Layout
from torchslip.sources.mds._sidecar import SIDECAR_NAME, Sidecar
from torchslip.sources.mds._source import MDS
from torchslip.sources.mds._warm import ShardFile, shard_files

__all__ = [
    "COMPRESSIONS",
    "ENCODINGS",
    "HASHES",
    "INDEX_NAME",
    "MDS",
    "SIDECAR_NAME",
    "ArrayFile",
    "Compression",
    "Encoding",
    "FileInfo",
    "Index",
    "Layout",
    "ShardFile",
    "ShardInfo",
    "Sidecar",
    "check_shard",
    "checked_hashes",
    "dump_arrays",
    "hash_bytes",
    "index_text",
    "parse_compression",
    "parse_encoding",
    "shard_files",
]
