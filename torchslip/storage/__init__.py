"""Where bytes live: folders on this machine and URLs that fsspec knows."""

from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, open_folder
from torchslip.storage._size import parse_bytes

__all__ = ["TEMPORARY_PREFIX", "Folder", "LocalFolder", "open_folder", "parse_bytes"]
