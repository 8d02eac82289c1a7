"""Where bytes live: folders on this machine and URLs that fsspec knows, and a cache of what was read from them."""

from torchslip.storage._cache import Entry, NodeCache
from torchslip.storage._cache_file import Held
from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, open_folder

__all__ = ["TEMPORARY_PREFIX", "Entry", "Folder", "Held", "LocalFolder", "NodeCache", "open_folder"]
