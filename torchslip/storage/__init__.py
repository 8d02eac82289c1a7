"""Where bytes live: folders on this machine, URLs that fsspec knows, and snapshots of what is there."""

from torchslip.storage._folder import TEMPORARY_PREFIX, Folder, LocalFolder, is_remote, open_folder
from torchslip.storage._link import Link, has_state, parse_link
from torchslip.storage._resolve import resolve
from torchslip.storage._retry import Retry
from torchslip.storage._selection import LabelMode
from torchslip.storage._size import parse_bytes
from torchslip.storage._snapshot import Snapshot
from torchslip.storage._stat import FileStat

__all__ = [
    "TEMPORARY_PREFIX",
    "FileStat",
    "Folder",
    "LabelMode",
    "Link",
    "LocalFolder",
    "Retry",
    "Snapshot",
    "has_state",
    "is_remote",
    "open_folder",
    "parse_bytes",
    "parse_link",
    "resolve",
]
