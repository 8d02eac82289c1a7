"""Where bytes live: folders on this machine and URLs that fsspec knows."""

from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, is_remote, open_folder
from torchslip.storage._retry import Retry
from torchslip.storage._stat import FileStat

__all__ = ["TEMPORARY_PREFIX", "FileStat", "Folder", "LocalFolder", "Retry", "is_remote", "open_folder"]
