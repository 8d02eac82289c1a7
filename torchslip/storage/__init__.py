"""Where bytes live: folders on this machine, URLs that fsspec knows, and a cache of what was read from them."""

from torchslip.storage._cache import Entry, NodeCache
from torchslip.storage._cache_file import Held
from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, is_remote, open_folder
from torchslip.storage._retry import Retry
from torchslip.storage._size import parse_bytes
from torchslip.storage._stat import FileStat

__all__ = [
    "TEMPORARY_PREFIX",
    "Entry",
    "FileStat",
    "Folder",
    "Held",
    "LocalFolder",
    "NodeCache",
    "Retry",
    "is_remote",
    "open_folder",
    "parse_bytes",
]
